// Describes two versions of a draft in the words of the form's own controls, so that a labeler can tell them apart.

import { METADATA } from "./form.js";

const SHOWN_ALWAYS = /^(tier|rating|note):|^(text|note)$/;

/**
 * Describe a version on lines: the order and the ratings, or the text; then every other answer that differs from the other version.
 *
 * @param fields [[name, value], ...], or null. @param otherFields of the other version, or null.
 */
export function summarizeVersion(form, fields, otherFields) {
  if (!fields) return "–";
  const values = groupValues(fields), otherValues = groupValues(otherFields ?? []);
  const lines = form.dataset.kind === "rank" ? describeRanking(form, values) : [values.get("text")?.[0]];
  for (const name of new Set([...form.elements].map((control) => control.name))) {
    if (!name || METADATA.includes(name) || SHOWN_ALWAYS.test(name)) continue;
    if (JSON.stringify(values.get(name) ?? []) !== JSON.stringify(otherValues.get(name) ?? [])) lines.push(describeField(form, name, values.get(name) ?? []));
  }
  return [...lines, values.get("note")?.[0]].filter(Boolean).join("\n") || "–";
}

/** Collect the values of each name; blank ones are no answer. */
function groupValues(fields) {
  const values = new Map();
  for (const [name, value] of fields) if (value.trim()) values.set(name, [...(values.get(name) ?? []), value]);
  return values;
}

function describeRanking(form, values) {
  const sections = [...form.querySelectorAll("section.rate")];
  const tiers = sections.map(() => []), ratings = [];
  for (const { dataset: { id, letter } } of sections) {
    tiers[Number(values.get(`tier:${id}`)?.[0]) - 1]?.push(letter);
    const rating = values.get(`rating:${id}`)?.[0], note = values.get(`note:${id}`)?.[0];
    if (rating || note) ratings.push(`${letter}: ${rating ?? "–"}${note ? ` · ${note}` : ""}`);
  }
  const order = tiers.filter((letters) => letters.length).map((letters) => letters.sort().join(" = ")).join(" > ");
  return [order, ...ratings.sort()];
}

/** Describe one answer: "A · hallucination: Yes". */
function describeField(form, name, values) {
  const controls = [...form.elements].filter((control) => control.name === name), [control] = controls;
  const letter = control.closest("section.rate")?.dataset.letter;
  const answer = values.map((value) => describeValue(controls, value)).join(" · ") || "–";
  return `${letter ? `${letter} · ` : ""}${describeQuestion(control)}: ${answer}`;
}

function describeQuestion(control) {
  const question = control.closest(".ask")?.firstElementChild;
  if (question) return question.dataset.short ?? question.textContent.trim();
  const label = control.type === "radio" ? control.closest("fieldset")?.querySelector("legend") : control.labels?.[0];
  return label?.textContent.trim() ?? control.name;
}

function describeValue(controls, value) {
  const [control] = controls;
  if (control.type === "checkbox") return "✓";
  if (control.type === "radio") return controls.find((each) => each.value === value)?.labels[0].textContent.trim() ?? value;
  return [...(control.options ?? [])].find((option) => option.value === value)?.textContent.trim() ?? value;
}
