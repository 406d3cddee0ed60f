// Rating stage of a ranking task, one completion at a time: the rating and the labels. Keys: digits (0 is 10), letters of the questions, x, arrows. The state is in the form's controls.

import { t } from "./i18n.js";
import { cycleAnswer } from "./questions.js";

export class RatingStage {
  /** @param onChange called after a key or button changed the form. @param onShow called with the id of the completion on screen. */
  constructor(form, { onChange, onShow, onFinished }) {
    this.sections = [...form.querySelectorAll("section.rate")];
    Object.assign(this, { form, onChange, onShow, onFinished, index: 0 });
    this.sections.forEach((section, index) => {
      section.querySelector(".back").addEventListener("click", () => this.showIndex(index - 1));
      section.querySelector(".back").hidden = index === 0;
      section.querySelector(".next").addEventListener("click", () => this.showIndex(index + 1));
      section.querySelector(".clear")?.addEventListener("click", () => clearSection(section, onChange));
    });
    bindAnswerNoButtons(form, onChange);
  }

  get section() {
    return this.sections[this.index];
  }

  /** Show a completion; after the last one the stage is finished. */
  showIndex(index, { focus = true } = {}) {
    if (index >= this.sections.length) return this.onFinished();
    this.index = Math.max(0, index);
    this.sections.forEach((section, position) => (section.hidden = position !== this.index));
    this.onShow(this.section.dataset.id);
    if (!focus) return;
    const ratingInput = this.section.querySelector(".scale input:checked") ?? this.section.querySelector("input:not(:disabled), textarea");
    ratingInput.focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  }

  /** Handle a key. -> whether it was one of this stage's. */
  handleKey(event) {
    const digit = event.key === "0" ? "10" : event.key; // 0 is ten, as on a keyboard's row of digits
    const radio = /^\d{1,2}$/.test(digit) && this.section.querySelector(`.scale input[value="${digit}"]`);
    if (radio) {
      radio.checked = true;
      radio.focus({ preventScroll: true });
      this.onChange();
    } else if (event.key === "x") answerRemainingNo(this.section, this.onChange);
    else if (cycleAnswer([this.section, this.form.querySelector("#task-questions")], event.key)) this.onChange();
    else if (event.key === "ArrowRight" && event.target.type !== "radio") this.showIndex(this.index + 1);
    else if (event.key === "ArrowLeft" && event.target.type !== "radio") this.showIndex(this.index - 1);
    else return false;
    return true;
  }
}

/** Return a completion's rating, or null. */
export function ratingOf(form, id) {
  const checkedInput = form.querySelector(`input[name="rating:${CSS.escape(id)}"]:checked`);
  return checkedInput ? Number(checkedInput.value) : null;
}

/** Bind the buttons that answer No to all remaining questions. */
export function bindAnswerNoButtons(form, onChange) {
  for (const labels of form.querySelectorAll(".labels")) {
    labels.querySelector(".rest-no")?.addEventListener("click", () => answerRemainingNo(labels, onChange));
    labels.addEventListener("change", (event) => event.target.closest(".ask")?.classList.remove("filled"));
  }
}

/** Answer No to every open question and mark these answers for review; questions with data-by-hand are left open. */
export function answerRemainingNo(labels, onChange) {
  let count = 0;
  for (const question of labels.querySelectorAll(".ask")) {
    if (question.hidden || "byHand" in question.dataset || question.querySelector("input:checked")) continue;
    question.querySelector('input[value="no"]').checked = true;
    question.classList.add("filled");
    count += 1;
  }
  if (count) onChange(t("rank.filled", { count }));
}

function clearSection(section, onChange) {
  for (const input of section.querySelectorAll("input:checked")) input.checked = false;
  for (const question of section.querySelectorAll(".filled")) question.classList.remove("filled");
  onChange();
}
