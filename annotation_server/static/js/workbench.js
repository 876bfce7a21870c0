// The annotating page: tasks held ahead, one shown, answered mostly by keys, submitted in the background.
// Submitting shows the next task at once; what was said travels through the outbox, and can be undone.
// Not here: seeing (viewer.js), keeping what is typed (drafts.js), getting it to the server (outbox.js).

import { Offline, Refused, SignedOut, call, signIn } from "./api.js";
import { Draft } from "./drafts.js";
import { Keys, keyName } from "./keys.js";
import { Outbox } from "./outbox.js";
import { Viewer } from "./viewer.js";

const setup = JSON.parse(document.getElementById("setup").textContent);
const root = document.getElementById("workbench");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const words = root.dataset;

const form = part("form");
const rationale = part("rationale");
const viewer = new Viewer(part("viewer"), { strings: { ...part("viewer").dataset } });
const keys = new Keys(setup.keys);
const project = `${setup.api}/projects/${setup.project}`;
const stored = `winnow:${setup.person}:${setup.project}`;
const LOOK_AGAIN_MS = 30_000;
const PAN_STEP = 60; // pixels
const HISTORY = 50;

const outbox = new Outbox(`${stored}:outbox`, (entry) => call("POST", entry.url, entry.body));
const otherTabs = "BroadcastChannel" in window ? new BroadcastChannel(stored) : null;

let queue = []; // claims held; the first is shown
let draft = null;
let shownOrder = "";
let chosen = null; // a Set of letters; null: nothing chosen yet
let history = readHistory(); // what can be undone, the newest last
let done = 0;
let spent = 0; // milliseconds on the task that is shown, while the page was in sight
let since = 0;
let online = true;
let lookAgain = 0;
let refilling = null;
let askAgain = false;
const answered = new Set(); // lease tokens under which something was submitted or skipped: never shown again

// ---- Tasks ----

function imageUrl(pattern, sha256) {
  return pattern.replace("0".repeat(64), sha256);
}

function pictures(claim) {
  return claim.images.map((image) => ({
    letter: image.letter,
    full: imageUrl(setup.images, image.sha256),
    preview: imageUrl(image.preview ? setup.previews : setup.images, image.sha256),
    width: image.width,
    height: image.height,
  }));
}

// Ask for work: renews the leases of what is held, and fills up what is missing. One request at a time, for two would
// claim twice; who asks meanwhile gets another one after it.
function refill() {
  askAgain = true;
  refilling ??= (async () => {
    while (askAgain) {
      askAgain = false;
      await refillOnce();
    }
  })().finally(() => (refilling = null));
  return refilling;
}

async function refillOnce() {
  let said;
  try {
    said = await call("POST", `${project}/claims`, { count: setup.hold });
  } catch (error) {
    trouble(error);
    if (!queue.length) panel(error instanceof Offline ? "offline" : "error", error.message);
    return;
  }
  await take(said);
}

// What the server says this person holds becomes the queue; what is shown stays.
async function take(said) {
  setOnline(true);
  const current = queue[0];
  // What was answered while this was on its way is still held there, and done here.
  const claims = said.claims.filter((claim) => !outbox.holds(claim.task.id) && !answered.has(claim.lease_token));
  if (!current) {
    queue = claims;
    if (queue.length) await show();
    else nothing(said);
  } else {
    const kept = claims.find((claim) => claim.task.id === current.task.id);
    notice("lease", !kept);
    if (kept) Object.assign(current, { slot_id: kept.slot_id, lease_token: kept.lease_token });
    queue = [current, ...claims.filter((claim) => claim.task.id !== current.task.id)];
  }
  for (const claim of queue.slice(1)) viewer.preload(pictures(claim));
  for (const claim of queue) fetchGuidelines(claim.task.dimension);
}

