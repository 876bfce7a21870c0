// Which key does what on the annotating page: the defaults, a person's own, and the words for them.
// Letters a to h belong to candidates. Not here: what an action does (workbench.js).

export const DEFAULTS = {
  none: "n",
  all: "l",
  submit: "Enter",
  skip: "s",
  flag: "t",
  undo: "u",
  next_task: "j",
  rationale: "r",
  flicker: " ",
  difference: "i",
  swipe: "w",
  focus_next: "ArrowRight",
  focus_previous: "ArrowLeft",
  fit: "0",
  actual: "1",
  zoom_in: "+",
  zoom_out: "-",
  point: "p",
  box: "q",
  guidelines: "m",
  help: "?",
};

const NAMES = { " ": "Space", ArrowRight: "→", ArrowLeft: "←", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc" };

export function keyName(key) {
  return NAMES[key] ?? (key.length === 1 ? key.toUpperCase() : key);
}

export class Keys {
  constructor(own) {
    this.keys = { ...DEFAULTS, ...own };
    this.actions = new Map(Object.entries(this.keys).map(([action, key]) => [key.toLowerCase(), action]));
  }

  // The action of a key press, or "letter:A" for a candidate's letter, or null.
  action(event) {
    const key = event.key.toLowerCase();
    if (/^[a-h]$/.test(key)) return `letter:${key.toUpperCase()}`;
    if (key === "=" && this.keys.zoom_in === "+") return "zoom_in"; // the same key without Shift
    return this.actions.get(key) ?? null;
  }
}
