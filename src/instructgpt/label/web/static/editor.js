// The editor of demonstrations and prompts: word count, pasted share (the page says that it is measured), example fields.

import { t } from "./i18n.js";
import { countWords, PasteTracker } from "./paste_tracking.js";

/** Initialize the editors of a form. */
export function initEditor(form, onChange) {
  const text = form.elements.text, count = document.getElementById("count"), pasteNotice = document.getElementById("paste");
  const pasteTracker = new PasteTracker(form.elements.pasted.value === "" ? null : Number(form.elements.pasted.value), text.value.length);
  const update = () => {
    count.textContent = t("write.count", { words: countWords(text.value), characters: [...text.value].length });
    const { share } = pasteTracker;
    form.elements.pasted.value = share ?? "";
    pasteNotice.textContent = share ? t("write.paste_share", { share: Math.round(100 * share) }) : t("write.paste_notice");
  };
  for (const field of form.querySelectorAll("textarea")) if (field.name !== "note") pasteTracker.track(field);
  form.addEventListener("input", update);
  update();
  const emptyCheckbox = form.elements.meant_empty;
  if (emptyCheckbox) {
    const check = () => text.setCustomValidity(text.value.trim() || emptyCheckbox.checked ? "" : t("demonstrate.empty"));
    form.addEventListener("input", check);
    check();
  }
  const exampleList = form.querySelector(".examples");
  if (exampleList) initExamples(form, exampleList, onChange);
  return update;
}

function initExamples(form, exampleList, onChange) {
  const show = () => (exampleList.hidden = form.elements.form.value !== "few_shot");
  form.addEventListener("change", show);
  show();
  document.getElementById("more").addEventListener("click", () => {
    addExamples(form, 1);
    [...exampleList.querySelectorAll(".example")].at(-1).querySelector("textarea").focus();
    onChange();
  });
}

/** Add empty example fields. */
export function addExamples(form, count) {
  for (let index = 0; index < count; index++) {
    const examples = form.querySelectorAll(".example"), copy = examples[examples.length - 1].cloneNode(true), number = examples.length + 1;
    copy.querySelector("h3").textContent = t("write.example", { number });
    copy.querySelectorAll("label").forEach((label) => (label.htmlFor = label.htmlFor.replace(/\d+$/, number)));
    copy.querySelectorAll("textarea").forEach((field) => {
      field.id = field.id.replace(/\d+$/, number);
      field.value = "";
    });
    examples[examples.length - 1].after(copy);
  }
}
