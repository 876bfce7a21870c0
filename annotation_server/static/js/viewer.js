export class Viewer {
  constructor(root, options) { this.root = root; this.strings = options.strings; this._marks = []; this.panes = new Map(); }
  get marks() { return this._marks; }
  set marks(m) { this._marks = m; }
  async show(pictures) {
    this.root.replaceChildren(...pictures.map((p) => { const f = document.createElement("figure"); const b = document.createElement("button"); b.type = "button"; b.textContent = p.letter || "O"; b.onclick = () => p.letter && this.root.dispatchEvent(new CustomEvent("choose", { detail: { letter: p.letter } })); const i = document.createElement("img"); i.src = p.preview; i.alt = p.letter ? this.strings.candidate.replace("{letter}", p.letter) : this.strings.original; i.width = 200; f.append(b, i); return f; }));
    await Promise.all([...this.root.querySelectorAll("img")].map((i) => i.decode().catch(() => {})));
  }
  preload(p) { for (const x of p) { const i = new Image(); i.src = x.preview; } }
  fit() {} actualSize() {} zoomBy() {} panBy() {} flicker(on) { this.root.dataset.flicker = on ? "yes" : ""; } difference() {} amplify() {} swipe() {} focus() {} step() {} markMode() {} setChosen() {} destroy() {}
}
