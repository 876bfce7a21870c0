// The annotating page's hands: keys for letters, time spent, a heartbeat that keeps the lease, release on leave.
// Everything works without it as a plain form; the image viewer of the workbench gets a module of its own.

const area = document.getElementById("judging");
let heartbeat = 0;
let shownAt = 0;

function form() {
  return area.querySelector("form[data-annotate]");
}

function boxes() {
  return [...area.querySelectorAll("input[name=letters]")];
}

function noneBox() {
  return area.querySelector("input[name=none]");
}

function typing(target) {
  return target.matches("textarea, input:not([type=checkbox]), select");
}

// "None" and letters exclude each other: ticking one clears the other, by mouse and by key alike.
function settle(changed) {
  const none = noneBox();
  if (changed === none && none.checked) boxes().forEach((box) => (box.checked = false));
  if (changed !== none && changed.checked) none.checked = false;
}

function toggle(box) {
  box.checked = !box.checked;
  settle(box);
}

function leaseForm() {
  const data = new FormData();
  for (const name of ["csrfmiddlewaretoken", "lease_token"]) data.set(name, form().elements[name].value);
  return data;
}

async function beat() {
  const current = form();
  if (!current) return;
  let response;
  try {
    response = await fetch(current.dataset.heartbeat, { method: "POST", body: leaseForm() });
  } catch {
    return; // the network is away for a moment: the next beat tries again, and submitting says so if it stays away
  }
  if (response.status === 409 && current === form()) {
    area.querySelector("[data-lease-lost]").hidden = false;
    window.clearInterval(heartbeat);
  }
}

function release() {
  const current = form();
  if (current) navigator.sendBeacon(current.dataset.release, leaseForm());
}

function begin() {
  window.clearInterval(heartbeat);
  const current = form();
  if (!current) return;
  shownAt = performance.now();
  heartbeat = window.setInterval(beat, Number(current.dataset.beatSeconds) * 1000);
  // The first control gets the focus so that the keys work at once, and an error is read out.
  (area.querySelector("[aria-invalid=true]") ?? boxes()[0])?.focus({ preventScroll: true });
}

area.addEventListener("change", (event) => {
  if (event.target.matches("input[name=letters], input[name=none]")) settle(event.target);
});

document.addEventListener("keydown", (event) => {
  const current = form();
  if (!current || event.altKey || event.metaKey) return;
  if (event.key === "Enter" && (event.ctrlKey || !typing(event.target))) {
    if (event.target.matches("a, button, summary") && !event.ctrlKey) return; // Enter presses what has the focus
    event.preventDefault();
    if (!event.repeat) current.requestSubmit();
    return;
  }
  if (event.ctrlKey) return;
  if (event.key === "Escape" && typing(event.target)) {
    boxes()[0].focus({ preventScroll: true });
    return;
  }
  if (typing(event.target)) return;
  const key = event.key.toUpperCase();
  const box = key === "N" ? noneBox() : boxes().find((candidate) => candidate.value === key);
  if (box) {
    event.preventDefault();
    toggle(box);
  } else if (key === "R") {
    event.preventDefault();
    current.elements.rationale.focus();
  }
});

area.addEventListener(
  "submit",
  () => {
    const earlier = Number(form().dataset.secondsBefore);
    form().elements.seconds_spent.value = (earlier + (performance.now() - shownAt) / 1000).toFixed(1);
  },
  true,
);
area.addEventListener("htmx:afterSwap", begin);
window.addEventListener("pagehide", release);
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload(); // back from the browser's cache: the lease was released on leaving
});
begin();
