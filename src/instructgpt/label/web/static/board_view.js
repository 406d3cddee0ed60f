// The board on screen. Three equivalent ways to use it: tap (select, then place), drag, keys.

import * as board from "./board.js";
import { CardDrag } from "./drag.js";
import { createElement, t } from "./i18n.js";

export class BoardView {
  /**
   * @param cards [{id, letter, line}] in the order of their letters.
   * @param getFacts (id) -> {rating, labels} of the rating stage.
   * @param onChange called after every placement. @param onFocusCard called with the id of the selected or focused card.
   * @param onRead opens a completion. @param onCompare opens two. @param onHelp opens the list of keys.
   * @param announce announces a sentence to screen readers.
   */
  constructor(root, cards, { getFacts, onChange, onFocusCard, onRead, onCompare, announce, onHelp }) {
    Object.assign(this, { root, cards, getFacts, onChange, onFocusCard, onRead, onCompare, announce });
    this.byId = new Map(cards.map((card) => [card.id, card]));
    this.state = board.createBoard(cards.map((card) => card.id));
    this.order = createElement("p", { class: "order" });
    this.tray = createElement("div", { class: "tray", "data-tier": "tray" });
    this.tiers = createElement("ol", { class: "tiers" });
    this.hint = createElement("div", { class: "alert contradictions", hidden: true });
    this.undoButton = createButton("board.undo", "U", () => this.undo());
    const compareButton = createButton("board.compare", cards.length > 2 ? "Shift C" : "C", () => this.openComparison());
    const helpButton = createButton("board.keys", "?", onHelp, "quiet");
    const places = createElement("div", { class: "places-board" }, this.tray, this.tiers);
    const buttons = createElement("div", { class: "row" }, this.undoButton, compareButton, helpButton);
    root.append(this.order, places, this.hint, buttons);
    root.addEventListener("click", (event) => this.onClick(event));
    root.addEventListener("focusin", (event) => {
      const id = event.target.closest("[data-card]")?.dataset.card;
      if (id) this.onFocusCard(id);
    });
    this.drag = new CardDrag(root, (card, tier) => {
      this.setState(tier === null ? board.returnToTray(this.state, card) : board.placeCard(this.state, tier, card));
    });
    this.render();
  }

  letter = (id) => this.byId.get(id).letter;

  /** Start again with the tiers of a draft. */
  restore(tiers) {
    this.state = board.createBoard(this.state.cards, tiers);
    this.render();
  }

  /** Render a new state, and announce what changed. */
  setState(state) {
    const wasPlaced = state.tiers !== this.state.tiers;
    const newlySelected = state.selected !== this.state.selected && state.selected;
    this.state = state;
    this.render();
    if (newlySelected) this.onFocusCard(newlySelected);
    if (newlySelected && !wasPlaced) this.announce(t("board.picked", { letter: this.letter(newlySelected) }));
    if (wasPlaced) {
      this.announce(this.describeState());
      this.onChange();
    }
  }

  describeState() {
    const count = board.unplacedCards(this.state).length;
    const order = board.formatOrder(this.state, this.letter) || t("board.nothing");
    return count ? `${order}. ${t("board.left", { count })}` : `${order}. ${t("board.complete")}`;
  }

  undo() {
    this.setState(board.undoLast(this.state));
  }

  openComparison() {
    const cardId = this.state.selected ?? document.activeElement?.closest?.("[data-card]")?.dataset.card ?? this.cards[0].id;
    const index = this.cards.findIndex((card) => card.id === cardId);
    this.onCompare(cardId, this.cards[(index + 1) % this.cards.length].id);
  }

  onClick(event) {
    if (this.drag.justDropped) return;
    const openButton = event.target.closest("[data-full]");
    if (openButton) return this.onRead(openButton.dataset.full);
    const card = event.target.closest("[data-card]");
    if (card) return this.setState(board.toggleSelected(this.state, card.dataset.card));
    const tierZone = event.target.closest("[data-tier]");
    if (!tierZone || this.state.selected === null) return undefined;
    const { tier } = tierZone.dataset;
    return this.setState(tier === "tray" ? board.returnToTray(this.state) : board.placeCard(this.state, Number(tier)));
  }

  /** Handle a key. -> whether it was one of the board's. */
  handleKey(event) {
    const { state } = this, letter = event.key.toUpperCase();
    const cardForKey = letter.length === 1 && this.cards.find((card) => card.letter === letter);
    const focusedId = event.target.closest?.("[data-card]")?.dataset.card;
    // With three or more cards C selects a card; Shift C compares.
    if (letter === "C" && (!cardForKey || event.shiftKey)) this.openComparison();
    else if (cardForKey) {
      this.setState(board.toggleSelected(board.toggleSelected(state, null), cardForKey.id));
      this.focusCard(cardForKey.id);
    } else if (/^[1-9]$/.test(event.key)) this.setState(board.placeCard(state, Number(event.key) - 1));
    else if (event.key === "0") this.setState(board.returnToTray(state));
    else if (event.key === "=") this.setState(board.tieWithLast(state));
    else if (letter === "U") this.undo();
    else if (event.key === "Escape" && state.selected) this.setState(board.toggleSelected(state, null));
    else if (event.key === "Enter" && (focusedId || state.selected)) this.onRead(focusedId ?? state.selected);
    else if (["ArrowUp", "ArrowDown"].includes(event.key) && state.selected) {
      this.setState(board.moveSelected(state, event.key === "ArrowUp" ? -1 : 1));
    } else if (["ArrowLeft", "ArrowRight"].includes(event.key) && focusedId) {
      this.focusNeighbor(focusedId, event.key === "ArrowLeft" ? -1 : 1);
    } else return false;
    return true;
  }

