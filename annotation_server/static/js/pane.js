// One pane of the viewer: a caption, and a frame in which a picture lies at the place the view gives it, with the
// original on top where that is asked for (flicker, difference, swipe: viewer.css turns them on).
// Not here: what is asked and when (viewer.js), marks (marks.js), mouse and fingers (gestures.js).

export function make(tag, name, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (name) element.className = name;
  return element;
}

export function said(text, letter) {
  return (text ?? "").replace("{letter}", letter);
}

const MARGIN = 4; // CSS pixels of the surround on each side of a picture that fits

// How many of the preview's pixels may be missing before the full picture is worth loading.
const ENOUGH = 1.05;

// Whether a picture has transparent parts, where a preview below it would shine through.
function seeThrough(image) {
  const context = new OffscreenCanvas(16, 16).getContext("2d");
  context.drawImage(image, 0, 0, 16, 16);
  return context.getImageData(0, 0, 16, 16).data.some((value, index) => index % 4 === 3 && value < 255);
}

// A picture: its preview at once, and the full one over it once the zoom shows more pixels than the preview has.
class Layer {
  picture = null;
  ready = false;
  #turn = 0;
  #wanted = false;
  #fineReady = false;
  #alone = false; // the full picture without the preview below it
  #at = [0, 0, 1];
  #coarse = picture("sync"); // painted in the frame it is shown in: no pane is grey for a moment
  #fine = picture("async"); // decoded beside the page's own work; the preview below it shows until then

