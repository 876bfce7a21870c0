// Marks on candidates, as points or boxes in fractions of the candidate's picture: kept, drawn, taken away by a click.
// Not here: what they are worth and where they go (annotations/marks.py says what a mark is).

import { make, said } from "./pane.js";

const DECIMALS = 10_000;
const SMALLEST = 4; // CSS pixels: what is dragged less was meant as a click

function fraction(value) {
  return Math.round(Math.min(1, Math.max(0, value)) * DECIMALS) / DECIMALS;
}

export class Marks {
  mode = null;
  #list = [];
  #elements = new Map();
  #drawing = null;

  // Without a word for taking one away (strings.removeMark) the marks are somebody else's, and only shown.
  constructor(strings, changed, redraw) {
    this.strings = strings;
    this.changed = changed;
    this.redraw = redraw;
  }

  get list() {
    return this.#list.filter((mark) => mark !== this.#drawing).map((mark) => ({ ...mark }));
  }

  set list(marks) {
    this.#drawing = null;
    this.#list = marks.map((mark) => ({ ...mark }));
    for (const element of this.#elements.values()) element.remove();
    this.#elements.clear();
    this.redraw();
  }

  // A click at fractions of a pane's picture. Beside the picture there is nothing to mark.
  point(pane, x, y) {
    if (x < 0 || x > 1 || y < 0 || y > 1) return;
    this.#list.push({ letter: pane.letter, x: fraction(x), y: fraction(y) });
    this.changed();
    this.redraw();
  }

  // A box is drawn from one corner to the other, by as many calls as the hand moves.
  drag(pane, [x0, y0], [x1, y1]) {
    if (!this.#drawing) this.#list.push((this.#drawing = { letter: pane.letter }));
    const [left, right] = [fraction(Math.min(x0, x1)), fraction(Math.max(x0, x1))];
    const [top, bottom] = [fraction(Math.min(y0, y1)), fraction(Math.max(y0, y1))];
    Object.assign(this.#drawing, { x: left, y: top, w: fraction(right - left), h: fraction(bottom - top) });
    this.redraw();
  }

  drop(pane, view) {
    const mark = this.#drawing;
    if (!mark) return;
    this.#drawing = null;
    const [left, top] = pane.spot(view, mark.x, mark.y);
    const [right, bottom] = pane.spot(view, mark.x + mark.w, mark.y + mark.h);
    if (right - left < SMALLEST || bottom - top < SMALLEST) this.#forget(mark);
    else this.changed();
  }

  cancel() {
    if (this.#drawing) this.#forget(this.#drawing);
    this.#drawing = null;
  }

  #forget(mark) {
    this.#list = this.#list.filter((other) => other !== mark);
    this.#elements.get(mark)?.remove();
    this.#elements.delete(mark);
    this.redraw();
  }

  // Lay the marks of a pane over its picture.
  draw(pane, view) {
    this.#list.forEach((mark, index) => {
      if (mark.letter !== pane.letter) return;
      const element = this.#element(mark, index + 1);
      if (element.parentNode !== pane.marks) pane.marks.append(element);
      const [left, top] = pane.spot(view, mark.x, mark.y);
      element.style.transform = `translate(${left}px, ${top}px)`;
      if (mark.w === undefined || mark.w === null) return;
      const [right, bottom] = pane.spot(view, mark.x + mark.w, mark.y + mark.h);
      element.style.width = `${right - left}px`;
      element.style.height = `${bottom - top}px`;
    });
  }

  #element(mark, number) {
    let element = this.#elements.get(mark);
    if (!element) {
      const removable = Boolean(this.strings.removeMark);
      element = make(removable ? "button" : "div", "viewer-mark", removable ? { type: "button" } : {});
      element.classList.toggle("box", mark.w !== undefined && mark.w !== null);
      element.append(make("span", "viewer-tag"));
      if (mark.note) element.title = mark.note;
      if (removable) {
        element.addEventListener("click", () => {
          this.#forget(mark);
          this.changed();
        });
      }
      this.#elements.set(mark, element);
    }
    element.firstChild.textContent = number;
    if (this.strings.removeMark) {
      element.setAttribute("aria-label", said(this.strings.removeMark, mark.letter).replace("{number}", number));
    }
    return element;
  }
}
