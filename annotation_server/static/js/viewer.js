// The image viewer: an original and its candidates side by side, seen at one zoom and one spot. Wheel, pinch, drag and
// double click move all panes together; flicker, difference and swipe lay the original over every candidate.
//
// Words come from the page (annotations/_viewer_strings.html). What is given no word is not offered: no `choose`, no
// buttons to choose with; no `removeMark`, no taking marks away; no `enlarge`, no button for it.
//
// Events of the root: "choose" {letter}, "markschange", "viewchange" {percent, flicker, difference, amplify, swipe,
// focus}. Not here: keys, toolbars, what is chosen (the pages: workbench.js, panes.js).

import { listen } from "./gestures.js";
import { Marks } from "./marks.js";
import { make, Pane } from "./pane.js";

const CLOSEST = 16; // 1600 %
const PIXELATED = 3; // above 300 % a pixel is shown as the square it is
const AHEAD = 8; // tasks whose pictures are kept ready
const NARROW = 860; // CSS pixels of a tablet held upright: two columns
const GAP = 6; // CSS pixels between panes, also in viewer.css
const SWIPE_STEPS = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };

function between(low, value, high) {
  return Math.min(high, Math.max(low, value));
}

function painted() {
  return new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
}

export class Viewer {
  view = { zoom: 1, x: 0.5, y: 0.5 }; // times the size that fits; the spot in the middle, in fractions of the picture
  #panes = [];
  #pictures = [];
  #chosen = new Set();
  #focused = null;
  #flicker = false;
  #overlay = ""; // "difference" or "swipe"
  #amplify = 4;
  #divider = 0.5;
  #size = { width: 0, height: 0 };
  #caption = 0;
  #frame = 0;
  #ahead = new Map();
  #marks;
  #watched;

