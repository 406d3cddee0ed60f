// Dragging a card to a tier, by mouse, pen or finger. A finger drags by the grip, so that the rest of the page still scrolls.

const SLOP = 6; // pixels before a press is a drag
const EDGE = 60; // pixels from the window's edge in which it scrolls

export class Drag {
  /** @param drop called with (card, tier); the tier is null for the tray. */
  constructor(root, drop) {
    Object.assign(this, { root, drop, press: null, ghost: null, justDropped: false });
    root.addEventListener("pointerdown", (event) => this.down(event));
    root.addEventListener("pointermove", (event) => this.move(event));
    root.addEventListener("pointerup", (event) => this.up(event));
    root.addEventListener("pointercancel", () => this.end());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.end());
  }

  down(event) {
    const card = event.target.closest("[data-card]");
    if (!card || event.button !== 0 || event.target.closest("[data-full]")) return;
    if (event.pointerType !== "mouse" && !event.target.closest(".grip")) return;
    this.press = { card, x: event.clientX, y: event.clientY, id: event.pointerId };
  }

  move(event) {
    if (!this.press || event.pointerId !== this.press.id) return;
    const { card, x, y } = this.press;
    if (!this.ghost) {
      if (Math.hypot(event.clientX - x, event.clientY - y) < SLOP) return;
      this.lift(card, event.pointerId);
    }
    this.ghost.style.transform = `translate(${event.clientX - this.offset.x}px, ${event.clientY - this.offset.y}px)`;
    this.over(this.zone(event));
    if (event.clientY < EDGE) window.scrollBy(0, -12);
    else if (event.clientY > window.innerHeight - EDGE) window.scrollBy(0, 12);
  }

  lift(card, pointer) {
    const box = card.getBoundingClientRect();
    this.offset = { x: this.press.x - box.left, y: this.press.y - box.top };
    this.ghost = card.cloneNode(true);
    this.ghost.removeAttribute("data-card");
    this.ghost.classList.add("ghost");
    this.ghost.style.width = `${box.width}px`;
    document.body.append(this.ghost);
    card.classList.add("lifted");
    this.root.classList.add("dragging");
    this.root.setPointerCapture(pointer);
  }

  zone(event) {
    const zone = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-tier]");
    return zone && this.root.contains(zone) ? zone : null;
  }

  over(zone) {
    for (const each of this.root.querySelectorAll(".over")) if (each !== zone) each.classList.remove("over");
    zone?.classList.add("over");
  }

  up(event) {
    if (!this.press || event.pointerId !== this.press.id) return;
    const dropped = this.ghost !== null, zone = dropped ? this.zone(event) : null, { card } = this.press;
    this.end();
    if (!dropped) return;
    // The click that follows a drag is not a click.
    this.justDropped = true;
    setTimeout(() => (this.justDropped = false), 0);
    if (zone) this.drop(card.dataset.card, zone.dataset.tier === "tray" ? null : Number(zone.dataset.tier));
  }

  end() {
    this.press?.card.classList.remove("lifted");
    this.ghost?.remove();
    this.over(null);
    this.root.classList.remove("dragging");
    this.ghost = this.press = null;
  }
}
