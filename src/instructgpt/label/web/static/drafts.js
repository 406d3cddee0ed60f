// Saves work in progress: first in this browser, then on the server. Knows nothing of the page; dependencies are passed in.
//
// Every change goes into localStorage at once. Three seconds later it goes to the server with the revision it follows. The server
// refuses a save that follows an older revision (another tab or device saved since): a conflict, which the labeler resolves.
// The local copy is removed only when the server has it.

const SAVE_DELAY_MS = 3000;
const RETRY_DELAYS_MS = [3000, 5000, 10000, 20000, 30000];

export class DraftSaver {
  /**
   * @param id the assignment.
   * @param rev the revision that the page was rendered from.
   * @param saveDraft async (rev, fields, keepalive) -> {rev}; raises an error with `status`.
   * @param storage like localStorage.
   * @param onStateChange called with {state, rev, timeMs, error?}; states: "clean", "waiting", "saving", "saved", "failed",
   *   "signed_out", "conflict".
   */
  constructor({ id, tab, rev, saveDraft, storage, onStateChange, now = Date.now, setTimer = (work, delay) => setTimeout(work, delay) }) {
    Object.assign(this, { id, rev, saveDraft, storage, onStateChange, now, setTimer });
    this.key = `draft:${id}:${tab}`;
    this.fields = null; // unsaved fields; null when the server has everything
    this.failureCount = 0;
    this.timer = null;
    this.pendingSave = null;
    this.state = "clean";
    this.stopped = false;
  }

  /** Copies in this browser that no server has: [{key, rev, fields, timeMs}], newest first. */
  localCopies() {
    const copies = [];
    for (let index = 0; index < this.storage.length; index++) {
      const key = this.storage.key(index);
      if (key?.startsWith(`draft:${this.id}:`)) copies.push({ key, ...JSON.parse(this.storage.getItem(key)) });
    }
    return copies.sort((a, b) => b.timeMs - a.timeMs);
  }

  /** Save changed fields, later. */
  update(fields) {
    if (this.stopped) return;
    this.fields = fields;
    this.saveLocally();
    if (this.state === "conflict") return;
    if (this.state !== "failed" && this.state !== "signed_out") this.setState("waiting");
    if (this.timer === null && this.pendingSave === null) this.scheduleFlush(SAVE_DELAY_MS);
  }

  saveLocally() {
    try {
      this.storage.setItem(this.key, JSON.stringify({ rev: this.rev, fields: this.fields, timeMs: this.now() }));
    } catch {
      this.scheduleFlush(0); // localStorage is full: the server is the only copy
    }
  }

  scheduleFlush(delay) {
    clearTimeout(this.timer);
    this.timer = this.setTimer(() => {
      this.timer = null;
      this.flush();
    }, delay);
  }

  /** Send unsaved fields now. One request runs at a time; what changed meanwhile is sent afterwards. */
  flush(keepalive = false) {
    if (this.fields === null || this.state === "conflict" || this.stopped) return Promise.resolve();
    this.pendingSave ??= this.send(keepalive).finally(() => {
      this.pendingSave = null;
      if (this.fields !== null && this.timer === null && !["conflict", "signed_out"].includes(this.state)) {
        this.scheduleFlush(this.failureCount === 0 ? SAVE_DELAY_MS : RETRY_DELAYS_MS[Math.min(this.failureCount, RETRY_DELAYS_MS.length) - 1]);
      }
    });
    return this.pendingSave;
  }

  async send(keepalive) {
    clearTimeout(this.timer);
    this.timer = null;
    const sentFields = this.fields;
    this.setState("saving");
    try {
      const { rev } = await this.saveDraft(this.rev, sentFields, keepalive);
      this.rev = rev;
      this.failureCount = 0;
      if (this.fields === sentFields) {
        this.fields = null;
        this.storage.removeItem(this.key);
      } else this.saveLocally();
      this.setState(this.fields === null ? "saved" : "waiting");
    } catch (error) {
      if (this.stopped) return;
      this.failureCount += 1;
      this.setState({ 401: "signed_out", 409: "conflict" }[error.status] ?? "failed", error);
    }
  }

  /** Try again, after a new sign-in or when the connection is back. */
  retry() {
    if (this.fields === null) return Promise.resolve();
    if (this.state === "signed_out" || this.state === "failed") this.state = "waiting";
    return this.flush();
  }

  /** Resolve a conflict: `fields` follow the server's revision `rev` and replace it. */
  overwriteServer(rev, fields = this.fields) {
    this.rev = rev;
    this.setState("waiting");
    this.fields = fields;
    this.saveLocally();
    return this.flush();
  }

  /** Stop, and remove the copies in this browser: the work is submitted or given up. */
  discardLocal() {
    this.stopped = true;
    clearTimeout(this.timer);
    for (const { key } of this.localCopies()) this.storage.removeItem(key);
  }

  setState(state, error = null) {
    this.state = state;
    this.onStateChange({ state, rev: this.rev, timeMs: this.now(), error });
  }
}
