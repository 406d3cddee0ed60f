// A task page: the form, its drafts, its time, its submission. What is special to a kind lives in files of their own.

import { call } from "./api.js";
import { isOpen, prepare, show, signIn } from "./dialogs.js";
import { Drafts, same } from "./drafts.js";
import { fieldsOf, payloadOf, readFields, writeFields } from "./form.js";
import { Ranking } from "./ranking.js";
import { fillers, restNo } from "./rate.js";
import { gate, switchView, unfoldable } from "./texts.js";
import { ActiveTime } from "./timer.js";
import { clock, make, t } from "./words.js";
import { moreExamples, prepareWriting } from "./writing.js";

const form = document.getElementById("task");
const { assignment, kind, name, done } = form.dataset;
const saved = document.getElementById("saved"), trouble = document.getElementById("trouble");
const ids = [...form.querySelectorAll("section.rate")].map((section) => section.dataset.id);
const active = new ActiveTime(Number(form.elements.active_ms.value)).watch();
const tab = (sessionStorage.tab ??= crypto.randomUUID?.() ?? `${Math.random()}`);
let lastWords = null; // what this browser had when the page was opened
let editing = form.dataset.editing === "yes", ranking = null, dirty = false;

const drafts = new Drafts({
  id: assignment, tab, rev: Number(form.dataset.rev), store: localStorage, changed: report,
  put: (rev, payload, keepalive) => call("PUT", `assignments/${assignment}/draft`, payload, { headers: { "If-Match": `${rev}` }, keepalive }),
});

function payload() {
  form.elements.active_ms.value = Math.round(active.total);
  return payloadOf(kind, readFields(form), ids);
}

function changed() {
  dirty = true;
  if (editing) saved.textContent = t("save.unsaved_edit");
  else drafts.touch(payload());
}

/** The state of the draft, always in sight. */
function report({ state, rev, at, error }) {
  saved.dataset.state = state;
  const time = clock(at);
  saved.textContent = state === "saved" ? t("save.saved", { time, rev }) : t(`save.${state}`, { time });
  if (state === "failed") alarm(t("save.failed_long", { message: error.status ? error.message : t("unreachable") }));
  else if (state === "saved") alarm("");
  if (state === "signed_out") signIn(name).then((ok) => (ok ? drafts.again() : alarm(t("save.signed_out_long"))));
  if (state === "conflict") settle(error.detail).catch((reason) => alarm(reason.message));
}

function alarm(text) {
  trouble.textContent = text;
  trouble.hidden = text === "";
}

/**
 * Two versions of one draft: both are shown, the labeler keeps one. Work that was handed in elsewhere is a version too. A page that
 * was left sends its last words without hearing that they arrived: the same words are no conflict.
 */
async function settle({ rev, payload: stored }, mine = drafts.payload) {
  if (stored && (same(stored, mine) || same(stored, lastWords))) {
    drafts.mine(rev, mine);
    return;
  }
  const task = stored ? null : await call("GET", `assignments/${assignment}`);
  const handedIn = task?.state === "submitted";
  const other = stored ?? (handedIn ? task.submission : task.draft?.payload ?? null);
  const keepMine = () => {
    fill(mine);
    if (handedIn) {
      editing = true;
      drafts.done();
      askToSubmit();
    } else drafts.mine(rev ?? 0, mine);
  };
  const keepOther = () => {
    if (handedIn) {
      dirty = false;
      drafts.done();
      location.assign(done);
    } else {
      fill(other ?? {});
      drafts.mine(rev ?? 0, other ?? {});
    }
  };
  const side = (title, version, label, choose) =>
    make(
      "section", { class: "panel" }, make("h3", {}, title), make("div", { class: "plain version", dir: "auto", tabindex: "0" }, summary(version)),
      make("button", { type: "button", class: "button primary", onclick: () => (dialog.close(), choose()) }, label),
    );
  const dialog = show(
    t("conflict.title"),
    make(
      "div", { class: "stack" }, make("p", {}, t("conflict.why")),
      make(
        "div", { class: "grid" },
        side(t("conflict.mine"), mine, t("conflict.keep_mine"), keepMine),
        side(t(handedIn ? "conflict.submitted" : "conflict.theirs"), other, t("conflict.keep_theirs"), keepOther),
      ),
    ),
    "conflict",
  );
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.querySelector(".close").remove();
}

/** A version in words, so that two can be told apart. */
function summary(version) {
  if (!version) return "–";
  if (kind !== "rank") return [version.text, version.use_case, version.note].filter(Boolean).join("\n") || "–";
  const letters = new Map([...form.querySelectorAll("section.rate")].map((each) => [each.dataset.id, each.dataset.letter]));
  const order = (version.tiers ?? []).filter((cards) => cards.length).map((cards) => cards.map((id) => letters.get(id)).sort().join(" = "));
  const rated = (version.ratings ?? []).map(({ completion, rating, note }) => `${letters.get(completion)}: ${rating ?? "–"}${note ? ` · ${note}` : ""}`);
  return [order.join(" > "), ...rated.sort(), version.note].filter(Boolean).join("\n");
}

