// The board on screen. Three equal ways to the same states: tap (pick, then place), drag, and keys alone.

import * as board from "./board.js";
import { Drag } from "./drag.js";
import { make, t } from "./words.js";

export class BoardView {
  /**
   * @param cards [{id, letter, line}] in the order of their letters.
   * @param facts (id) -> {rating, labels}: what stage A says of a completion.
   * @param changed called after every placing; @param looked with the id of the card in hand or in focus;
   * @param read opens a completion in full; @param compare opens two side by side; @param say announces a sentence.
   */
  constructor(root, cards, { facts, changed, looked, read, compare, say, help }) {
    Object.assign(this, { root, cards, facts, changed, looked, read, compare, say });
    this.byId = new Map(cards.map((card) => [card.id, card]));
    this.state = board.start(cards.map((card) => card.id));
    this.order = make("p", { class: "order" });
    this.tray = make("div", { class: "tray", "data-tier": "tray" });
    this.tiers = make("ol", { class: "tiers" });
    this.hint = make("div", { class: "alert contradictions", hidden: true });
    this.undoButton = make("button", { type: "button", class: "button small", onclick: () => this.undo() }, t("board.undo"), " ", make("kbd", {}, "U"));
    const compareButton = make("button", { type: "button", class: "button small", onclick: () => this.compareNow() }, t("board.compare"), " ", make("kbd", {}, cards.length > 2 ? "Shift C" : "C"));
    const helpButton = make("button", { type: "button", class: "button quiet small", onclick: help }, t("board.keys"), " ", make("kbd", {}, "?"));
    root.append(this.order, make("div", { class: "places-board" }, this.tray, this.tiers), this.hint, make("div", { class: "row" }, this.undoButton, compareButton, helpButton));
    root.addEventListener("click", (event) => this.click(event));
    root.addEventListener("focusin", (event) => {
      const id = event.target.closest("[data-card]")?.dataset.card;
      if (id) this.looked(id);
    });
    this.drag = new Drag(root, (card, tier) => this.next(tier === null ? board.lift(this.state, card) : board.place(this.state, tier, card)));
    this.draw();
  }

  letter = (id) => this.byId.get(id).letter;

  /** Begin from tiers of a draft. */
  restore(tiers) {
    this.state = board.start(this.state.cards, tiers);
    this.draw();
  }

  /** Go to a state, and say what happened. */
  next(state) {
    const placed = state.tiers !== this.state.tiers;
    const picked = state.picked !== this.state.picked && state.picked;
    this.state = state;
    this.draw();
    if (picked) this.looked(picked);
    if (picked && !placed) this.say(t("board.picked", { letter: this.letter(picked) }));
    if (placed) {
      this.say(this.sentence());
      this.changed();
    }
  }

  sentence() {
    const left = board.tray(this.state).length;
    const order = board.order(this.state, this.letter) || t("board.nothing");
    return left ? `${order}. ${t("board.left", { count: left })}` : `${order}. ${t("board.complete")}`;
  }

  undo() {
    this.next(board.undo(this.state));
  }

  compareNow() {
    const seen = this.state.picked ?? document.activeElement?.closest?.("[data-card]")?.dataset.card ?? this.cards[0].id;
    const at = this.cards.findIndex((card) => card.id === seen);
    this.compare(seen, this.cards[(at + 1) % this.cards.length].id);
  }

  click(event) {
    if (this.drag.justDropped) return;
    const full = event.target.closest("[data-full]");
    if (full) return this.read(full.dataset.full);
    const card = event.target.closest("[data-card]");
    if (card) return this.next(board.pick(this.state, card.dataset.card));
    const zone = event.target.closest("[data-tier]");
    if (!zone || this.state.picked === null) return undefined;
    return this.next(zone.dataset.tier === "tray" ? board.lift(this.state) : board.place(this.state, Number(zone.dataset.tier)));
  }

