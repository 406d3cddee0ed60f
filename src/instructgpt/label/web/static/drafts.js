// Work in progress: first into this browser, then to the server. Nothing in here knows the page; what it needs is handed to it.
//
// Every change is in the browser's storage before anything else happens. Three seconds later it goes to the server, which
// wants to know the revision it follows. What was stored by another tab or another device is never overwritten: that is a conflict,
// and the labeler chooses. The browser's copy is dropped only when the server has it.

const PAUSE = 3000;
const PATIENCE = [3000, 5000, 10000, 20000, 30000];

/** Whether two versions hold the same work, however long it took and in whatever order its parts stand. */
export function same(one, other) {
  const plain = (value) => {
    if (Array.isArray(value)) return value.map(plain);
    if (value === null || typeof value !== "object") return value;
    return Object.keys(value).sort().filter((name) => name !== "active_ms").map((name) => [name, plain(value[name])]);
  };
  return JSON.stringify(plain(one)) === JSON.stringify(plain(other));
}

export class Drafts {
  /**
   * @param id the assignment.
   * @param rev the revision that the page was made from.
   * @param put async (rev, payload, keepalive) -> {rev}; raises an error with `status` and `detail`.
   * @param store like localStorage.
   * @param changed called with {state, rev, at, error?}: "clean", "waiting", "saving", "saved", "failed", "signed_out", "conflict".
   */
  constructor({ id, tab, rev, put, store, changed, now = Date.now, later = (work, pause) => setTimeout(work, pause) }) {
    Object.assign(this, { id, rev, put, store, changed, now, later });
    this.key = `draft:${id}:${tab}`;
    this.payload = null;
    this.fails = 0;
    this.timer = null;
    this.running = null;
    this.state = "clean";
    this.stopped = false;
  }

  /** Copies in this browser that no server has: [{key, rev, payload, at}], newest first. */
  left() {
    const found = [];
    for (let at = 0; at < this.store.length; at++) {
      const key = this.store.key(at);
      if (key?.startsWith(`draft:${this.id}:`)) found.push({ key, ...JSON.parse(this.store.getItem(key)) });
    }
    return found.sort((one, other) => other.at - one.at);
  }

  /** Something changed. */
  touch(payload) {
    if (this.stopped) return;
    this.payload = payload;
    this.keep();
    if (this.state === "conflict") return;
    if (this.state !== "failed" && this.state !== "signed_out") this.say("waiting");
    if (this.timer === null && this.running === null) this.plan(PAUSE);
  }

  /** Write the copy in this browser. A full storage is not the end: the server's copy follows. */
  keep() {
    try {
      this.store.setItem(this.key, JSON.stringify({ rev: this.rev, payload: this.payload, at: this.now() }));
    } catch {
      this.plan(0);
    }
  }

  plan(pause) {
    clearTimeout(this.timer);
    this.timer = this.later(() => {
      this.timer = null;
      this.flush();
    }, pause);
  }

  /** Send what is unsaved now. */
  flush(keepalive = false) {
    if (this.payload === null || this.state === "conflict" || this.stopped) return Promise.resolve();
    this.running ??= this.send(keepalive).finally(() => {
      this.running = null;
      if (this.payload !== null && this.timer === null && !["conflict", "signed_out"].includes(this.state)) {
        this.plan(this.fails === 0 ? PAUSE : PATIENCE[Math.min(this.fails, PATIENCE.length) - 1]);
      }
    });
    return this.running;
  }

  async send(keepalive) {
    clearTimeout(this.timer);
    this.timer = null;
    const sent = this.payload;
    this.say("saving");
    try {
      const { rev } = await this.put(this.rev, sent, keepalive);
      this.rev = rev;
      this.fails = 0;
      if (this.payload === sent) {
        this.payload = null;
        this.store.removeItem(this.key);
      } else this.keep();
      this.say("saved");
    } catch (error) {
      if (this.stopped) return;
      this.fails += 1;
      this.say({ 401: "signed_out", 409: "conflict" }[error.status] ?? "failed", error);
    }
  }

  /** After a new sign-in, or when the connection is back. */
  again() {
    if (this.payload === null) return Promise.resolve();
    if (this.state === "signed_out" || this.state === "failed") this.state = "waiting";
    return this.flush();
  }

  /** A conflict was settled in favour of what is on this page: it follows the revision that was in the way. */
  mine(rev, payload = this.payload) {
    this.rev = rev;
    this.say("waiting");
    this.payload = payload;
    this.keep();
    return this.flush();
  }

  /** Everything is handed in, or given up: the copies in this browser go. */
  done() {
    this.stopped = true;
    clearTimeout(this.timer);
    for (const { key } of this.left()) this.store.removeItem(key);
  }

  say(state, error = null) {
    this.state = state;
    this.changed({ state, rev: this.rev, at: this.now(), error });
  }
}