  focusNeighbor(id, offset) {
    const cards = [...this.root.querySelectorAll("[data-card]")];
    const index = cards.findIndex((card) => card.dataset.card === id);
    cards[(index + offset + cards.length) % cards.length].querySelector(".take").focus();
  }

  focusCard(id) {
    this.root.querySelector(`[data-card="${CSS.escape(id)}"] .take`)?.focus();
  }

  render() {
    // Rendering replaces the cards, so the focus has to be set again.
    const focusedId = this.root.contains(document.activeElement) && document.activeElement.closest("[data-card]")?.dataset.card;
    const { state } = this, unplaced = board.unplacedCards(state), selectedLetter = state.selected && this.letter(state.selected);
    this.root.classList.toggle("holding", state.selected !== null);
    const order = createElement("strong", {}, board.formatOrder(state, this.letter) || "–");
    this.order.replaceChildren(createElement("span", { class: "muted" }, t("board.order")), " ", order);
    const trayTitle = unplaced.length ? t("board.tray", { count: unplaced.length }) : t("board.tray_empty");
    const trayCards = createElement("div", { class: "cards" }, ...unplaced.map((id) => this.renderCard(id)));
    this.tray.replaceChildren(createElement("h3", { class: "muted small" }, trayTitle), trayCards);
    this.tray.classList.toggle("empty-tray", unplaced.length === 0);
    this.tiers.replaceChildren(...state.tiers.map((cards, tier) => this.renderTier(cards, tier, selectedLetter)));
    const contradictions = board.findContradictions(state, (id) => this.getFacts(id).rating);
    const examples = contradictions.slice(0, 4).map(([above, below]) => this.formatContradiction(above, below)).join("; ");
    this.hint.hidden = contradictions.length === 0;
    this.hint.replaceChildren(t("board.contradiction"), " ", examples);
    this.undoButton.disabled = state.history.length === 0;
    if (focusedId) this.focusCard(focusedId);
  }

  formatContradiction(above, below) {
    const [a, b] = [this.getFacts(above).rating, this.getFacts(below).rating];
    return t("board.pair", { above: this.letter(above), below: this.letter(below), a, b });
  }

  renderTier(cards, tier, selectedLetter) {
    const number = tier + 1, letters = cards.map(this.letter).join(", ") || "–";
    const label = selectedLetter ? t("board.place", { letter: selectedLetter, tier: number }) : t("board.holds", { tier: number, letters });
    const side = tier === 0 ? t("board.best") : number === this.cards.length ? t("board.worst") : "";
    const slot = createElement(
      "button", { type: "button", class: "slot", "aria-label": label },
      createElement("strong", {}, `${number}`), createElement("span", { class: "small" }, side),
    );
    return createElement(
      "li", { class: cards.length ? "tier" : "tier vacant", "data-tier": `${tier}` }, slot,
      createElement("div", { class: "cards" }, ...cards.map((id) => this.renderCard(id))),
    );
  }

  renderCard(id) {
    const { letter, line } = this.byId.get(id), { rating, labels } = this.getFacts(id);
    const chips = rating === null ? [] : [createElement("span", { class: "chip" }, t("board.rating", { rating }))];
    const names = labels.length > 2 ? [...labels.slice(0, 2), `+${labels.length - 2}`] : labels;
    chips.push(...names.map((name) => createElement("span", { class: "chip wait" }, name)));
    const isHeld = this.state.selected === id, readLabel = t("board.read", { letter });
    return createElement(
      "div", { class: isHeld ? "card held" : "card", "data-card": id },
      createElement("span", { class: "grip", "aria-hidden": "true" }, "⠿"),
      createElement(
        "button", { type: "button", class: "take", "aria-pressed": `${isHeld}` },
        createElement("span", { class: "letter" }, letter), createElement("span", { class: "line", dir: "auto" }, line),
        createElement("span", { class: "chips" }, ...chips),
      ),
      createElement("button", { type: "button", class: "full", "data-full": id, "aria-label": readLabel, title: readLabel }, "⤢"),
    );
  }
}

function createButton(key, shortcut, onclick, className = "") {
  const attributes = { type: "button", class: `button small ${className}`.trim(), onclick };
  return createElement("button", attributes, t(key), " ", createElement("kbd", {}, shortcut));
}
