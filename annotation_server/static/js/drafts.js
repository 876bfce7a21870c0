// What is being said about a task, kept while it is said: on the server soon after each change, in this browser at once.
// The server counts revisions; when another tab or machine has written a newer one, the page asks which shall stand.
// Not here: the form it is read from (workbench.js), finished answers (outbox.js).

import { Offline, Refused, SignedOut, call } from "./api.js";

const QUIET_MS = 600; // after the last keystroke
const RETRY_MS = 5_000;

export class Draft extends EventTarget {
  // Events: "saved", "offline", "conflict" ({theirs}), "signedout".
  constructor(url, name, known) {
    super();
    this.url = url;
    this.name = name;
    this.revision = known?.revision ?? 0;
    this.timer = 0;
    this.closed = false;
    this.said = null; // what has not reached the server yet
  }

  // What this browser kept and the server does not have: {revision, answer, rationale, marks} or null.
  get kept() {
    try {
      return JSON.parse(localStorage.getItem(this.name) ?? "null");
    } catch {
      return null;
    }
  }

  change(said) {
    if (this.closed) return;
    this.said = said;
    localStorage.setItem(this.name, JSON.stringify({ revision: this.revision, ...said }));
    window.clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.save(), QUIET_MS);
  }

  async save() {
    window.clearTimeout(this.timer);
    if (this.closed || !this.said || this.saving) return;
    const said = this.said;
    this.saving = true;
    try {
      const answer = await call("PUT", this.url, { revision: this.revision, ...said });
      this.revision = answer.revision;
      if (this.said === said) {
        this.said = null;
        if (!this.closed) localStorage.removeItem(this.name);
      }
      this.#tell("saved");
    } catch (error) {
      if (this.closed) return;
      if (error instanceof Offline) {
        this.timer = window.setTimeout(() => this.save(), RETRY_MS);
        this.#tell("offline");
      } else if (error instanceof SignedOut) {
        this.#tell("signedout");
      } else if (error instanceof Refused && error.code === "draft_conflict") {
        this.#tell("conflict", { theirs: await call("GET", this.url).catch(() => null) });
      }
      // Any other refusal (the task was answered meanwhile) shows itself on submitting.
    } finally {
      this.saving = false;
      if (!this.closed && this.said && this.said !== said) this.change(this.said);
    }
  }

  // Go on from a revision that stands on the server: what is said next replaces it.
  adopt(revision) {
    this.revision = revision;
  }

  // The task is submitted or left: nothing is saved any more. `forget` also drops what this browser kept.
  close(forget) {
    this.closed = true;
    window.clearTimeout(this.timer);
    if (forget) localStorage.removeItem(this.name);
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }
}
