// A task page: the form, its drafts, its active time, its submission. Each kind of task has modules of its own.

import { SITE_PATH, callApi } from "./api.js";
import { convertSheetsToDialogs, isDialogOpen, openDialog, promptSignIn } from "./dialogs.js";
import { DraftSaver } from "./drafts.js";
import { addExamples, initEditor } from "./editor.js";
import { isSameWork, readFields, writeFields } from "./form.js";
import { createElement, formatTime, t } from "./i18n.js";
import { bindPreviews } from "./preview.js";
import { RankingTask } from "./ranking.js";
import { answerRemainingNo, bindAnswerNoButtons } from "./rating.js";
import { addUnfoldButtons, bindSensitivityGate } from "./text_view.js";
import { ActiveTime } from "./timer.js";
import { summarizeVersion } from "./versions.js";

const HEARTBEAT_MS = 60_000;

const form = document.getElementById("task");
const { assignment, kind, name: userName, done: doneUrl } = form.dataset;
const statusLine = document.getElementById("saved"), errorBox = document.getElementById("trouble");
const sections = [...form.querySelectorAll("section.rate")];
const activeTime = new ActiveTime(Number(form.elements.active_ms.value)).start();
const tabId = (sessionStorage.tab ??= crypto.randomUUID?.() ?? `${Math.random()}`);
let initialLocalFields = null; // the local copy at the time the page was opened
let isEditing = form.dataset.editing === "yes", ranking = null, isDirty = false;

const drafts = new DraftSaver({
  id: assignment, tab: tabId, rev: Number(form.dataset.rev), storage: localStorage, onStateChange: showDraftState,
  saveDraft: (rev, fields, keepalive) =>
    callApi("PUT", `assignments/${assignment}/draft`, { fields }, { headers: { "If-Match": `${rev}` }, keepalive }),
});

function currentFields() {
  form.elements.active_ms.value = Math.round(activeTime.totalMs);
  return readFields(form);
}

function onChange() {
  isDirty = true;
  if (isEditing) statusLine.textContent = t("save.unsaved_edit");
  else drafts.update(currentFields());
}

function showDraftState({ state, rev, timeMs, error }) {
  statusLine.dataset.state = state;
  const time = formatTime(timeMs);
  statusLine.textContent = state === "saved" ? t("save.saved", { time, rev }) : t(`save.${state}`, { time });
  if (state === "failed") showError(t("save.failed_long", { message: error.status ? error.message : t("unreachable") }));
  else if (state === "saved" || state === "waiting") showError("");
  if (state === "signed_out") promptSignIn(userName).then((ok) => (ok ? drafts.retry() : showError(t("save.signed_out_long"))));
  if (state === "conflict") resolveConflict().catch((reason) => showError(reason.message));
}

function showError(text) {
  errorBox.textContent = text;
  errorBox.hidden = text === "";
}

/** Fetch the server's version: its page is the form filled with the draft, or with the submission if there is one. */
async function fetchServerVersion() {
  const response = await fetch(`${SITE_PATH}/tasks/${assignment}?edit=true`, { credentials: "same-origin" }).catch(() => null);
  if (!response?.ok) throw new Error(t(response?.status === 401 ? "save.signed_out_long" : "unreachable"));
  const serverForm = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("task");
  // Without a form the page is that of a submission which can no longer be edited.
  if (!serverForm) return { rev: 0, fields: null, isSubmitted: true };
  const { editing, rev } = serverForm.dataset;
  return { rev: Number(rev), fields: readFields(serverForm), isSubmitted: editing === "yes" };
}

/**
 * Show two versions of one draft; the labeler keeps one. A submission from elsewhere is a version too. A page that closes sends its
 * last fields and never learns that they arrived: if the server has these, there is no conflict.
 */
async function resolveConflict() {
  const { rev, fields: serverVersion, isSubmitted } = await fetchServerVersion();
  const localVersion = drafts.fields; // read after the request: the labeler may have gone on typing
  const isOwn = (version) => version !== null && isSameWork(serverVersion, version);
  if (!isSubmitted && (isOwn(localVersion) || isOwn(initialLocalFields))) {
    drafts.overwriteServer(rev, localVersion);
    return;
  }
  const keepLocal = () => {
    fillForm(localVersion);
    if (isSubmitted) {
      isEditing = true;
      drafts.discardLocal();
      requestSubmit();
    } else drafts.overwriteServer(rev, localVersion);
  };
  const keepServer = () => {
    if (isSubmitted) {
      isDirty = false;
      drafts.discardLocal();
      location.assign(doneUrl);
    } else {
      fillForm(serverVersion);
      drafts.overwriteServer(rev, serverVersion);
    }
  };
  const createVersionPanel = (title, version, otherVersion, label, onChoose) =>
    createElement(
      "section", { class: "panel" }, createElement("h3", {}, title),
      createElement("div", { class: "plain version", dir: "auto", tabindex: "0" }, summarizeVersion(form, version, otherVersion)),
      createElement("button", { type: "button", class: "button primary", onclick: () => (dialog.close(), onChoose()) }, label),
    );
  const dialog = openDialog(
    t("conflict.title"),
    createElement(
      "div", { class: "stack" }, createElement("p", {}, t("conflict.why")),
      createElement(
        "div", { class: "grid" },
        createVersionPanel(t("conflict.mine"), localVersion, serverVersion, t("conflict.keep_mine"), keepLocal),
        createVersionPanel(t(isSubmitted ? "conflict.submitted" : "conflict.theirs"), serverVersion, localVersion, t("conflict.keep_theirs"), keepServer),
      ),
    ),
    "conflict",
  );
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.querySelector(".close").remove();
}

