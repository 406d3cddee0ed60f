// Active time: the time between two activities counts, at most 90 seconds of it. A hidden page does not count.

export const IDLE_MS = 90_000;

export class ActiveTime {
  /** @param initialMs active time of earlier visits. */
  constructor(initialMs = 0, now = Date.now) {
    Object.assign(this, { totalMs: initialMs, now, last: null });
  }

  /** Count the time since the last activity. */
  recordActivity() {
    const timeMs = this.now();
    if (this.last !== null && timeMs > this.last) this.totalMs += Math.min(timeMs - this.last, IDLE_MS);
    this.last = timeMs;
  }

  /** Stop counting until the next activity. */
  pause() {
    if (this.last !== null) this.recordActivity();
    this.last = null;
  }

  /** Whether there was activity within some milliseconds. */
  wasActiveWithin(durationMs) {
    return this.last !== null && this.now() - this.last <= durationMs;
  }

  /** Record activity on a page: keys, pointer, scrolling. */
  start(page = document) {
    for (const event of ["keydown", "pointerdown", "pointermove", "scroll", "input"]) {
      page.addEventListener(event, () => !page.hidden && this.recordActivity(), { passive: true, capture: true });
    }
    page.addEventListener("visibilitychange", () => (page.hidden ? this.pause() : this.recordActivity()));
    this.recordActivity();
    return this;
  }
}