function nothing(said) {
  const left = said.left ?? {};
  if (said.paused) panel("paused", said.paused);
  else if (!left.tasks) panel("none");
  else if (left.held_by_others) panel("held");
  else panel("done");
  const thanks = part("thanks");
  thanks.hidden = !left.answered_by_me;
  thanks.textContent = words.thanks.replace("{number}", left.answered_by_me ?? 0);
  window.clearTimeout(lookAgain);
  lookAgain = window.setTimeout(() => !queue.length && refill(), LOOK_AGAIN_MS);
}

// Show the first task of the queue, with what was begun on it.
async function show(begun) {
  const claim = queue[0];
  window.clearTimeout(lookAgain);
  panel("task");
  for (const name of ["lease", "conflict", "elsewhere", "problem"]) notice(name, false);
  const dimension = setup.dimensions[claim.task.dimension];
  part("dimension").textContent = dimension.label;
  part("hint").textContent = dimension.hint;
  part("sample").textContent = claim.task.sample;
  phrases(dimension.phrases);
  suggestions(claim.pre_annotations);
  letterButtons(claim.images.filter((image) => image.letter).map((image) => image.letter));
  draft?.close(false);
  draft = new Draft(`${project}/tasks/${claim.task.id}/draft`, `${stored}:draft:${claim.task.id}`, claim.draft);
  draft.addEventListener("saved", () => status(words.saved));
  draft.addEventListener("offline", () => setOnline(false));
  draft.addEventListener("signedout", askToSignIn);
  draft.addEventListener("conflict", (event) => conflict(event.detail.theirs));
  const kept = draft.kept;
  fill(begun ?? (kept && kept.revision >= draft.revision ? kept : claim.draft) ?? {});
  if (kept && kept.revision < draft.revision) conflict(claim.draft);
  spent = 0;
  since = document.hidden ? 0 : performance.now();
  shownOrder = claim.images.map((image) => image.letter).join("");
  root.focus({ preventScroll: true });
  await viewer.show(pictures(claim), { marks: viewerMarks });
  performance.mark("winnow:shown");
  root.dataset.task = claim.task.id;
  part("announce").textContent = `${dimension.label}: ${claim.task.sample}`;
}

function fill(said) {
  chosen = said.answer ? new Set(said.answer) : null;
  rationale.value = said.rationale ?? "";
  viewerMarks = said.marks ?? [];
  viewer.marks = viewerMarks;
  showChosen();
  countWords();
  showMarks();
}

function said() {
  return { answer: chosen ? [...chosen].sort() : null, rationale: rationale.value, marks: viewer.marks };
}

let viewerMarks = []; // what `show` is to draw

function changed() {
  draft?.change(said());
}

// ---- Answering ----

function letters() {
  return (queue[0]?.images ?? []).map((image) => image.letter).filter(Boolean).sort();
}

function toggle(letter) {
  if (!letters().includes(letter)) return;
  const now = new Set(chosen ?? []);
  if (!now.delete(letter)) now.add(letter);
  choose(now.size ? now : null);
}

function choose(now) {
  chosen = now;
  notice("problem", false);
  showChosen();
  changed();
}

function letterButtons(names) {
  const holder = part("letters");
  const sorted = [...names].sort();
  if (holder.childElementCount !== sorted.length) {
    holder.replaceChildren(
      ...sorted.map((name) => {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "choice";
        button.dataset.letter = name;
        button.textContent = name;
        button.setAttribute("aria-label", words.choice.replace("{letter}", name));
        return button;
      }),
    );
  }
}

function showChosen() {
  for (const button of part("letters").children) {
    button.setAttribute("aria-pressed", String(chosen?.has(button.dataset.letter) ?? false));
  }
  part("none").setAttribute("aria-pressed", String(chosen?.size === 0));
  part("all").setAttribute("aria-pressed", String(chosen?.size > 0 && chosen.size === letters().length));
  viewer.setChosen([...(chosen ?? [])]);
}

