// Submissions on their way: kept in this browser until the server has them, sent in order, each under its own key, so
// that sending one twice records it once. A closed tab, a lost network or an ended session loses nothing.
// Not here: drafts (drafts.js), what a submission is (workbench.js).

import { Offline, SignedOut } from "./api.js";

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 30_000;

export class Outbox extends EventTarget {
  // `send(entry)` resolves with the server's answer, or rejects as api.js says. Events: "change", and "sent", "refused"
  // ({entry, answer | error}), "signedout".
  constructor(name, send) {
    super();
    this.name = name;
    this.send = send;
    this.flushing = null;
    this.pause = FIRST_PAUSE_MS;
    this.timer = 0;
    window.addEventListener("online", () => this.flush());
    // Another tab of the same person shares the store.
    window.addEventListener("storage", (event) => event.key === this.name && this.#changed());
  }

  get entries() {
    try {
      return JSON.parse(localStorage.getItem(this.name) ?? "[]");
    } catch {
      return [];
    }
  }

  #write(entries) {
    if (entries.length) localStorage.setItem(this.name, JSON.stringify(entries));
    else localStorage.removeItem(this.name);
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new CustomEvent("change"));
  }

  add(entry) {
    this.#write([...this.entries, entry]);
  }

  // Take an entry out again; false when it is gone (sent) or just being sent.
  take(key) {
    const entries = this.entries;
    if (this.sending === key || !entries.some((entry) => entry.key === key)) return false;
    this.#write(entries.filter((entry) => entry.key !== key));
    return true;
  }

  holds(task) {
    return this.entries.some((entry) => entry.task === task);
  }

  // Send what is there, one after the other. Resolves when nothing is left or nothing more can be done for now.
  flush() {
    this.flushing ??= this.#flush().finally(() => (this.flushing = null));
    return this.flushing;
  }

  async #flush() {
    window.clearTimeout(this.timer);
    let entry;
    while ((entry = this.entries[0])) {
      this.sending = entry.key;
      try {
        const answer = await this.send(entry);
        this.#drop(entry);
        this.pause = FIRST_PAUSE_MS;
        this.dispatchEvent(new CustomEvent("sent", { detail: { entry, answer } }));
      } catch (error) {
        if (error instanceof Offline) {
          this.timer = window.setTimeout(() => this.flush(), this.pause);
          this.pause = Math.min(this.pause * 2, LONGEST_PAUSE_MS);
          this.#changed();
          return;
        }
        if (error instanceof SignedOut) {
          this.dispatchEvent(new CustomEvent("signedout"));
          return;
        }
        this.#drop(entry);
        this.dispatchEvent(new CustomEvent("refused", { detail: { entry, error } }));
      } finally {
        this.sending = null;
      }
    }
  }

  #drop(entry) {
    this.#write(this.entries.filter((other) => other.key !== entry.key));
  }
}
