// The two stages of a ranking task, put together: rate each completion, then rank them all.

import { BoardView } from "./board_view.js";
import { compareTwo, readFull } from "./compare.js";
import { complete, tray } from "./board.js";
import { Rate, countRated, ratingOf } from "./rate.js";
import { isOpen } from "./dialogs.js";
import { make, t } from "./words.js";

export class Ranking {
  /** @param changed called with a sentence (or nothing) after everything that changed the form. @param submit hands it in. */
  constructor(form, { changed, submit }) {
    Object.assign(this, { form, submit });
    this.changed = (said) => (this.count(), said && this.say(said), changed());
    this.sections = [...form.querySelectorAll("section.rate")];
    this.cards = this.sections.map((section) => this.cardOf(section));
    this.bodies = new Map(this.sections.map((section) => [section.dataset.id, section.querySelector(".body")]));
    this.live = make("p", { class: "unseen", role: "status", "aria-live": "polite", id: "live" });
    form.append(this.live);
    this.rate = new Rate(form, { changed: this.changed, shown: (id) => this.look(id), finished: () => this.stage("rank") });
    this.board = new BoardView(form.querySelector("#board"), this.cards, {
      facts: (id) => this.facts(id), changed: () => this.store(), looked: (id) => this.look(id), say: (text) => this.say(text),
      read: (id) => readFull(this.cards, id, (each) => this.bodies.get(each)),
      compare: (one, other) => compareTwo(this.cards, one, other, (each) => this.bodies.get(each)),
      help: () => this.help(),
    });
    for (const button of form.querySelectorAll("[data-stage]")) button.addEventListener("click", () => this.stage(button.dataset.stage));
    this.keysOn = document.getElementById("keys-on");
    this.keysOn.checked = localStorage.getItem("keys") !== "off";
    this.keysOn.addEventListener("change", () => localStorage.setItem("keys", this.keysOn.checked ? "on" : "off"));
    document.addEventListener("keydown", (event) => this.key(event));
    this.refresh();
    this.stage(countRated(form, this.ids) === this.ids.length ? "rank" : "rate", false);
  }

  get ids() {
    return this.cards.map((card) => card.id);
  }

  cardOf(section) {
    const { id, letter } = section.dataset;
    return { id, letter, line: this.form.querySelector(`select[data-id="${CSS.escape(id)}"]`).parentElement.querySelector(".line").textContent };
  }

  facts(id) {
    const section = this.sections.find((each) => each.dataset.id === id);
    const yes = [...section.querySelectorAll('.ask input[value="yes"]:checked')];
    return { rating: ratingOf(this.form, id), labels: yes.map((input) => input.closest(".ask").firstElementChild.dataset.short) };
  }

  /** Take over what the form holds: after a draft was filled in. */
  refresh() {
    const tiers = this.ids.map(() => []);
    for (const id of this.ids) {
      const tier = Number(this.select(id).value);
      if (tier) tiers[tier - 1].push(id);
    }
    this.board.restore(tiers);
    this.count();
  }

  select(id) {
    return this.form.querySelector(`select[data-id="${CSS.escape(id)}"]`);
  }

  /** Put the board's state into the form, which is what drafts and submissions are read from. */
  store() {
    for (const id of this.ids) {
      const tier = this.board.state.tiers.findIndex((cards) => cards.includes(id));
      this.select(id).value = tier < 0 ? "" : `${tier + 1}`;
    }
    this.changed();
  }

  count() {
    const all = this.ids.length, left = tray(this.board?.state ?? { cards: [], tiers: [] });
    document.getElementById("rated").textContent = `${countRated(this.form, this.ids)}/${all}`;
    document.getElementById("placed").textContent = `${all - left.length}/${all}`;
    const missing = left.map((id) => this.cards.find((card) => card.id === id).letter).join(", ");
    document.getElementById("missing").textContent = missing ? t("rank.missing", { letters: missing }) : "";
    document.getElementById("submit").setAttribute("aria-disabled", `${missing !== ""}`);
  }

  get complete() {
    return complete(this.board.state);
  }

  stage(name, focus = true) {
    this.form.dataset.stage = name;
    for (const button of this.form.querySelectorAll(".stage")) button.setAttribute("aria-pressed", `${button.dataset.stage === name}`);
    for (const each of ["rate", "rank"]) document.getElementById(each).hidden = each !== name;
    if (name === "rate") return this.rate.go(this.rate.at, { focus });
    this.board.draw();
    if (focus) {
      this.form.querySelector("#board .take")?.focus({ preventScroll: true });
      window.scrollTo({ top: 0 });
    }
    return this.look(this.ids[this.rate.at]);
  }

  /** Show a completion beside the prompt. */
  look(id) {
    const card = this.cards.find((each) => each.id === id), place = document.getElementById("reader-text");
    if (place.firstElementChild === this.bodies.get(id)) return;
    const before = [...this.bodies].find(([, body]) => place.contains(body));
    if (before) this.sections.find((section) => section.dataset.id === before[0]).querySelector("h2").after(before[1]);
    place.append(this.bodies.get(id));
    document.getElementById("reader-title").replaceChildren(make("span", { class: "letter" }, card.letter), t("rank.completion", { letter: card.letter }));
  }

  say(text) {
    this.live.textContent = text;
  }

  help() {
    document.getElementById("keys-dialog").showModal();
  }

  key(event) {
    if (isOpen()) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (this.form.dataset.stage === "rate" && !this.complete) this.rate.go(this.rate.at + 1);
      else this.submit();
      return;
    }
    const writing = event.target.matches?.("textarea, select, input:not([type=radio], [type=checkbox])");
    if (writing || event.ctrlKey || event.metaKey || event.altKey || !this.keysOn.checked || this.form.querySelector(".gated")) return;
    const done = event.key === "?" ? (this.help(), true) : this[this.form.dataset.stage === "rate" ? "rate" : "board"].key(event);
    if (done) event.preventDefault();
  }
}
