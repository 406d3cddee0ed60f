// Time at work: what lies between two signs of life counts, unless it is long. A hidden page does not count.

export const IDLE = 90_000;

export class ActiveTime {
  /** @param already milliseconds of earlier visits. */
  constructor(already = 0, now = Date.now) {
    Object.assign(this, { total: already, now, last: null });
  }

  /** A sign of life: a key, a pointer, scrolling. */
  beat() {
    const at = this.now();
    if (this.last !== null && at > this.last) this.total += Math.min(at - this.last, IDLE);
    this.last = at;
  }

  /** The page was hidden: nothing counts until the next sign. */
  pause() {
    if (this.last !== null) this.beat();
    this.last = null;
  }

  /** Whether there was a sign of life within some milliseconds. */
  within(pause) {
    return this.last !== null && this.now() - this.last <= pause;
  }

  /** Let the time run with what happens on a page. */
  watch(page = document) {
    for (const event of ["keydown", "pointerdown", "pointermove", "scroll", "input"]) {
      page.addEventListener(event, () => !page.hidden && this.beat(), { passive: true, capture: true });
    }
    page.addEventListener("visibilitychange", () => (page.hidden ? this.pause() : this.beat()));
    this.beat();
    return this;
  }
}
