// One message of the conversation with its answers: text as it comes, ranking, edits, thumbs, report.

import { createElement, t } from "./i18n.js";
import { openDialog } from "./dialogs.js";

export const LETTERS = "ABCD";

/** Return the answer that the conversation continues with: the chosen one, else the first that has a text. */
export function chosenAnswer(turn) {
  return turn.answers[turn.chosen] ?? turn.answers.find((answer) => answer.text && !answer.error) ?? null;
}

/** Return {position: rank} as dense ranks: 1 is best, equal ranks tie. */
export function denseRanks(ranks) {
  const levels = [...new Set(Object.values(ranks))].sort((first, second) => first - second);
  return Object.fromEntries(Object.entries(ranks).map(([position, rank]) => [position, 1 + levels.indexOf(rank)]));
}

/** Draw a turn again. `actions`: exclude, sendRanking, edit, thumb, report, choose, each with (turn, ...). */
export function drawTurn(turn, actions) {
  const article = createElement("article", { class: "exchange", id: `turn-${turn.key}` });
  article.append(drawMessage(turn, actions));
  const answers = createElement("div", { class: "answers" });
  turn.answers.forEach((answer, position) => answers.append(drawAnswer(turn, answer, position, actions)));
  article.append(answers);
  if (turn.done) article.append(drawTurnActions(turn, actions));
  article.addEventListener("keydown", (event) => onTurnKey(event, turn, actions));
  return article;
}

function drawMessage(turn, actions) {
  const row = createElement("div", { class: "row" });
  if (turn.done) row.append(drawStorage(turn));
  if (turn.done && turn.stored) {
    row.append(createElement("button", { type: "button", class: "button quiet small exclude", onclick: () => actions.exclude(turn) }, t("playground.exclude")));
  }
  return createElement("div", { class: "said" }, createElement("p", { dir: "auto" }, turn.text), row);
}

function drawStorage(turn) {
  if (turn.stored) return createElement("span", { class: "chip good" }, t(turn.state === "review" ? "playground.in_review" : "playground.is_kept"));
  return createElement("span", { class: "chip" }, t(`playground.not_kept_${turn.reason}`));
}

function drawAnswer(turn, answer, position, actions) {
  const letter = LETTERS[position];
  const isWriting = !turn.done && !answer.finish && !answer.error;
  const isChosen = turn.done && turn.answers.length > 1 && chosenAnswer(turn) === answer;
  const card = createElement("section", {
    class: `answer panel${isWriting ? " writing" : ""}${isChosen ? " chosen" : ""}`,
    tabindex: "0", "aria-label": t("playground.answer", { letter }), "data-position": position, "aria-busy": `${isWriting}`,
  });
  const header = createElement("header", {}, createElement("strong", {}, letter));
  if (answer.model) header.append(createElement("span", { class: "chip" }, answer.model));
  card.append(header);
  card.append(drawAnswerText(answer));
  if (answer.finish === "length" || answer.finish === "stopped") card.append(createElement("p", { class: "muted small" }, t(`playground.finish_${answer.finish}`)));
  if (answer.edited) card.append(createElement("p", { class: "muted small" }, t("playground.edited")));
  if (turn.done && !answer.error && answer.text) card.append(...drawAnswerControls(turn, answer, position, actions));
  return card;
}

/** Text as it comes; the whole answer as Markdown, which the server has rendered. */
function drawAnswerText(answer) {
  if (answer.error) return createElement("div", { class: "answer-text wrong", dir: "auto" }, t("playground.failed", { reason: answer.error }));
  if (!answer.html) return createElement("div", { class: "answer-text", dir: "auto" }, answer.edited ?? answer.text);
  const box = createElement("div", { class: "answer-text prose", dir: "auto" });
  box.innerHTML = answer.html; // it has passed the server's sanitizer, and the page's policy allows no inline script
  return box;
}

function drawAnswerControls(turn, answer, position, actions) {
  const controls = [];
  const letter = LETTERS[position];
  if (turn.stored && rankable(turn).length > 1) controls.push(drawRankChoice(turn, position));
  const row = createElement("div", { class: "row" });
  if (turn.answers.length > 1) {
    const isChosen = chosenAnswer(turn) === answer;
    row.append(createElement("button", { type: "button", class: "button small", "aria-pressed": `${isChosen}`, onclick: () => actions.choose(turn, position) }, t("playground.continue")));
  }
  if (turn.stored) {
    for (const [up, name] of [[true, "playground.good"], [false, "playground.bad"]]) {
      row.append(createElement("button", {
        type: "button", class: "button quiet small", "aria-label": `${t(name)}, ${letter}`, title: t("playground.thumb_hint"),
        "aria-pressed": `${answer.up === up}`, onclick: () => actions.thumb(turn, position, up),
      }, t(name)));
    }
    row.append(createElement("button", { type: "button", class: "button quiet small", "aria-label": `${t("playground.edit")}, ${letter}`, onclick: () => openEditor(turn, answer, position, actions) }, t("playground.edit")));
  }
  controls.push(row);
  return controls;
}