function submit() {
  const claim = queue[0];
  if (!claim) return;
  if (!chosen) return problem(words.choose, part("letters").firstElementChild);
  if (setup.rationale_required && !rationale.value.trim()) return problem(words.wanted, rationale);
  performance.mark("winnow:submit");
  const before = said();
  const key = crypto.randomUUID();
  outbox.add({
    key,
    task: claim.task.id,
    url: `${project}/tasks/${claim.task.id}/annotations`,
    body: {
      answer: before.answer,
      rationale: before.rationale,
      marks: before.marks,
      idempotency_key: key,
      seconds_spent: Math.round(timeSpent()) / 1000,
      shown_order: shownOrder === [...shownOrder].sort().join("") ? "" : shownOrder,
      hold: runsLow(queue.length - 1) ? setup.hold : 0,
    },
  });
  remember({ kind: "answer", key, claim, said: before });
  draft.close(true);
  draft = null;
  done += 1;
  part("count").textContent = words.count.replace("{number}", done);
  next();
  // The answer brings what is next, unless it came while more was waiting.
  outbox.flush().then(() => runsLow(queue.length) && refill());
}

// Whether so few tasks are in hand that it is time to ask for more: every other answer, which halves the requests' work.
function runsLow(inHand) {
  return inHand <= setup.hold / 2;
}

function next() {
  answered.add(queue.shift().lease_token);
  if (queue.length) show();
  else panel("loading");
}

// Another task that is held, and this one later: what was begun stays as its draft.
function nextTask() {
  if (queue.length < 2) return;
  draft?.save();
  queue[0].draft = { revision: draft.revision, ...said() };
  queue.push(queue.shift());
  show();
}

function problem(text, focus) {
  notice("problem", true, text);
  focus?.focus({ preventScroll: true });
}

// ---- Undo ----

function readHistory() {
  try {
    return JSON.parse(sessionStorage.getItem(`${stored}:history`) ?? "[]");
  } catch {
    return [];
  }
}

function remember(act) {
  history = [...history, act].slice(-HISTORY);
  writeHistory();
}

function writeHistory() {
  sessionStorage.setItem(`${stored}:history`, JSON.stringify(history));
  part("undo").disabled = !history.length;
}

async function undo() {
  const act = history.at(-1);
  if (!act) return;
  if (act.kind === "answer" && outbox.take(act.key)) {
    forget(act);
    done -= 1;
    return putBack(act.claim, act.said);
  }
  try {
    if (act.kind === "skip") {
      await call("POST", `${project}/tasks/${act.claim.task.id}/unskip`);
      forget(act);
      await refill();
      const place = queue.findIndex((claim) => claim.task.id === act.claim.task.id);
      if (place > 0) putBack(queue.splice(place, 1)[0], act.said);
      return;
    }
    if (!act.annotation) await outbox.flush();
    if (!act.annotation) return; // it could not be sent, and says so itself
    const claim = await call("POST", `${project}/annotations/${act.annotation}/withdraw`);
    forget(act);
    done -= 1;
    putBack(claim);
  } catch (error) {
    if (error instanceof Refused) {
      forget(act);
      notice("elsewhere", true, error.message);
    } else trouble(error);
  }
}

function forget(act) {
  history = history.filter((other) => other !== act);
  writeHistory();
  part("count").textContent = words.count.replace("{number}", Math.max(done, 0));
}

function putBack(claim, begun) {
  if (draft) {
    draft.save();
    queue[0].draft = { revision: draft.revision, ...said() };
  }
  answered.delete(claim.lease_token);
  queue = [claim, ...queue.filter((other) => other.task.id !== claim.task.id)];
  return show(begun);
}