  /** Whether a key was for the board. */
  key(event) {
    const letter = event.key.toUpperCase();
    const named = letter.length === 1 && this.cards.find((card) => card.letter === letter);
    const focused = event.target.closest?.("[data-card]")?.dataset.card;
    if (event.key === "c" || event.key === "C") {
      // C is a card of its own where there are so many; with Shift, or without such a card, it compares.
      if (!named || event.shiftKey) return this.compareNow() ?? true;
    }
    if (named) {
      this.next(board.pick(board.pick(this.state, null), named.id));
      this.focus(named.id);
    } else if (/^[1-9]$/.test(event.key)) this.next(board.place(this.state, Number(event.key) - 1));
    else if (event.key === "0") this.next(board.lift(this.state));
    else if (event.key === "=") this.next(board.tie(this.state));
    else if (letter === "U") this.undo();
    else if (event.key === "Escape" && this.state.picked) this.next(board.pick(this.state, null));
    else if (event.key === "Enter" && (focused || this.state.picked)) this.read(focused ?? this.state.picked);
    else if (["ArrowUp", "ArrowDown"].includes(event.key) && this.state.picked) {
      this.next(board.move(this.state, event.key === "ArrowUp" ? -1 : 1));
    } else if (["ArrowLeft", "ArrowRight"].includes(event.key) && focused) this.step(focused, event.key === "ArrowLeft" ? -1 : 1);
    else return false;
    return true;
  }

  step(from, by) {
    const cards = [...this.root.querySelectorAll("[data-card]")];
    const at = cards.findIndex((card) => card.dataset.card === from);
    cards[(at + by + cards.length) % cards.length].querySelector(".take").focus();
  }

  focus(id) {
    this.root.querySelector(`[data-card="${CSS.escape(id)}"] .take`)?.focus();
  }

  draw() {
    const focused = this.root.contains(document.activeElement) && document.activeElement.closest("[data-card]")?.dataset.card;
    const { state } = this, left = board.tray(state), inHand = state.picked && this.letter(state.picked);
    this.root.classList.toggle("holding", state.picked !== null);
    const order = board.order(state, this.letter);
    this.order.replaceChildren(make("span", { class: "muted" }, t("board.order")), " ", make("strong", {}, order || "–"));
    const name = left.length ? t("board.tray", { count: left.length }) : t("board.tray_empty");
    this.tray.replaceChildren(make("h3", { class: "muted small" }, name), make("div", { class: "cards" }, ...left.map((id) => this.card(id))));
    this.tray.classList.toggle("empty-tray", left.length === 0);
    this.tiers.replaceChildren(...state.tiers.map((cards, tier) => this.tier(cards, tier, inHand)));
    const wrong = board.contradictions(state, (id) => this.facts(id).rating);
    this.hint.hidden = wrong.length === 0;
    this.hint.replaceChildren(t("board.contradiction"), " ", wrong.slice(0, 4).map(([above, below]) => this.pair(above, below)).join("; "));
    this.undoButton.disabled = state.past.length === 0;
    if (focused) this.focus(focused);
  }

  pair(above, below) {
    const [a, b] = [this.facts(above).rating, this.facts(below).rating];
    return t("board.pair", { above: this.letter(above), below: this.letter(below), a, b });
  }

  tier(cards, tier, inHand) {
    const letters = cards.map(this.letter).join(", ");
    const label = inHand ? t("board.place", { letter: inHand, tier: tier + 1 }) : t("board.holds", { tier: tier + 1, letters: letters || "–" });
    const side = tier === 0 ? t("board.best") : tier === this.cards.length - 1 ? t("board.worst") : "";
    const slot = make("button", { type: "button", class: "slot", "aria-label": label }, make("strong", {}, `${tier + 1}`), make("span", { class: "small" }, side));
    return make(
      "li", { class: cards.length ? "tier" : "tier vacant", "data-tier": `${tier}` }, slot,
      make("div", { class: "cards" }, ...cards.map((id) => this.card(id))),
    );
  }

  card(id) {
    const { letter, line } = this.byId.get(id), { rating, labels } = this.facts(id);
    const chips = [];
    if (rating !== null) chips.push(make("span", { class: "chip" }, t("board.rating", { rating })));
    chips.push(...labels.slice(0, 2).map((label) => make("span", { class: "chip wait" }, label)));
    if (labels.length > 2) chips.push(make("span", { class: "chip wait" }, `+${labels.length - 2}`));
    const held = this.state.picked === id;
    return make(
      "div", { class: held ? "card held" : "card", "data-card": id },
      make("span", { class: "grip", "aria-hidden": "true" }, "⠿"),
      make(
        "button", { type: "button", class: "take", "aria-pressed": `${held}` },
        make("span", { class: "letter" }, letter), make("span", { class: "line", dir: "auto" }, line), make("span", { class: "chips" }, ...chips),
      ),
      make("button", { type: "button", class: "full", "data-full": id, "aria-label": t("board.read", { letter }), title: t("board.read", { letter }) }, "⤢"),
    );
  }
}