function fillForm(version) {
  const exampleCount = version.filter(([name]) => name === "example_prompt").length;
  if (exampleCount) addExamples(form, Math.max(0, exampleCount - form.querySelectorAll(".example").length));
  writeFields(form, version);
  if (form.elements.pasted) form.elements.pasted.value = new Map(version).get("pasted") ?? "";
  ranking?.loadFromForm();
  form.dispatchEvent(new Event("input"));
}

/** Take over what only this browser has: if it follows the server's revision, at once; otherwise it is a conflict. */
async function recoverLocalDraft() {
  const newest = drafts.localCopies().find((copy) => copy.fields);
  if (!newest) return;
  initialLocalFields = newest.fields;
  fillForm(newest.fields);
  if (newest.rev === drafts.rev) {
    if (newest.key !== drafts.key) localStorage.removeItem(newest.key);
    drafts.update(newest.fields);
    drafts.flush();
    return;
  }
  drafts.fields = newest.fields;
  drafts.saveLocally();
  if (newest.key !== drafts.key) localStorage.removeItem(newest.key);
  drafts.state = "conflict";
  await resolveConflict();
}

function requestSubmit() {
  form.requestSubmit(document.getElementById("submit"));
}

let isSending = false;

async function onSubmit(event) {
  if (event.submitter?.hasAttribute("formaction")) {
    isDirty = false; // the server keeps the fields as the draft
    drafts.discardLocal();
    return;
  }
  event.preventDefault();
  if (isSending) return;
  if (ranking && !ranking.isComplete) {
    ranking.showStage("rank");
    ranking.announce(document.getElementById("missing").textContent);
    return;
  }
  if (ranking?.requiredQuestions.length) {
    ranking.goToOpenQuestion();
    ranking.announce(document.getElementById("unanswered").textContent);
    return;
  }
  isSending = true;
  showError("");
  try {
    await sendSubmission();
    isDirty = false;
    drafts.discardLocal();
    location.assign(doneUrl);
  } catch (error) {
    if (error.status === 401) {
      if (await promptSignIn(userName)) setTimeout(requestSubmit);
    } else showError(t("save.not_sent", { message: error.status ? error.message : t("unreachable") }));
  } finally {
    isSending = false;
  }
}

async function sendSubmission() {
  const fields = currentFields(), verb = isEditing ? "edit" : "submit";
  const headers = { "Idempotency-Key": form.elements.key.value };
  const receipt = await callApi("POST", `assignments/${assignment}/${verb}`, { fields }, { headers });
  if (kind !== "rank") return;
  // Compare the stored ranking with the screen, so that a labeler never leaves a ranking that is not theirs.
  const values = new Map(fields), tierOf = (id) => Number(values.get(`tier:${id}`));
  const usedTiers = [...new Set(sections.map(({ dataset }) => tierOf(dataset.id)))].sort((a, b) => a - b);
  const mismatchedIds = sections.map(({ dataset }) => dataset.id).filter((id) => receipt.ranks[id] !== usedTiers.indexOf(tierOf(id)) + 1);
  if (mismatchedIds.length) throw Object.assign(new Error(t("save.stored_other")), { status: 500 });
}

/** Extend the lease while somebody works. */
async function sendHeartbeat() {
  if (!activeTime.wasActiveWithin(2 * HEARTBEAT_MS) || document.hidden) return;
  try {
    showLease((await callApi("POST", `assignments/${assignment}/heartbeat`, {})).lease_until);
  } catch (error) {
    if (error.status === 409 || error.status === 410) document.getElementById("lease").textContent = t("save.lease_over");
  }
}

function showLease(untilMs) {
  const isOver = untilMs <= Date.now();
  document.getElementById("lease").textContent = isOver ? t("save.lease_over") : t("save.lease", { time: formatTime(untilMs, false) });
}

convertSheetsToDialogs();
bindSensitivityGate(document.getElementById("gate"));
document.addEventListener("click", (event) => {
  const { reason } = event.target.closest?.("[data-reason]")?.dataset ?? {};
  if (reason) document.querySelector(`#skip input[value="${reason}"]`).checked = true;
});
if (kind === "rank") ranking = new RankingTask(form, { onChange, onSubmit: requestSubmit });
else {
  bindAnswerNoButtons(form, onChange);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) requestSubmit();
    const isTyping = event.target.matches?.("textarea, select, input:not([type=radio], [type=checkbox])");
    const labels = form.querySelector(".labels:has(.rest-no)");
    const hasModifier = event.ctrlKey || event.metaKey || event.altKey;
    if (event.key === "x" && labels && !isTyping && !isDialogOpen() && !hasModifier) answerRemainingNo(labels, onChange);
  });
}
if (form.elements.text) initEditor(form, onChange);
bindPreviews(form);
addUnfoldButtons(form);
form.addEventListener("input", (event) => event.isTrusted && onChange());
form.addEventListener("submit", onSubmit);
if (!isEditing) {
  if (form.dataset.lease) {
    // Returned work has no lease: its labeler has all the time it needs.
    showLease(Number(form.dataset.lease));
    setInterval(sendHeartbeat, HEARTBEAT_MS);
  }
  addEventListener("online", () => drafts.retry());
  document.addEventListener("visibilitychange", () => document.hidden && drafts.flush(true));
  addEventListener("pagehide", () => drafts.flush(true));
  await recoverLocalDraft().catch((error) => showError(error.message));
}
addEventListener("beforeunload", (event) => {
  if (isDirty && (isEditing || ["failed", "signed_out", "conflict"].includes(drafts.state))) event.preventDefault();
});
form.dataset.ready = "yes";
