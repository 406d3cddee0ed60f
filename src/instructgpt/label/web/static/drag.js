// Dragging a card to a tier by mouse, pen or finger. Fingers drag by the grip only, so that the page still scrolls.

const DRAG_THRESHOLD_PX = 6; // movement that turns a press into a drag
const SCROLL_EDGE_PX = 60; // distance from the window's edge within which it scrolls

export class CardDrag {
  /** @param onDrop called with (card, tier); the tier is null for the tray. */
  constructor(root, onDrop) {
    Object.assign(this, { root, onDrop, pressed: null, ghost: null, justDropped: false });
    root.addEventListener("pointerdown", (event) => this.onPointerDown(event));
    root.addEventListener("pointermove", (event) => this.onPointerMove(event));
    root.addEventListener("pointerup", (event) => this.onPointerUp(event));
    root.addEventListener("pointercancel", () => this.endDrag());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.endDrag());
  }

  onPointerDown(event) {
    const card = event.target.closest("[data-card]");
    if (!card || event.button !== 0 || event.target.closest("[data-full]")) return;
    if (event.pointerType !== "mouse" && !event.target.closest(".grip")) return;
    this.pressed = { card, x: event.clientX, y: event.clientY, id: event.pointerId };
  }

  onPointerMove(event) {
    if (!this.pressed || event.pointerId !== this.pressed.id) return;
    const { card, x, y } = this.pressed;
    if (!this.ghost) {
      if (Math.hypot(event.clientX - x, event.clientY - y) < DRAG_THRESHOLD_PX) return;
      this.startDrag(card, event.pointerId);
    }
    this.ghost.style.transform = `translate(${event.clientX - this.offset.x}px, ${event.clientY - this.offset.y}px)`;
    this.highlightZone(this.findDropZone(event));
    if (event.clientY < SCROLL_EDGE_PX) window.scrollBy(0, -12);
    else if (event.clientY > window.innerHeight - SCROLL_EDGE_PX) window.scrollBy(0, 12);
  }

  startDrag(card, pointerId) {
    const box = card.getBoundingClientRect();
    this.offset = { x: this.pressed.x - box.left, y: this.pressed.y - box.top };
    this.ghost = card.cloneNode(true);
    this.ghost.removeAttribute("data-card");
    this.ghost.classList.add("ghost");
    this.ghost.style.width = `${box.width}px`;
    document.body.append(this.ghost);
    card.classList.add("lifted");
    this.root.classList.add("dragging");
    this.root.setPointerCapture(pointerId);
  }

  findDropZone(event) {
    const zone = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-tier]");
    return zone && this.root.contains(zone) ? zone : null;
  }

  highlightZone(zone) {
    for (const element of this.root.querySelectorAll(".over")) if (element !== zone) element.classList.remove("over");
    zone?.classList.add("over");
  }

  onPointerUp(event) {
    if (!this.pressed || event.pointerId !== this.pressed.id) return;
    const dropped = this.ghost !== null, zone = dropped ? this.findDropZone(event) : null, { card } = this.pressed;
    this.endDrag();
    if (!dropped) return;
    // The browser sends a click after the pointer is released: it must not select the card.
    this.justDropped = true;
    setTimeout(() => (this.justDropped = false), 0);
    if (zone) this.onDrop(card.dataset.card, zone.dataset.tier === "tray" ? null : Number(zone.dataset.tier));
  }

  endDrag() {
    this.pressed?.card.classList.remove("lifted");
    this.ghost?.remove();
    this.highlightZone(null);
    this.root.classList.remove("dragging");
    this.ghost = this.pressed = null;
  }
}
