// The fields of a task's form: [[name, value], ...] in the order of the page. The server maps them to JSON (tasks/form_fields.py).

/** Fields that do not belong to the labeler's work: the submission key, and how it was typed. */
export const METADATA = ["key", "active_ms", "pasted"];

/** Read all fields of a form. */
export function readFields(form) {
  return [...new FormData(form)].map(([name, value]) => [name, String(value).replaceAll("\r\n", "\n")]);
}

/** Set every control of a form from fields. Controls without a field are cleared, hidden ones stay. */
export function writeFields(form, fields) {
  const remaining = fields.map((field) => [...field]);
  const takeField = (name) => {
    const index = remaining.findIndex(([fieldName]) => fieldName === name);
    return index < 0 ? null : remaining.splice(index, 1)[0][1];
  };
  const values = new Map(fields);
  for (const control of form.elements) {
    if (!control.name || ["hidden", "submit", "button"].includes(control.type)) continue;
    if (control.type === "radio") control.checked = values.get(control.name) === control.value;
    else if (control.type === "checkbox") control.checked = values.has(control.name);
    else control.value = takeField(control.name) ?? "";
  }
}

/** Whether two versions hold the same work, however long it took. */
export function isSameWork(a, b) {
  return normalize(a) === normalize(b);
}

function normalize(fields) {
  const form = new Map(fields).get("form");
  // Examples are stored for few-shot prompts only, so others may have them on the page and not on the server.
  const hasExamples = form === undefined || form === "few_shot";
  const work = fields.filter(([name, value]) => value.trim() && !METADATA.includes(name) && (hasExamples || !name.startsWith("example_")));
  return JSON.stringify(work.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)));
}
