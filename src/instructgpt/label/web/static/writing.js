// Writing a demonstration or a prompt: words counted, the pasted share measured (and said so), fields for examples.

import { countWords, Pasted } from "./typed.js";
import { t } from "./words.js";

/** Prepare the editors of a form. */
export function prepareWriting(form, changed) {
  const text = form.elements.text, count = document.getElementById("count"), notice = document.getElementById("paste");
  const meter = new Pasted(form.elements.pasted.value === "" ? null : Number(form.elements.pasted.value), text.value.length);
  const update = () => {
    count.textContent = t("write.count", { words: countWords(text.value), characters: [...text.value].length });
    const { share } = meter;
    form.elements.pasted.value = share ?? "";
    notice.textContent = share ? t("write.paste_share", { share: Math.round(100 * share) }) : t("write.paste_notice");
  };
  for (const field of form.querySelectorAll("textarea")) if (field.name !== "note") meter.watch(field);
  form.addEventListener("input", update);
  update();
  const meant = form.elements.meant_empty;
  if (meant) {
    const check = () => text.setCustomValidity(text.value.trim() || meant.checked ? "" : t("demonstrate.empty"));
    form.addEventListener("input", check);
    check();
  }
  const boxes = form.querySelector(".examples");
  if (boxes) prepareExamples(form, boxes, changed);
  return update;
}

function prepareExamples(form, boxes, changed) {
  const show = () => (boxes.hidden = form.elements.form.value !== "few_shot");
  form.addEventListener("change", show);
  show();
  document.getElementById("more").addEventListener("click", () => {
    moreExamples(form, 1);
    boxes.querySelector(".example:last-of-type textarea").focus();
    changed();
  });
}

/** Add empty example fields. */
export function moreExamples(form, count) {
  for (let each = 0; each < count; each++) {
    const all = form.querySelectorAll(".example"), copy = all[all.length - 1].cloneNode(true), number = all.length + 1;
    copy.querySelector("h3").textContent = t("write.example", { number });
    copy.querySelectorAll("label").forEach((label) => (label.htmlFor = label.htmlFor.replace(/\d+$/, number)));
    copy.querySelectorAll("textarea").forEach((field) => {
      field.id = field.id.replace(/\d+$/, number);
      field.value = "";
    });
    all[all.length - 1].after(copy);
  }
}
