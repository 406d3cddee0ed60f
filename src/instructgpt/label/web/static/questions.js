// The questions of a ranking task: which apply after the answers so far, and which are open.

import { t } from "./i18n.js";

const VALUES = { yes: true, no: false, na: null };

/** Hide and disable the questions that the answers so far do not lead to. A disabled control is no field of the form. */
export function updateConditions(form) {
  for (const question of form.querySelectorAll(".ask[data-when]")) {
    const scope = question.closest("section.rate") ?? form;
    const applies = Object.entries(JSON.parse(question.dataset.when)).every(([name, answer]) => answerOf(form, scope, name) === answer);
    question.hidden = !applies;
    for (const input of question.querySelectorAll("input")) input.disabled = !applies;
  }
}

function answerOf(form, scope, name) {
  const selector = `.ask[data-name="${CSS.escape(name)}"]:not([hidden]) input:checked`;
  const input = scope.querySelector(selector) ?? form.querySelector(`#task-questions ${selector}`);
  return input ? VALUES[input.value] : undefined;
}

/**
 * List what is open, the task's questions first: [{element, section, isRequired, text}]. `section` is null for the task's questions,
 * `element` the group of controls, `text` a short name.
 */
export function listOpenQuestions(form, sections) {
  const isOpen = (group) => !group.hidden && !group.querySelector("input:checked");
  const entry = (element, section, text) => ({ element, section, text, isRequired: "required" in element.dataset });
  const asks = (root, section) => [...root.querySelectorAll(".ask")].filter(isOpen).map((ask) => entry(ask, section, shortName(ask)));
  const taskQuestions = form.querySelector("#task-questions");
  const open = taskQuestions ? asks(taskQuestions, null) : [];
  for (const section of sections) {
    const rating = section.querySelector(".rating");
    if (rating && isOpen(rating)) open.push(entry(rating, section, null));
    open.push(...asks(section, section));
  }
  return open;
}

function shortName(ask) {
  return ask.firstElementChild.dataset.short;
}

/** Describe open questions on one line: "rating: A, C; opinion, moral judgment: A–I". */
export function describeOpenQuestions(questions) {
  const lettersByName = new Map();
  for (const { section, text } of questions) {
    const letters = lettersByName.get(text) ?? lettersByName.set(text, []).get(text);
    if (section) letters.push(section.dataset.letter);
  }
  const namesByLetters = new Map();
  for (const [name, letters] of lettersByName) {
    const key = formatLetters(letters);
    if (name === null) namesByLetters.set(`rating ${key}`, [t("rank.open_rating", { letters: key })]);
    else namesByLetters.set(key, [...(namesByLetters.get(key) ?? []), name]);
  }
  const parts = [...namesByLetters].map(([letters, names]) =>
    !letters || letters.startsWith("rating ") ? names.join("; ") : t("rank.open_label", { name: names.join(", "), letters }),
  );
  return parts.join("; ");
}

function formatLetters(letters) {
  const isRun = letters.length > 2 && letters.at(-1).charCodeAt(0) - letters[0].charCodeAt(0) === letters.length - 1;
  return isRun ? `${letters[0]}–${letters.at(-1)}` : letters.join(", ");
}

/** Answer the question with a letter by the next of its answers: yes, no, not applicable. -> whether there is one. */
export function cycleAnswer(roots, key) {
  for (const root of roots) {
    const question = root?.querySelector(`.ask[data-key="${CSS.escape(key)}"]:not([hidden])`);
    if (!question) continue;
    const inputs = [...question.querySelectorAll("input")], current = inputs.findIndex((input) => input.checked);
    inputs[(current + 1) % inputs.length].checked = true;
    question.classList.remove("filled");
    return true;
  }
  return false;
}
