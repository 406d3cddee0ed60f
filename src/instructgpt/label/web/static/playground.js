// The playground: the conversation lives in this tab; the server stores a turn only if the user agreed.

import { ApiError, callApi } from "./api.js";
import { t } from "./i18n.js";
import { streamAnswers } from "./playground_stream.js";
import { chosenAnswer, denseRanks, drawTurn, updateRankingRow } from "./playground_turn.js";

const STORAGE_KEY = "playground";
const SETTINGS = ["answers", "temperature", "top_p", "max_tokens", "system"];
const composer = document.getElementById("composer");
const messageArea = document.getElementById("message");
const conversation = document.getElementById("conversation");
const sendButton = document.getElementById("send");
const stopButton = document.getElementById("stop");
const statusLine = document.getElementById("status");
const trouble = document.getElementById("trouble");

let state = loadState();
let activeTurn = null;

function loadState() {
  const empty = { turns: [], agreement: composer.dataset.agreement, draft: "", settings: {} };
  if (new URLSearchParams(location.search).has("erased")) {
    sessionStorage.removeItem(STORAGE_KEY);
    history.replaceState(null, "", location.pathname);
    return empty;
  }
  try {
    const stored = JSON.parse(sessionStorage.getItem(STORAGE_KEY)) ?? empty;
    // Messages from before an agreement are never stored, so a conversation that began before it starts again.
    if (stored.agreement !== composer.dataset.agreement) return { ...empty, draft: stored.draft, settings: stored.settings };
    return { ...stored, turns: stored.turns.filter((turn) => turn.done) };
  } catch {
    return empty;
  }
}

function saveState() {
  state.draft = messageArea.value;
  state.settings = Object.fromEntries(SETTINGS.map((name) => [name, document.getElementById(name).value]));
  sessionStorage.setItem(STORAGE_KEY, JSON.stringify(state));
}

function showTrouble(message) {
  trouble.hidden = !message;
  trouble.textContent = message;
}

function describeError(error) {
  if (!(error instanceof ApiError)) throw error;
  return error.status === 0 ? t("playground.broken") : error.message;
}

function redraw(turn) {
  const article = drawTurn(turn, actions);
  const earlier = document.getElementById(article.id);
  const focusedPosition = earlier?.contains(document.activeElement) ? document.activeElement.closest(".answer")?.dataset.position : undefined;
  if (earlier) earlier.replaceWith(article);
  else conversation.append(article);
  if (focusedPosition !== undefined) article.querySelector(`[data-position="${focusedPosition}"]`)?.focus({ preventScroll: true });
  updateRankingRow(turn);
}

/** The messages of the conversation up to a new one, with the answers that it continues with. */
function collectMessages(text) {
  const messages = [];
  const system = document.getElementById("system").value.trim();
  if (system) messages.push({ role: "system", content: system });
  for (const turn of state.turns) {
    const answer = chosenAnswer(turn);
    if (!answer) continue;
    messages.push({ role: "user", content: turn.text }, { role: "assistant", content: answer.edited ?? answer.text });
  }
  messages.push({ role: "user", content: text });
  return messages;
}

async function send(text) {
  const last = [...state.turns].reverse().find((turn) => chosenAnswer(turn));
  const body = {
    key: state.retry?.text === text ? state.retry.key : crypto.randomUUID?.() ?? makeKey(),
    messages: collectMessages(text),
    answers: Number(document.getElementById("answers").value),
    temperature: Number(document.getElementById("temperature").value),
    top_p: Number(document.getElementById("top_p").value),
    max_tokens: Number(document.getElementById("max_tokens").value),
    ...(last ? { parent: last.key } : {}),
  };
  const turn = { key: body.key, text, answers: [], done: false, stored: false, ranks: {}, chosen: -1 };
  state.turns.push(turn);
  document.querySelector(".settings").open = false; // it would cover the answers
  setActive(turn);
  redraw(turn);
  document.getElementById(`turn-${turn.key}`).scrollIntoView({ block: "nearest" });
  try {
    await streamAnswers(body, (event) => onEvent(turn, event));
    delete state.retry;
    messageArea.value = messageArea.value.trim() === text ? "" : messageArea.value;
    statusLine.textContent = t("playground.finished");
  } catch (error) {
    state.turns.pop();
    document.getElementById(`turn-${turn.key}`)?.remove();
    state.retry = { key: turn.key, text };
    showTrouble(describeError(error));
  } finally {
    setActive(null);
    saveState();
  }
}

/** crypto.randomUUID exists on https and localhost only. */
function makeKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const text = [...bytes].map((value) => value.toString(16).padStart(2, "0")).join("");
  return [text.slice(0, 8), text.slice(8, 12), text.slice(12, 16), text.slice(16, 20), text.slice(20)].join("-");
}