outbox.addEventListener("sent", (event) => {
  const { entry, answer } = event.detail;
  const act = history.find((other) => other.key === entry.key);
  if (act) {
    act.annotation = answer.id;
    writeHistory();
  }
  otherTabs?.postMessage({ answered: entry.task });
  if (answer.next) take(answer.next);
  if (answer.standing === "surplus") notice("elsewhere", true, words.surplus);
});
outbox.addEventListener("refused", (event) => {
  const { entry, error } = event.detail;
  const act = history.find((other) => other.key === entry.key);
  if (act) forget(act);
  if (error.code === "already_answered") return notice("elsewhere", true, words.answered);
  // What was said is not lost: it is shown again with the reason.
  if (act) putBack(act.claim, act.said).then(() => problem(error.message, rationale));
  else notice("elsewhere", true, error.message);
});
outbox.addEventListener("signedout", askToSignIn);
outbox.addEventListener("change", () => showWaiting());
otherTabs?.addEventListener("message", (event) => {
  const task = event.data.answered;
  queue = queue.filter((claim, place) => place === 0 || claim.task.id !== task);
  if (queue[0]?.task.id !== task) return;
  draft?.close(true);
  draft = null;
  next();
  notice("elsewhere", true, words.answered);
});

// ---- Skip and flag ----

function openFlag(skip) {
  if (!queue.length) return;
  const dialog = part("flagging");
  dialog.dataset.skip = skip ? "yes" : "";
  part("flag-title").textContent = skip ? words.skipTitle : words.flagTitle;
  part("flag-send").textContent = skip ? words.skip : words.flag;
  dialog.querySelector("form").reset();
  dialog.showModal();
}

part("flagging").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const dialog = part("flagging");
  const claim = queue[0];
  const skip = Boolean(dialog.dataset.skip);
  const data = new FormData(event.target);
  dialog.close();
  try {
    await call("POST", `${project}/tasks/${claim.task.id}/flags`, {
      reason: data.get("reason"),
      note: data.get("note"),
      skip,
    });
  } catch (error) {
    return trouble(error);
  }
  if (!skip) return status(words.flagged);
  remember({ kind: "skip", key: crypto.randomUUID(), claim, said: said() });
  draft?.close(false);
  draft = null;
  next();
  refill();
});

// ---- Guidelines ----

const guides = new Map(); // dimension -> its guidelines as the server's HTML, there before they are wanted

function fetchGuidelines(dimension) {
  if (!guides.has(dimension)) {
    const text = fetch(setup.dimensions[dimension].guidelines).then((response) => (response.ok ? response.text() : null));
    guides.set(dimension, text.catch(() => null));
    text.then((found) => found ?? guides.delete(dimension), () => guides.delete(dimension));
  }
  return guides.get(dimension);
}

async function openGuidelines() {
  const dimension = queue[0]?.task.dimension ?? Object.keys(setup.dimensions)[0];
  const html = await fetchGuidelines(dimension);
  if (html === null) return setOnline(false);
  part("guidelines-text").innerHTML = html; // ours: Markdown rendered without raw HTML
  part("guidelines").showModal();
}

// ---- Rationale, phrases, marks ----

function phrases(list) {
  part("phrases").replaceChildren(
    ...list.map((phrase) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = phrase;
      return button;
    }),
  );
}

part("phrases").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { selectionStart: start, selectionEnd: end, value } = rationale;
  const gap = start && !/\s$/.test(value.slice(0, start)) ? " " : "";
  rationale.setRangeText(gap + button.textContent, start, end, "end");
  rationale.focus();
  rationale.dispatchEvent(new Event("input"));
});

function countWords() {
  const text = rationale.value.trim();
  // Chinese has no spaces between words: its characters are counted one by one.
  const number = (text.match(/[\p{Script=Han}]|[^\s\p{Script=Han}]+/gu) ?? []).length;
  part("words").textContent = words.words.replace("{number}", number);
}

rationale.addEventListener("input", () => {
  countWords();
  notice("problem", false);
  changed();
});

function showMarks() {
  part("marks").textContent = viewer.marks.length ? words.marks.replace("{number}", viewer.marks.length) : "";
}

function markMode(mode) {
  const wanted = part(mode).getAttribute("aria-pressed") === "true" ? null : mode;
  viewer.markMode(wanted);
  part("point").setAttribute("aria-pressed", String(wanted === "point"));
  part("box").setAttribute("aria-pressed", String(wanted === "box"));
}