function fill(version) {
  if (version.examples?.length) moreExamples(form, Math.max(0, version.examples.length - form.querySelectorAll(".example").length));
  writeFields(form, fieldsOf(version));
  if (form.elements.pasted) form.elements.pasted.value = version.pasted ?? "";
  ranking?.refresh();
  form.dispatchEvent(new Event("input"));
}

/** What this browser has and no server: taken over where it follows the server's revision, otherwise shown beside it. */
async function recover() {
  const [newest] = drafts.left();
  if (!newest) return;
  lastWords = newest.payload;
  if (newest.rev === drafts.rev) {
    fill(newest.payload);
    if (newest.key !== drafts.key) localStorage.removeItem(newest.key);
    drafts.touch(newest.payload);
    drafts.flush();
    return;
  }
  const { draft } = await call("GET", `assignments/${assignment}`);
  drafts.payload = newest.payload;
  drafts.keep();
  if (newest.key !== drafts.key) localStorage.removeItem(newest.key);
  drafts.state = "conflict";
  fill(newest.payload);
  await settle({ rev: draft?.rev ?? 0, payload: draft?.payload ?? null }, newest.payload);
}

function askToSubmit() {
  form.requestSubmit(document.getElementById("submit"));
}

let sending = false;

async function submit(event) {
  event.preventDefault();
  if (sending) return;
  if (ranking && !ranking.complete) {
    ranking.stage("rank");
    ranking.say(document.getElementById("missing").textContent);
    return;
  }
  sending = true;
  alarm("");
  try {
    await send();
    dirty = false;
    drafts.done();
    location.assign(done);
  } catch (error) {
    if (error.status === 401) {
      if (await signIn(name)) setTimeout(askToSubmit);
    } else alarm(t("save.not_sent", { message: error.status ? error.message : t("unreachable") }));
  } finally {
    sending = false;
  }
}

async function send() {
  const body = payload(), verb = editing ? "edit" : "submit";
  const stored = await call("POST", `assignments/${assignment}/${verb}`, body, { headers: { "Idempotency-Key": form.elements.key.value } });
  if (kind !== "rank") return;
  // What the server stored is what stood on the screen, or it is said aloud.
  let rank = 0;
  const expected = Object.fromEntries(body.tiers.filter((cards) => cards.length).flatMap((cards) => ((rank += 1), cards.map((id) => [id, rank]))));
  const wrong = ids.filter((id) => stored.ranks[id] !== expected[id]);
  if (wrong.length) throw Object.assign(new Error(t("save.stored_other")), { status: 500 });
}

/** The lease lives as long as somebody works. */
async function heartbeat() {
  if (!active.within(120_000) || document.hidden) return;
  try {
    const { lease_until: until } = await call("POST", `assignments/${assignment}/heartbeat`, {});
    lease(until);
  } catch (error) {
    if (error.status === 409 || error.status === 410) document.getElementById("lease").textContent = t("save.lease_over");
  }
}

function lease(until) {
  document.getElementById("lease").textContent = until > Date.now() ? t("save.lease", { time: clock(until, false) }) : t("save.lease_over");
}

prepare();
switchView(document.getElementById("view"));
gate(document.getElementById("gate"));
document.addEventListener("click", (event) => {
  const { reason } = event.target.closest?.("[data-reason]")?.dataset ?? {};
  if (reason) document.querySelector(`#skip input[value="${reason}"]`).checked = true;
});
if (kind === "rank") ranking = new Ranking(form, { changed, submit: askToSubmit });
else {
  fillers(form, changed);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) askToSubmit();
    const writing = event.target.matches?.("textarea, select, input:not([type=radio], [type=checkbox])");
    const labels = form.querySelector(".labels:has(.rest-no)");
    if (event.key === "x" && labels && !writing && !isOpen() && !event.ctrlKey && !event.metaKey && !event.altKey) restNo(labels, changed);
  });
}
if (form.elements.text) prepareWriting(form, changed);
unfoldable(form);
form.addEventListener("input", (event) => event.isTrusted && changed());
form.addEventListener("submit", submit);
if (!editing) {
  if (form.dataset.lease) {
    lease(Number(form.dataset.lease)); // work that came back has all the time it needs
    setInterval(heartbeat, 60_000);
  }
  addEventListener("online", () => drafts.again());
  document.addEventListener("visibilitychange", () => document.hidden && drafts.flush(true));
  addEventListener("pagehide", () => drafts.flush(true));
  await recover().catch((error) => alarm(error.message));
}
addEventListener("beforeunload", (event) => {
  if (dirty && (editing || ["failed", "signed_out", "conflict"].includes(drafts.state))) event.preventDefault();
});
form.dataset.ready = "yes";