function onEvent(turn, event) {
  if (event.answers !== undefined) {
    turn.answers = Array.from({ length: event.answers }, () => ({ text: "" }));
    redraw(turn);
  } else if (event.text !== undefined) {
    const answer = turn.answers[event.answer];
    answer.text += event.text;
    const textElement = document.querySelector(`#turn-${CSS.escape(turn.key)} [data-position="${event.answer}"] .answer-text`);
    textElement.textContent = answer.text;
  } else if (event.done) {
    Object.assign(turn, { done: true, stored: event.stored, reason: event.reason, state: event.state, models: event.models });
    for (const [position, id] of Object.entries(event.ids ?? {})) turn.answers[position].id = id;
    redraw(turn);
  } else {
    Object.assign(turn.answers[event.answer], { finish: event.finish, error: event.error, html: event.html });
    redraw(turn);
  }
}

function setActive(turn) {
  activeTurn = turn;
  sendButton.disabled = turn !== null;
  stopButton.hidden = turn === null;
  if (turn) {
    showTrouble("");
    statusLine.textContent = t("playground.writing");
  }
}

async function sendFeedback(turn, feedback) {
  try {
    const result = await callApi("POST", `playground/turns/${turn.key}/feedback`, feedback);
    showTrouble("");
    return result;
  } catch (error) {
    showTrouble(describeError(error));
    return null;
  }
}

const actions = {
  choose(turn, position) {
    turn.chosen = position;
    redraw(turn);
    saveState();
  },

  reveal(turn) {
    turn.answers.forEach((answer, position) => (answer.model = turn.models[position]));
    turn.revealed = true;
    redraw(turn);
    saveState();
  },

  async sendRanking(turn, allBad) {
    const positions = turn.answers.flatMap((answer, position) => (answer.id ? [position] : []));
    const ranks = denseRanks(Object.fromEntries(positions.map((position) => [position, turn.ranks[position] ?? 1])));
    const byId = Object.fromEntries(positions.map((position) => [turn.answers[position].id, ranks[position]]));
    const result = await sendFeedback(turn, { kind: "ranking", ranks: byId, all_bad: allBad });
    if (!result) return;
    for (const { answer, model } of result.models) turn.answers.find((row) => row.id === answer).model = model;
    const best = positions.find((position) => ranks[position] === 1);
    if (turn.chosen < 0 && !allBad) turn.chosen = best;
    Object.assign(turn, { ranked: true, allBad, ranks: allBad ? turn.ranks : ranks });
    redraw(turn);
    saveState();
    statusLine.textContent = t("playground.ranking_saved");
  },

  async edit(turn, position, text) {
    const answer = turn.answers[position];
    const result = await sendFeedback(turn, { kind: "edit", answer: answer.id, text });
    if (!result) return false;
    Object.assign(answer, { edited: text, html: result.html });
    turn.chosen = position;
    redraw(turn);
    saveState();
    return true;
  },

  async thumb(turn, position, up) {
    if (!(await sendFeedback(turn, { kind: "thumb", answer: turn.answers[position].id, up }))) return;
    turn.answers[position].up = up;
    redraw(turn);
    saveState();
  },

  async report(turn, reason) {
    if (!(await sendFeedback(turn, { kind: "report", reason }))) return false;
    turn.state = "review";
    redraw(turn);
    saveState();
    return true;
  },

  async exclude(turn) {
    try {
      await callApi("POST", `playground/turns/${turn.key}/exclude`);
    } catch (error) {
      showTrouble(describeError(error));
      return;
    }
    for (const later of state.turns.slice(state.turns.indexOf(turn))) {
      Object.assign(later, { stored: false, reason: "excluded", ranked: false });
      for (const answer of later.answers) delete answer.id;
      redraw(later);
    }
    saveState();
  },
};

for (const name of SETTINGS) {
  if (state.settings[name] !== undefined) document.getElementById(name).value = state.settings[name];
  document.getElementById(name).addEventListener("change", saveState);
}
messageArea.value ||= state.draft ?? ""; // a message typed before this script ran stays
messageArea.addEventListener("input", saveState);
for (const turn of state.turns) redraw(turn);

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = messageArea.value.trim();
  if (text && !activeTurn) send(text);
});
messageArea.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) composer.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && activeTurn && !document.querySelector("dialog[open]")) stopButton.click();
});
stopButton.addEventListener("click", () => {
  if (activeTurn) callApi("POST", `playground/turns/${activeTurn.key}/stop`).catch((error) => showTrouble(describeError(error)));
});
document.getElementById("new").addEventListener("click", () => {
  if (activeTurn) return;
  state.turns = [];
  conversation.replaceChildren();
  saveState();
  messageArea.focus();
});
document.getElementById("decline")?.addEventListener("click", () => {
  document.getElementById("consent").remove();
  messageArea.focus();
});
document.getElementById("erase").addEventListener("submit", (event) => {
  if (!window.confirm(t("playground.erase_confirm"))) event.preventDefault();
});