part("viewer").addEventListener("markschange", () => {
  showMarks();
  changed();
});
part("viewer").addEventListener("choose", (event) => toggle(event.detail.letter));

function suggestions(said) {
  const holder = part("suggestions");
  holder.hidden = !said.length;
  part("suggestion-list").replaceChildren(
    ...said.map((one) => {
      const item = part("suggestion").content.cloneNode(true);
      item.querySelector("[data-who]").textContent = one.annotator;
      item.querySelector("[data-answer]").textContent = one.answer.join(", ") || words.none;
      item.querySelector("[data-caveat]").textContent = one.caveat;
      item.querySelector("[data-rationale]").textContent = one.rationale;
      return item;
    }),
  );
}

// ---- Saying what happens ----

function panel(name, detail = "") {
  root.dataset.state = name;
  for (const each of root.querySelectorAll("[data-panel]")) each.hidden = each.dataset.panel !== name;
  for (const each of root.querySelectorAll("[data-detail]")) each.textContent = detail;
  if (name !== "task") delete root.dataset.task;
}

function notice(name, shown, text) {
  const box = part(name);
  box.hidden = !shown;
  if (text) box.querySelector("[data-text]").textContent = text;
}

let statusTimer = 0;

function status(text) {
  part("status").textContent = text;
  window.clearTimeout(statusTimer);
  statusTimer = window.setTimeout(() => (part("status").textContent = ""), 3000);
}

function setOnline(now) {
  online = now;
  showWaiting();
}

function showWaiting() {
  const number = outbox.entries.length;
  const away = !online || !navigator.onLine;
  part("offline").hidden = !away;
  part("waiting").hidden = !number;
  part("waiting").textContent = words.waiting.replace("{number}", number);
}

function trouble(error) {
  if (error instanceof Offline) setOnline(false);
  else if (error instanceof SignedOut) askToSignIn();
  else notice("elsewhere", true, error.message);
}

function conflict(theirs) {
  const box = part("conflict");
  box.hidden = false;
  part("use-theirs").onclick = () => {
    draft.adopt(theirs?.revision ?? 0);
    draft.close(true);
    queue[0].draft = theirs;
    box.hidden = true;
    show();
  };
  part("keep-mine").onclick = () => {
    draft.adopt(theirs?.revision ?? 0);
    box.hidden = true;
    changed();
  };
}

for (const button of root.querySelectorAll("[data-dismiss]")) {
  button.addEventListener("click", () => (button.closest("[data-part]").hidden = true));
}

// ---- An ended session ----

function askToSignIn() {
  const dialog = part("signing-in");
  if (!dialog.open) dialog.showModal();
}

part("signing-in").addEventListener("cancel", (event) => event.preventDefault()); // nothing works without
part("signing-in").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const data = new FormData(event.target);
  const wrong = part("signing-in").querySelector("[data-wrong]");
  try {
    if (!(await signIn(setup.sign_in, data.get("username"), data.get("password")))) {
      wrong.hidden = false;
      return;
    }
    const me = await call("GET", `${setup.api}/me`);
    if (me.username !== setup.username) return window.location.reload(); // somebody else: their own page, their own drafts
  } catch (error) {
    return trouble(error);
  }
  wrong.hidden = true;
  event.target.reset();
  part("signing-in").close();
  draft?.save();
  await outbox.flush();
  await refill();
});

// ---- Time, leases, leaving ----

function timeSpent() {
  return spent + (since ? performance.now() - since : 0);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    spent = timeSpent();
    since = 0;
    draft?.save();
  } else since = performance.now();
});
window.setInterval(() => queue.length && refill(), setup.beat_seconds * 1000);
window.addEventListener("online", () => {
  setOnline(true);
  refill();
});
window.addEventListener("offline", () => setOnline(false));
window.addEventListener("pagehide", () => {
  const tokens = queue.filter((claim) => !outbox.holds(claim.task.id)).map((claim) => claim.lease_token);
  if (tokens.length) call("POST", `${project}/claims/release`, { lease_tokens: tokens }, { keepalive: true }).catch(() => {});
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload(); // back from the browser's cache: the leases were given back
});

