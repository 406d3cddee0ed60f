// Rating, one completion at a time: 1-7 and the labels. Keys: 1-7, x, arrows. Everything is a form control underneath.

import { t } from "./words.js";

export class Rate {
  /** @param changed called after what a key or a button changed. @param shown called with the id of the completion on screen. */
  constructor(form, { changed, shown, finished }) {
    this.sections = [...form.querySelectorAll("section.rate")];
    Object.assign(this, { form, changed, shown, finished, at: 0 });
    this.sections.forEach((section, at) => {
      section.querySelector(".back").addEventListener("click", () => this.go(at - 1));
      section.querySelector(".back").hidden = at === 0;
      section.querySelector(".next").addEventListener("click", () => this.go(at + 1));
      section.querySelector(".clear").addEventListener("click", () => clear(section, changed));
    });
    fillers(form, changed);
  }

  get section() {
    return this.sections[this.at];
  }

  /** Show a completion; behind the last one comes the board. */
  go(at, { focus = true } = {}) {
    if (at >= this.sections.length) return this.finished();
    this.at = Math.max(0, at);
    this.sections.forEach((section, each) => (section.hidden = each !== this.at));
    this.shown(this.section.dataset.id);
    if (!focus) return;
    const scale = this.section.querySelector(".scale input:checked") ?? this.section.querySelector(".scale input");
    scale.focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  }

  goTo(id) {
    this.go(this.sections.findIndex((section) => section.dataset.id === id));
  }

  key(event) {
    const digit = /^[1-7]$/.test(event.key);
    if (digit) {
      const radio = this.section.querySelector(`.scale input[value="${event.key}"]`);
      radio.checked = true;
      radio.focus({ preventScroll: true });
      this.changed();
    } else if (event.key === "x") restNo(this.section.querySelector(".labels"), this.changed);
    else if (event.key === "ArrowRight" && event.target.type !== "radio") this.go(this.at + 1);
    else if (event.key === "ArrowLeft" && event.target.type !== "radio") this.go(this.at - 1);
    else return false;
    return true;
  }
}

/** A completion's rating as a number; null when there is none. */
export function ratingOf(form, id) {
  const chosen = form.querySelector(`input[name="rating:${CSS.escape(id)}"]:checked`);
  return chosen ? Number(chosen.value) : null;
}

/** How many completions have a rating. */
export function countRated(form, ids) {
  return ids.filter((id) => ratingOf(form, id) !== null).length;
}

/** The buttons that answer No to all that is left. */
export function fillers(form, changed) {
  for (const labels of form.querySelectorAll(".labels")) {
    labels.querySelector(".rest-no")?.addEventListener("click", () => restNo(labels, changed));
    labels.addEventListener("change", (event) => event.target.closest(".ask")?.classList.remove("filled"));
  }
}

/** Answer No to every question that is not answered yet, and mark those, so that they can be looked over. Not where No is a reproach. */
export function restNo(labels, changed) {
  let count = 0;
  for (const ask of labels.querySelectorAll(".ask")) {
    if ("byHand" in ask.dataset || ask.querySelector("input:checked")) continue;
    ask.querySelector('input[value="no"]').checked = true;
    ask.classList.add("filled");
    count += 1;
  }
  if (count) changed(t("rank.filled", { count }));
}

function clear(section, changed) {
  for (const input of section.querySelectorAll("input:checked")) input.checked = false;
  for (const ask of section.querySelectorAll(".filled")) ask.classList.remove("filled");
  changed();
}