  constructor(name) {
    this.element = make("div", `viewer-layer ${name}`);
    this.element.append(this.#coarse, this.#fine);
  }

  // Resolves to "shown", "failed", or "replaced" when another picture was asked for meanwhile.
  async show(picture, name) {
    this.#coarse.alt = name;
    if (this.ready && picture?.full === this.picture?.full) {
      this.picture = picture;
      return "shown";
    }
    const turn = ++this.#turn;
    this.picture = picture;
    this.ready = this.#wanted = this.#fineReady = this.#alone = false;
    // Hidden at once: a browser goes on showing the picture before until the next one is there.
    for (const image of [this.#coarse, this.#fine]) {
      image.classList.remove("here");
      image.removeAttribute("src");
    }
    if (!picture?.full) return "shown";
    this.#coarse.src = picture.preview || picture.full;
    try {
      await this.#coarse.decode();
    } catch {
      return turn === this.#turn ? "failed" : "replaced";
    }
    if (turn !== this.#turn) return "replaced";
    this.ready = true;
    return "shown";
  }

  // Where it lies, and how many device pixels wide it is there. Resolves to false when the full picture failed.
  async place(left, top, scale, ratio) {
    if (!this.ready) return true;
    this.#at = [left, top, scale];
    if (!this.#alone) this.#put(this.#coarse);
    if (this.#fineReady) this.#put(this.#fine);
    const { full, preview, width } = this.picture;
    if (this.#wanted || !preview || preview === full) return true;
    if (width * scale * ratio <= this.#coarse.naturalWidth * ENOUGH) return true;
    this.#wanted = true;
    const turn = this.#turn;
    this.#fine.src = full;
    try {
      await this.#fine.decode();
    } catch {
      if (turn === this.#turn) this.#fine.removeAttribute("src");
      return turn !== this.#turn;
    }
    if (turn === this.#turn) {
      this.#fineReady = true;
      this.#put(this.#fine);
      // Else the preview stays below: it shows where a fast hand is ahead of what is drawn of the full picture.
      this.#alone = seeThrough(this.#coarse);
      this.#coarse.classList.toggle("here", !this.#alone);
    }
    return true;
  }

  retry() {
    this.#wanted = false;
  }

  #put(image) {
    // An image is laid out at its own size and scaled from there, so that the compositor keeps just its own pixels.
    const [left, top, scale] = this.#at;
    const across = (scale * this.picture.width) / image.naturalWidth;
    const down = (scale * this.picture.height) / image.naturalHeight;
    image.style.transform = `translate(${left}px, ${top}px) scale(${across}, ${down})`;
    image.classList.add("here");
  }
}

function picture(decoding) {
  return make("img", "", { alt: "", draggable: false, decoding });
}

export class Pane {
  picture = null;
  letter = "";
  frame = { width: 0, height: 0 };
  base = new Layer("viewer-base");
  over = new Layer("viewer-over");

  // `changed` is called when the pane wants to be placed again: its picture arrived.
  constructor(strings, changed) {
    this.strings = strings;
    this.changed = changed;
    this.element = make("section", "viewer-pane", { tabIndex: 0 });
    this.element.setAttribute("role", "group");
    this.caption = make("div", "viewer-caption");
    this.name = make("strong", "viewer-name");
    this.button = make("button", "viewer-letter", { type: "button" });
    this.slot = make("span", "viewer-slot");
    this.instead = make("span", "viewer-instead", { textContent: strings.original ?? "" });
    this.enlarge = make("button", "viewer-enlarge", { type: "button", textContent: "⤢" });
    this.caption.append(this.name, this.button, this.slot, this.instead, this.enlarge);

    this.area = make("div", "viewer-frame");
    const view = make("div", "viewer-view");
    view.append(this.base.element, this.over.element);
    this.marks = make("div", "viewer-marks");
    this.handle = make("div", "viewer-handle", { tabIndex: 0 });
    for (const [name, value] of [["role", "slider"], ["aria-valuemin", 0], ["aria-valuemax", 100]]) {
      this.handle.setAttribute(name, value);
    }
    this.handle.setAttribute("aria-label", strings.swipe ?? "");
    this.message = make("div", "viewer-message");
    this.text = make("p", "");
    this.retry = make("button", "", { type: "button", textContent: strings.retry ?? "↻" });
    this.message.append(this.text, this.retry);
    this.area.append(view, this.marks, this.handle, this.message);
    this.element.append(this.caption, this.area);
    this.retry.addEventListener("click", () => this.#again());
  }

  // `picture.caption`, an element of the page's own, stands in the caption's place; `picture.notice` in the picture's.
  show(picture, original) {
    const { strings } = this;
    this.picture = picture;
    this.letter = picture?.letter ?? "";
    this.element.hidden = !picture;
    this.element.classList.toggle("original", !this.letter);
    this.label = this.letter ? said(strings.candidate, this.letter) : (strings.original ?? "");
    this.element.setAttribute("aria-label", this.label);
    const choosable = Boolean(this.letter && strings.choose && !picture?.caption);
    this.name.hidden = choosable || Boolean(picture?.caption);
    this.name.textContent = this.letter || this.label;
    this.button.hidden = !choosable;
    this.button.textContent = this.letter;
    this.button.setAttribute("aria-label", said(strings.choose, this.letter));
    this.slot.replaceChildren(...(picture?.caption ? [picture.caption] : []));
    this.enlarge.hidden = !strings.enlarge;
    this.enlarge.setAttribute("aria-label", said(strings.enlarge, this.label));
    this.over.show(this.letter && original?.full ? original : null, "").then(this.changed);
    return this.#load();
  }

  async #load() {
    const { picture } = this;
    if (picture?.notice) this.#say("notice", picture.notice);
    else if (!this.base.ready || picture?.full !== this.base.picture?.full) this.#say("loading", this.strings.loading);
    const outcome = await this.base.show(picture?.full ? picture : null, this.label);
    if (outcome === "replaced" || picture !== this.picture) return;
    if (outcome === "failed") this.#say("failed", this.strings.failed);
    else if (!picture?.notice) this.#say("");
    this.changed();
  }

  #again() {
    if (this.element.dataset.state === "failed") return this.#load();
    this.#say("");
    this.base.retry();
    this.changed();
  }

  #say(state, text = "") {
    this.element.dataset.state = state;
    this.text.textContent = text;
    this.message.hidden = !state;
    this.retry.hidden = !state.endsWith("failed");
  }

  // Where a picture lies in the frame: at `zoom` times the size that fits, the view's spot in the middle.
  at(view, picture = this.picture) {
    const { width, height } = this.frame;
    const fit = Math.min((width - 2 * MARGIN) / picture.width, (height - 2 * MARGIN) / picture.height);
    const scale = Math.max(fit, 0.001) * view.zoom;
    return { scale, left: width / 2 - view.x * picture.width * scale, top: height / 2 - view.y * picture.height * scale };
  }

  // The fractions of the picture at a spot of the frame, and the spot of the frame at fractions of the picture.
  fractions(view, x, y) {
    const { scale, left, top } = this.at(view);
    return [(x - left) / (this.picture.width * scale), (y - top) / (this.picture.height * scale)];
  }

  spot(view, x, y) {
    const { scale, left, top } = this.at(view);
    return [left + x * this.picture.width * scale, top + y * this.picture.height * scale];
  }

  // Whole device pixels, so that 100 % is sharp.
  async place(view, ratio) {
    const whole = (length) => Math.round(length * ratio) / ratio;
    const placed = [this.base, this.over].filter((layer) => layer.picture).map((layer) => {
      const { scale, left, top } = this.at(view, layer.picture);
      return layer.place(whole(left), whole(top), scale, ratio);
    });
    const { picture } = this;
    if (!(await placed[0]) && picture === this.picture) this.#say("full-failed", this.strings.failed);
  }
}
