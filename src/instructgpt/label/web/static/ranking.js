// A ranking task: the stage in which each completion is rated, then the board on which all are ranked.

import { isComplete, unplacedCards } from "./board.js";
import { BoardView } from "./board_view.js";
import { openComparison, openCompletion } from "./compare.js";
import { isDialogOpen } from "./dialogs.js";
import { createElement, t } from "./i18n.js";
import { describeOpenQuestions, listOpenQuestions, updateConditions } from "./questions.js";
import { RatingStage, ratingOf } from "./rating.js";

export class RankingTask {
  /** @param onChange called after everything that changed the form. @param onSubmit submits it. */
  constructor(form, { onChange, onSubmit }) {
    Object.assign(this, { form, onSubmit });
    this.onChange = (message) => (this.updateCounts(), message && this.announce(message), onChange());
    this.sections = [...form.querySelectorAll("section.rate")];
    this.cards = this.sections.map((section) => this.readCard(section));
    this.bodies = new Map(this.sections.map((section) => [section.dataset.id, section.querySelector(".body")]));
    this.live = createElement("p", { class: "unseen", role: "status", "aria-live": "polite", id: "live" });
    form.append(this.live);
    const onShow = (id) => this.showCompletion(id), getBody = (id) => this.bodies.get(id);
    this.ratingStage = new RatingStage(form, { onChange: this.onChange, onShow, onFinished: () => this.showStage("rank") });
    this.board = new BoardView(form.querySelector("#board"), this.cards, {
      getFacts: (id) => this.getFacts(id), onChange: () => this.writeToForm(), onFocusCard: onShow,
      announce: (text) => this.announce(text), onHelp: () => this.openKeyHelp(),
      onRead: (id) => openCompletion(this.cards, id, getBody),
      onCompare: (leftId, rightId) => openComparison(this.cards, leftId, rightId, getBody),
    });
    for (const button of form.querySelectorAll("[data-stage]")) button.addEventListener("click", () => this.showStage(button.dataset.stage));
    this.keysEnabled = document.getElementById("keys-on");
    this.keysEnabled.checked = localStorage.getItem("keys") !== "off";
    this.keysEnabled.addEventListener("change", () => localStorage.setItem("keys", this.keysEnabled.checked ? "on" : "off"));
    document.addEventListener("keydown", (event) => this.handleKey(event));
    form.addEventListener("input", () => this.updateCounts());
    this.loadFromForm();
    this.showStage(this.countRated() === this.ids.length ? "rank" : "rate", false);
  }

  get ids() {
    return this.cards.map((card) => card.id);
  }

  readCard(section) {
    const { id, letter } = section.dataset;
    return { id, letter, line: this.tierSelect(id).parentElement.querySelector(".line").textContent };
  }

  /** Return what the rating stage says about a completion: its rating and the labels answered with yes. */
  getFacts(id) {
    const section = this.sections.find(({ dataset }) => dataset.id === id);
    const yes = [...section.querySelectorAll('.ask input[value="yes"]:checked')];
    return { rating: ratingOf(this.form, id), labels: yes.map((input) => input.closest(".ask").firstElementChild.dataset.short) };
  }

  /** Set the board from the form, after a draft was filled in. */
  loadFromForm() {
    const tiers = this.ids.map(() => []);
    for (const id of this.ids) {
      const tier = Number(this.tierSelect(id).value);
      if (tier) tiers[tier - 1].push(id);
    }
    this.board.restore(tiers);
    this.updateCounts();
  }

  tierSelect(id) {
    return this.form.querySelector(`select[data-id="${CSS.escape(id)}"]`);
  }

  /** Write the board into the form: drafts and submissions are read from the form only. */
  writeToForm() {
    for (const id of this.ids) {
      const tier = this.board.state.tiers.findIndex((cards) => cards.includes(id));
      this.tierSelect(id).value = tier < 0 ? "" : `${tier + 1}`;
    }
    this.onChange();
  }

  updateCounts() {
    const total = this.ids.length, unplaced = unplacedCards(this.board?.state ?? { cards: [], tiers: [] });
    updateConditions(this.form);
    this.openQuestions = listOpenQuestions(this.form, this.sections);
    this.showOpenQuestions();
    document.getElementById("rated").textContent = `${this.countRated()}/${total}`;
    document.getElementById("placed").textContent = `${total - unplaced.length}/${total}`;
    const letters = unplaced.map((id) => this.cards.find((card) => card.id === id).letter).join(", ");
    document.getElementById("missing").textContent = letters ? t("rank.missing", { letters }) : "";
    document.getElementById("submit").setAttribute("aria-disabled", `${letters !== "" || this.requiredQuestions.length > 0}`);
  }