function rankable(turn) {
  return turn.answers.filter((answer) => answer.id);
}

function drawRankChoice(turn, position) {
  const group = createElement("fieldset", { class: "rank-choice", disabled: Boolean(turn.ranked) });
  group.append(createElement("legend", {}, t("playground.rank")));
  for (let rank = 1; rank <= rankable(turn).length; rank += 1) {
    const input = createElement("input", {
      type: "radio", name: `rank-${turn.key}-${position}`, value: rank, checked: turn.ranks[position] === rank,
      "aria-label": t("playground.rank_of", { letter: LETTERS[position], rank }),
      onchange: () => { turn.ranks[position] = rank; updateRankingRow(turn); },
    });
    group.append(createElement("label", {}, input, createElement("span", {}, `${rank}`)));
  }
  return group;
}

/** Say the order so far, and allow to send it once each answer has a rank. */
export function updateRankingRow(turn) {
  const row = document.querySelector(`#turn-${CSS.escape(turn.key)} .ranking-row`);
  if (!row?.querySelector(".send-ranking")) return; // not stored, or ranked
  const positions = turn.answers.flatMap((answer, position) => (answer.id ? [position] : []));
  const isComplete = positions.every((position) => turn.ranks[position]);
  row.querySelector(".send-ranking").disabled = !isComplete;
  row.querySelector("output").textContent = isComplete ? formatOrder(turn) : t("playground.rank_all");
}

function formatOrder(turn) {
  const ranks = denseRanks(turn.ranks);
  const tiers = {};
  for (const [position, rank] of Object.entries(ranks)) (tiers[rank] ??= []).push(LETTERS[position]);
  return Object.keys(tiers).sort().map((rank) => tiers[rank].join(" = ")).join(" > ");
}

function drawTurnActions(turn, actions) {
  const row = createElement("div", { class: "row ranking-row" });
  if (turn.stored && rankable(turn).length > 1) {
    if (turn.ranked) {
      row.append(createElement("span", { class: "chip good" }, turn.allBad ? t("playground.all_bad_sent") : t("playground.ranked", { order: formatOrder(turn) })));
    } else {
      row.append(
        createElement("output", { class: "muted small" }, t("playground.rank_all")),
        createElement("button", { type: "button", class: "button primary small send-ranking", disabled: true, onclick: () => actions.sendRanking(turn, false) }, t("playground.send_ranking")),
        createElement("button", { type: "button", class: "button small", onclick: () => actions.sendRanking(turn, true) }, t("playground.all_bad")),
      );
    }
  }
  if (turn.stored) row.append(createElement("button", { type: "button", class: "button quiet small", onclick: () => openReport(turn, actions) }, t("playground.report")));
  if (!turn.stored && turn.models && !turn.revealed) {
    row.append(createElement("button", { type: "button", class: "button quiet small", onclick: () => actions.reveal(turn) }, t("playground.reveal")));
  }
  return row;
}

function openEditor(turn, answer, position, actions) {
  const area = createElement("textarea", { rows: "12", id: "edit-text", dir: "auto", "aria-label": t("playground.edit_title", { letter: LETTERS[position] }) });
  area.value = answer.edited ?? answer.text;
  const form = createElement("form", { class: "stack" }, createElement("p", { class: "muted" }, t("playground.edit_hint")), area,
    createElement("div", { class: "row" }, createElement("button", { class: "button primary" }, t("playground.save_edit"))));
  const dialog = openDialog(t("playground.edit_title", { letter: LETTERS[position] }), form);
  area.focus();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    actions.edit(turn, position, area.value).then((saved) => saved && dialog.close());
  });
}

function openReport(turn, actions) {
  const area = createElement("textarea", { rows: "4", id: "report-text", maxlength: "2000", dir: "auto", "aria-label": t("playground.report_reason") });
  const form = createElement("form", { class: "stack" }, createElement("p", { class: "muted" }, t("playground.report_hint")), area,
    createElement("div", { class: "row" }, createElement("button", { class: "button primary" }, t("playground.send_report"))));
  const dialog = openDialog(t("playground.report"), form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    actions.report(turn, area.value).then((saved) => saved && dialog.close());
  });
}

function onTurnKey(event, turn, actions) {
  if (event.target.closest("textarea, dialog") || event.altKey) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    const button = event.currentTarget.querySelector(".send-ranking");
    if (button && !button.disabled) actions.sendRanking(turn, false);
    return;
  }
  if (event.ctrlKey || event.metaKey) return;
  const card = event.target.closest(".answer");
  const radio = card?.querySelector(`.rank-choice:not([disabled]) input[value="${event.key}"]`);
  if (radio && /^[1-9]$/.test(event.key)) {
    event.preventDefault();
    radio.checked = true;
    radio.dispatchEvent(new Event("change"));
  } else if (event.key === "b" && event.currentTarget.querySelector(".send-ranking")) {
    actions.sendRanking(turn, true);
  }
}