// ---- Keys and buttons ----

const ACTIONS = {
  none: () => choose(chosen?.size === 0 ? null : new Set()),
  all: () => choose(chosen?.size === letters().length ? null : new Set(letters())),
  submit,
  skip: () => openFlag(true),
  flag: () => openFlag(false),
  undo,
  next_task: nextTask,
  rationale: () => rationale.focus(),
  difference: () => viewer.difference(),
  swipe: () => viewer.swipe(),
  focus_next: () => viewer.step(1),
  focus_previous: () => viewer.step(-1),
  fit: () => {
    viewer.fit();
    viewer.focus(null);
  },
  actual: () => viewer.actualSize(),
  zoom_in: () => viewer.zoomBy(1.25),
  zoom_out: () => viewer.zoomBy(0.8),
  point: () => markMode("point"),
  box: () => markMode("box"),
  guidelines: openGuidelines,
  help: () => part("help").showModal(),
};
const PANS = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [1, 0], ArrowRight: [-1, 0] };

function typing(target) {
  return target.matches("textarea, input, select");
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.altKey || event.metaKey) return;
  const inText = typing(event.target);
  if (event.ctrlKey) {
    if (event.key === "Enter") act(event, "submit");
    else if (event.key.toLowerCase() === "z" && !inText) act(event, "undo");
    return;
  }
  if (event.key === "Escape") {
    if (inText) root.focus({ preventScroll: true });
    else {
      viewer.focus(null);
      viewer.markMode(null);
      for (const name of ["point", "box"]) part(name).setAttribute("aria-pressed", "false");
    }
    return;
  }
  if (inText || event.target.closest("[role=slider]")) return;
  if (event.shiftKey && PANS[event.key]) {
    const [x, y] = PANS[event.key];
    viewer.panBy(x * PAN_STEP, y * PAN_STEP);
    return event.preventDefault();
  }
  const action = keys.action(event);
  if (!action) return;
  // Enter and Space press a button that has the focus, as everywhere.
  if ((event.key === "Enter" || event.key === " ") && event.target.closest("button, a, summary")) return;
  act(event, action);
});
document.addEventListener("keyup", (event) => {
  if (keys.action(event) === "flicker") viewer.flicker(false);
});
window.addEventListener("blur", () => viewer.flicker(false));

function act(event, action) {
  event.preventDefault();
  if (action.startsWith("letter:")) {
    if (!event.repeat) toggle(action.slice("letter:".length));
  } else if (action === "flicker") viewer.flicker(true);
  else if (!event.repeat || action.startsWith("zoom")) ACTIONS[action]?.();
}

root.addEventListener("click", (event) => {
  const letter = event.target.closest("[data-letter]");
  if (letter && part("letters").contains(letter)) return toggle(letter.dataset.letter);
  const button = event.target.closest("[data-do]");
  if (!button || button.disabled) return;
  const action = button.dataset.do;
  if (action === "look-again") refill();
  else ACTIONS[action]?.();
});
// Held like its key, for the mouse and a finger.
for (const kind of ["pointerdown", "pointerup", "pointerleave", "pointercancel"]) {
  part("flicker").addEventListener(kind, () => viewer.flicker(kind === "pointerdown"));
}
part("amplify").addEventListener("input", () => viewer.amplify(Number(part("amplify").value)));
part("viewer").addEventListener("viewchange", (event) => {
  for (const name of ["difference", "swipe"]) {
    part(name).setAttribute("aria-pressed", String(Boolean(event.detail?.[name])));
  }
  part("amplify").hidden = !event.detail?.difference;
});
form.addEventListener("submit", (event) => event.preventDefault());
for (const dialog of root.querySelectorAll("dialog[data-light]")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
for (const button of root.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const label of root.querySelectorAll("[data-key]")) label.textContent = keyName(keys.keys[label.dataset.key]);

writeHistory();
showWaiting();
panel("loading");
outbox.flush().then(refill);
