// The pages that show a task's pictures beside what was said about them (task.html, adjudicate.html): makes a viewer of
// the server's own panes, with a toolbar; lets a form's checkboxes outline what is chosen, and shows the marks that the page lists beside its answers.
// Not here: seeing (viewer.js), annotating (workbench.js).

import { Viewer } from "./viewer.js";

for (const root of document.querySelectorAll("[data-panes]")) begin(root);

function begin(root) {
  const pictures = [...root.querySelectorAll(".pane")].map((pane) => ({
    letter: pane.dataset.letter,
    full: pane.dataset.full,
    preview: pane.dataset.preview,
    width: Number(pane.dataset.width),
    height: Number(pane.dataset.height),
    notice: pane.dataset.notice,
    caption: pane.querySelector("label.letter"),
  }));
  const boxes = pictures.flatMap(({ caption }) => (caption ? [caption.querySelector("input")] : []));
  const tools = root.querySelector("[data-tools]");
  const viewer = new Viewer(root, { strings: { ...root.dataset } });
  root.classList.remove("panes");
  tools.hidden = false;
  viewer.bar.prepend(tools);

  const tool = (name) => tools.querySelector(`[data-do=${name}]`);
  const actions = {
    fit: () => viewer.fit(),
    actual: () => viewer.actualSize(),
    out: () => viewer.zoomBy(0.8),
    in: () => viewer.zoomBy(1.25),
    previous: () => viewer.step(-1),
    next: () => viewer.step(1),
    all: () => viewer.focus(null),
    difference: () => viewer.difference(),
    swipe: () => viewer.swipe(),
  };
  tools.addEventListener("click", (event) => actions[event.target.closest("[data-do]")?.dataset.do]?.());
  tool("amplify").addEventListener("input", (event) => viewer.amplify(Number(event.target.value)));
  // Held: the original for as long as the button, or Enter or Space on it, is down.
  const flicker = tool("flicker");
  const hold = (event) => ["Enter", " "].includes(event.key);
  for (const kind of ["pointerdown", "pointerup", "pointerleave", "pointercancel", "blur"]) {
    flicker.addEventListener(kind, () => viewer.flicker(kind === "pointerdown"));
  }
  flicker.addEventListener("keydown", (event) => hold(event) && viewer.flicker(true));
  flicker.addEventListener("keyup", (event) => hold(event) && viewer.flicker(false));
  root.addEventListener("viewchange", ({ detail }) => {
    for (const name of ["difference", "swipe", "flicker"]) tool(name).setAttribute("aria-pressed", String(detail[name]));
    tool("amplify").closest("label").hidden = !detail.difference;
    tool("all").hidden = detail.focus === null;
  });

  const choose = () => viewer.setChosen(boxes.filter((box) => box.checked).map((box) => box.value));
  // In the next frame, when a box outside ("none") and what it cleared have settled.
  if (boxes.length) document.addEventListener("change", () => requestAnimationFrame(choose));
  viewer.show(pictures, { marks: listed() });
  choose();
}

// The marks of every answer on the page, numbered through, in its list and on the pictures alike.
function listed() {
  return [...document.querySelectorAll("[data-marks] li")].map((item, index) => {
    item.dataset.number = index + 1;
    const { letter, ...place } = item.dataset;
    const mark = { letter, x: Number(place.x), y: Number(place.y) };
    return place.w === undefined ? mark : { ...mark, w: Number(place.w), h: Number(place.h) };
  });
}
