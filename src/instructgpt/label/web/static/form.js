// A task's form as fields (name -> value), and as the JSON that drafts and submissions are made of. The same mapping as fields.py.

const ANSWERS = { yes: true, no: false, na: null };
const WORDS = new Map([[true, "yes"], [false, "no"], [null, "na"]]);

/** Fields of a form: [[name, value]], in the order in which they stand. */
export function readFields(form) {
  return [...new FormData(form)].map(([name, value]) => [name, String(value).replaceAll("\r\n", "\n")]);
}

/** Set every control of a form from fields; a control without a field is emptied, hidden ones stay as they are. */
export function writeFields(form, fields) {
  const left = fields.map((field) => [...field]);
  const take = (name) => {
    const at = left.findIndex(([each]) => each === name);
    return at < 0 ? null : left.splice(at, 1)[0][1];
  };
  const chosen = new Map(fields);
  for (const control of form.elements) {
    if (!control.name || ["hidden", "submit", "button"].includes(control.type)) continue;
    if (control.type === "radio") control.checked = chosen.get(control.name) === control.value;
    else if (control.type === "checkbox") control.checked = chosen.has(control.name);
    else control.value = take(control.name) ?? "";
  }
}

/** The JSON of a kind of task from fields. Incomplete work gives incomplete JSON. */
export function payloadOf(kind, fields, completions = []) {
  const one = new Map(fields);
  const all = (name) => fields.filter(([each]) => each === name).map(([, value]) => value);
  const whole = (name) => (one.get(name) ? Number(one.get(name)) : null);
  const payload = { kind, note: one.get("note") ?? "", active_ms: whole("active_ms") ?? 0 };
  if (kind === "rank") return { ...payload, ...ranking(one, whole, completions) };
  if (kind === "review") {
    return {
      ...payload, use_case: one.get("use_case") || null, personal_data: ANSWERS[one.get("personal_data")] ?? null,
      sensitive: ANSWERS[one.get("sensitive")] ?? null, labels: answers(fields, "label:"), rejected: one.get("rejected") || null,
    };
  }
  payload.text = one.get("text") ?? "";
  payload.pasted = one.get("pasted") ? Number(one.get("pasted")) : null;
  if (kind === "demonstrate") return { ...payload, meant_empty: one.has("meant_empty") };
  const asks = all("example_prompt"), gets = all("example_completion");
  const examples = asks.map((ask, at) => [ask, gets[at] ?? ""]).filter(([ask, get]) => ask.trim() || get.trim());
  const form = one.get("form") ?? "plain";
  return {
    ...payload, form, examples: form === "few_shot" ? examples : [], use_case: one.get("use_case") || null,
    sensitive: one.has("sensitive"),
  };
}

function ranking(one, whole, completions) {
  const fields = [...one], tiers = completions.map(() => []);
  const ratings = [];
  for (const completion of completions) {
    const tier = whole(`tier:${completion}`);
    if (tier !== null && tiers[tier - 1]) tiers[tier - 1].push(completion);
    const rated = {
      completion, rating: whole(`rating:${completion}`), labels: answers(fields, `label:${completion}:`),
      note: one.get(`note:${completion}`) ?? "",
    };
    if (rated.rating !== null || Object.keys(rated.labels).length || rated.note) ratings.push(rated);
  }
  return { ratings, tiers, none_acceptable: one.has("none_acceptable"), confidence: whole("confidence") };
}

function answers(fields, prefix) {
  const given = fields.filter(([name, value]) => name.startsWith(prefix) && value in ANSWERS);
  return Object.fromEntries(given.map(([name, value]) => [name.slice(prefix.length), ANSWERS[value]]));
}

/** Fields from JSON: the way back. */
export function fieldsOf(payload) {
  const fields = [];
  const add = (name, value) => value !== null && value !== undefined && value !== "" && fields.push([name, String(value)]);
  const yes = (name) => payload[name] === true && fields.push([name, "yes"]);
  for (const { completion, rating, labels, note } of payload.ratings ?? []) {
    add(`rating:${completion}`, rating);
    for (const [name, answer] of Object.entries(labels ?? {})) add(`label:${completion}:${name}`, WORDS.get(answer));
    add(`note:${completion}`, note);
  }
  (payload.tiers ?? []).forEach((cards, tier) => cards.forEach((card) => add(`tier:${card}`, tier + 1)));
  for (const [name, answer] of Object.entries(payload.labels ?? {})) add(`label:${name}`, WORDS.get(answer));
  for (const [ask, get] of payload.examples ?? []) fields.push(["example_prompt", ask], ["example_completion", get]);
  for (const name of ["note", "text", "form", "use_case", "rejected", "confidence", "pasted"]) add(name, payload[name]);
  for (const name of ["none_acceptable", "meant_empty"]) yes(name);
  if (payload.kind === "review") {
    for (const name of ["personal_data", "sensitive"]) payload[name] !== null && add(name, WORDS.get(payload[name]));
  } else yes("sensitive");
  return fields;
}