  get requiredQuestions() {
    return this.openQuestions.filter(({ isRequired }) => isRequired);
  }

  /** Count the completions that are rated and have no required question open. */
  countRated() {
    const isOpen = (section) => this.openQuestions.some((entry) => entry.section === section && (entry.isRequired || entry.text === null));
    return this.sections.filter((section) => !isOpen(section)).length;
  }

  /** List the open questions beside the button that hands in. */
  showOpenQuestions() {
    const box = document.getElementById("unanswered"), required = this.requiredQuestions;
    const optional = this.openQuestions.filter(({ isRequired }) => !isRequired);
    const line = (key, questions, className) =>
      createElement("p", { class: className }, createElement("strong", {}, t(key)), " ", describeOpenQuestions(questions));
    box.replaceChildren(
      ...(required.length ? [line("rank.open_required", required, "alert")] : []),
      ...(optional.length ? [line("rank.open_optional", optional, "muted small")] : []),
    );
    box.hidden = !box.childElementCount;
    if (box.hidden) return;
    const button = createElement("button", { type: "button", class: "button small", id: "go-open" }, t("rank.go_open"));
    button.addEventListener("click", () => this.goToOpenQuestion());
    box.append(createElement("div", { class: "row" }, button));
  }

  /** Show the first required question that is open, or the first open one. */
  goToOpenQuestion() {
    const question = this.requiredQuestions[0] ?? this.openQuestions[0];
    if (!question) return;
    const index = question.section ? this.sections.indexOf(question.section) : this.ratingStage.index;
    this.showStage("rate", false);
    this.ratingStage.showIndex(index, { focus: false });
    const input = question.element.querySelector("input");
    input.focus({ preventScroll: true });
    question.element.scrollIntoView({ block: "center" });
  }

  /** Whether every completion has a rank. */
  get isComplete() {
    return isComplete(this.board.state);
  }

  showStage(name, focus = true) {
    this.form.dataset.stage = name;
    for (const button of this.form.querySelectorAll(".stage")) button.setAttribute("aria-pressed", `${button.dataset.stage === name}`);
    for (const stageName of ["rate", "rank"]) document.getElementById(stageName).hidden = stageName !== name;
    if (name === "rate") return this.ratingStage.showIndex(this.ratingStage.index, { focus });
    this.board.render();
    if (focus) {
      this.form.querySelector("#board .take")?.focus({ preventScroll: true });
      window.scrollTo({ top: 0 });
    }
    return this.showCompletion(this.ids[this.ratingStage.index]);
  }

  /** Show a completion beside the prompt, by moving its text there; the one shown before moves back. */
  showCompletion(id) {
    const { letter } = this.cards.find((card) => card.id === id), readerBox = document.getElementById("reader-text");
    if (readerBox.firstElementChild === this.bodies.get(id)) return;
    const previousEntry = [...this.bodies].find(([, body]) => readerBox.contains(body));
    if (previousEntry) this.sections.find(({ dataset }) => dataset.id === previousEntry[0]).querySelector("h2").after(previousEntry[1]);
    readerBox.append(this.bodies.get(id));
    const title = [createElement("span", { class: "letter" }, letter), t("rank.completion", { letter })];
    document.getElementById("reader-title").replaceChildren(...title);
  }

  /** Announce a sentence to screen readers. */
  announce(text) {
    this.live.textContent = text;
  }

  openKeyHelp() {
    document.getElementById("keys-dialog").showModal();
  }

  handleKey(event) {
    if (isDialogOpen()) return;
    const isRating = this.form.dataset.stage === "rate";
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (isRating && !this.isComplete) this.ratingStage.showIndex(this.ratingStage.index + 1);
      else this.onSubmit();
      return;
    }
    const isTyping = event.target.matches?.("textarea, select, input:not([type=radio], [type=checkbox])");
    const hasModifier = event.ctrlKey || event.metaKey || event.altKey;
    if (isTyping || hasModifier || !this.keysEnabled.checked || this.form.querySelector(".gated")) return;
    const stage = isRating ? this.ratingStage : this.board;
    const wasHandled = event.key === "?" ? (this.openKeyHelp(), true) : stage.handleKey(event);
    if (wasHandled) event.preventDefault();
  }
}