  constructor(root, { strings = {} } = {}) {
    this.root = root;
    this.strings = strings;
    root.classList.add("viewer");
    this.stage = make("div", "viewer-stage");
    this.bar = make("div", "viewer-bar");
    this.status = make("output", "viewer-zoom");
    this.bar.append(this.status);
    root.replaceChildren(this.stage, this.bar);
    this.#marks = new Marks(strings, () => this.#tell("markschange"), () => this.#redraw());
    const viewer = this;
    listen(this.stage, {
      marks: this.#marks,
      paneAt: (element) => this.#panes.find((pane) => pane.area.contains(element) && pane.picture?.full),
      zoomAt: (...spot) => this.#zoomAt(...spot),
      panBy: (...distance) => this.panBy(...distance),
      toggle: (pane, x, y) => (this.#isFit() ? this.#zoomAt(pane, x, y, this.#actual() / this.view.zoom) : this.fit()),
      get view() {
        return viewer.view;
      },
    });
    this.#watched = new ResizeObserver(() => {
      this.#size = { width: this.stage.clientWidth, height: this.stage.clientHeight };
      this.#layout();
    });
    this.#watched.observe(this.stage);
  }

  destroy() {
    this.#watched.disconnect();
    cancelAnimationFrame(this.#frame);
    this.#ahead.clear();
    this.root.replaceChildren();
    this.root.classList.remove("viewer");
  }

  // ---- Pictures ----

  async show(pictures, { marks = [] } = {}) {
    const urls = (some) => some.map((one) => `${one.letter}=${one.full}`).join();
    if (urls(pictures) !== urls(this.#pictures)) {
      // Every sample begins the same way; the next dimension of the same sample goes on where one was looking.
      this.view = { zoom: 1, x: 0.5, y: 0.5 };
      this.#focused = null;
      this.#overlay = "";
    }
    this.#flicker = false;
    this.#pictures = pictures;
    while (this.#panes.length < pictures.length) this.#addPane();
    this.#marks.list = marks;
    const original = pictures.find((picture) => !picture.letter);
    const shown = this.#panes.map((pane, index) => pane.show(pictures[index] ?? null, original));
    this.setChosen(this.#chosen);
    this.#layout();
    await Promise.all(shown);
    await painted();
  }

  preload(pictures) {
    const key = pictures.map((picture) => picture.full).join();
    const images = this.#ahead.get(key) ?? pictures.filter((picture) => picture.full).map((picture) => {
      const image = new Image();
      image.src = picture.preview || picture.full;
      image.decode().catch(() => {}); // the pane says so if it is still missing when it is wanted
      return image;
    });
    this.#ahead.delete(key); // asked for again: the youngest now
    this.#ahead.set(key, images);
    if (this.#ahead.size > AHEAD) this.#ahead.delete(this.#ahead.keys().next().value);
  }

  #addPane() {
    const pane = new Pane(this.strings, () => this.#redraw());
    pane.button.addEventListener("click", () => this.#tell("choose", { letter: pane.letter }));
    pane.enlarge.addEventListener("click", () => this.focus(this.#focused === null ? pane.letter : null));
    pane.handle.addEventListener("keydown", (event) => {
      if (!(event.key in SWIPE_STEPS)) return;
      event.preventDefault();
      this.#divide(this.#divider + SWIPE_STEPS[event.key]);
    });
    pane.handle.addEventListener("pointerdown", (event) => pane.handle.setPointerCapture(event.pointerId));
    pane.handle.addEventListener("pointermove", (event) => {
      if (!pane.handle.hasPointerCapture(event.pointerId)) return;
      const box = pane.area.getBoundingClientRect();
      this.#divide((event.clientX - box.left) / box.width);
    });
    this.#panes.push(pane);
    this.stage.append(pane.element);
  }

  setChosen(letters) {
    this.#chosen = new Set(letters);
    for (const pane of this.#panes) {
      const chosen = Boolean(pane.letter) && this.#chosen.has(pane.letter);
      pane.element.classList.toggle("chosen", chosen);
      pane.button.setAttribute("aria-pressed", String(chosen));
    }
  }

  // ---- Zoom and place ----

  fit() {
    this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.#redraw();
  }

  // One pixel of the picture on one pixel of the screen.
  actualSize() {
    this.zoomBy(this.#actual() / this.view.zoom);
  }

  zoomBy(factor) {
    const pane = this.#reference();
    if (pane) this.#zoomAt(pane, pane.frame.width / 2, pane.frame.height / 2, factor);
  }

  panBy(dx, dy, pane = this.#reference()) {
    if (!pane) return;
    const { scale } = pane.at(this.view);
    this.view.x -= dx / (pane.picture.width * scale);
    this.view.y -= dy / (pane.picture.height * scale);
    this.#redraw();
  }

  // 100 % is measured on the picture with the most pixels, so that it hides none of any other's.
  #reference() {
    const there = this.#visible().filter((pane) => pane.picture.full && pane.frame.width > 0);
    const pixels = ({ picture }) => picture.width * picture.height;
    return there.reduce((most, pane) => (most && pixels(most) >= pixels(pane) ? most : pane), null);
  }

  #actual() {
    const pane = this.#reference();
    return pane ? 1 / devicePixelRatio / pane.at({ zoom: 1, x: 0, y: 0 }).scale : 1;
  }

  #isFit() {
    return Math.abs(this.view.zoom - 1) < 0.001;
  }

  #zoomAt(pane, x, y, factor) {
    const [across, down] = pane.fractions(this.view, x, y);
    const actual = this.#actual();
    this.view.zoom = between(Math.min(1, actual), this.view.zoom * factor, Math.max(1, CLOSEST * actual));
    const [nowX, nowY] = pane.spot(this.view, across, down);
    this.panBy(x - nowX, y - nowY, pane);
  }

  // A picture always covers the place where it fits, so that zooming out ends there without a jump.
  #hold() {
    const least = 0.5 / Math.max(1, this.view.zoom);
    this.view.x = between(least, this.view.x, 1 - least);
    this.view.y = between(least, this.view.y, 1 - least);
  }

  // ---- The original over the candidates ----

  flicker(on) {
    this.#flicker = on;
    this.#redraw();
  }

  difference(on = this.#overlay !== "difference") {
    this.#lay("difference", on);
  }

  swipe(on = this.#overlay !== "swipe") {
    this.#lay("swipe", on);
  }

  amplify(times) {
    this.#amplify = between(1, times, 64);
    this.#redraw();
  }

  #lay(overlay, on) {
    if (on) this.#overlay = overlay;
    else if (this.#overlay === overlay) this.#overlay = "";
    this.#redraw();
  }

  #divide(share) {
    this.#divider = between(0, share, 1);
    this.#redraw();
  }

  // ---- One pane alone ----

  focus(letter) {
    this.#focused = this.#pictures.some((picture) => picture.letter === letter) ? letter : null;
    this.#layout();
  }

  step(by) {
    const letters = this.#pictures.map((picture) => picture.letter);
    if (!letters.length) return;
    const before = this.#focused === null ? (by > 0 ? -1 : 0) : letters.indexOf(this.#focused);
    this.focus(letters[(before + by + letters.length) % letters.length]);
  }

  #visible() {
    return this.#panes.filter((pane) => pane.picture && (this.#focused === null || pane.letter === this.#focused));
  }

  // ---- Marks ----

  get marks() {
    return this.#marks.list;
  }

  set marks(marks) {
    this.#marks.list = marks;
  }

  markMode(mode) {
    this.#marks.mode = mode;
    this.root.classList.toggle("marking", Boolean(mode));
  }

  // ---- Layout and drawing ----

  // As many columns as make the pictures largest. The only place that measures; a frame of zooming or panning does not.
  #layout() {
    const visible = this.#visible();
    const { width, height } = this.#size;
    for (const pane of this.#panes) {
      pane.element.hidden = !visible.includes(pane);
      pane.enlarge.setAttribute("aria-pressed", String(this.#focused !== null));
    }
    if (!visible.length || !width || !height) return;
    const scale = this.#isFit() ? null : this.#reference() && this.#reference().at(this.view).scale;
    this.#caption = visible[0].caption.offsetHeight;
    const aspect = Math.max(...visible.map(({ picture }) => picture.width)) / Math.max(...visible.map(({ picture }) => picture.height));
    let best = null;
    const most = width <= NARROW ? Math.min(2, visible.length) : visible.length;
    for (let columns = width <= NARROW ? most : 1; columns <= most; columns++) {
      const rows = Math.ceil(visible.length / columns);
      const across = Math.floor((width - GAP * (columns + 1)) / columns);
      const down = Math.floor((height - GAP * (rows + 1)) / rows);
      const fits = Math.min(across / aspect, down - this.#caption);
      if (!best || fits > best.fits) best = { columns, rows, across, down, fits };
    }
    this.stage.style.gridTemplate = `repeat(${best.rows}, ${best.down}px) / repeat(${best.columns}, ${best.across}px)`;
    for (const pane of visible) pane.frame = { width: best.across, height: Math.max(1, best.down - this.#caption) };
    // What fitted fits again; who looked closer keeps the size of what was seen.
    if (scale) this.view.zoom *= scale / this.#reference().at(this.view).scale;
    this.#redraw();
  }

  #redraw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    const reference = this.#reference();
    this.#hold();
    const percent = reference ? reference.at(this.view).scale * devicePixelRatio : 0;
    const overlay = this.#flicker ? "flicker" : this.#overlay;
    this.root.classList.toggle("pixelated", percent > PIXELATED);
    this.root.classList.toggle("zoomed", !this.#isFit());
    this.root.dataset.overlay = overlay;
    this.root.style.setProperty("--amplify", this.#amplify);
    this.root.style.setProperty("--divider", `${this.#divider * 100}%`);
    for (const pane of this.#visible()) {
      if (!pane.picture.full || !pane.frame.width) continue;
      pane.place(this.view, devicePixelRatio);
      this.#marks.draw(pane, this.view);
      pane.handle.setAttribute("aria-valuenow", Math.round(this.#divider * 100));
    }
    const detail = {
      percent: Math.round(percent * 100),
      flicker: this.#flicker,
      difference: this.#overlay === "difference",
      amplify: this.#amplify,
      swipe: this.#overlay === "swipe",
      focus: this.#focused,
    };
    const said = reference ? `${detail.percent} %` : "";
    if (this.status.value !== said) this.status.value = said;
    this.#tell("viewchange", detail);
  }

  #tell(name, detail = null) {
    this.root.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
