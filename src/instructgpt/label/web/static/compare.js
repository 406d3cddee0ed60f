// Dialogs with one completion in full, or two side by side with their differences marked.

import { openDialog } from "./dialogs.js";
import { diffTexts } from "./diff.js";
import { createElement, t } from "./i18n.js";

/** Return the text of a completion as it is shown, with signs for invisible characters. */
export function visibleText(body) {
  return [...body.querySelectorAll("div.plain")].map((part) => part.textContent).join("");
}

/** Open a completion; the arrow keys go to the previous and the next one. */
export function openCompletion(cards, id, getBody) {
  let index = cards.findIndex((card) => card.id === id);
  const text = createElement("div", { class: "full-text", tabindex: "0" });
  const title = createElement("p", { class: "row" });
  const goBy = (offset) => {
    index = (index + offset + cards.length) % cards.length;
    const letter = createElement("span", { class: "letter" }, cards[index].letter);
    title.replaceChildren(letter, t("rank.of", { number: index + 1, count: cards.length }));
    const copy = getBody(cards[index].id).cloneNode(true);
    copy.querySelectorAll(".long").forEach((folded) => folded.classList.remove("long"));
    copy.querySelectorAll(".unfold").forEach((button) => button.remove());
    text.replaceChildren(copy);
  };
  goBy(0);
  const navigation = createElement(
    "div", { class: "row" },
    createElement("button", { type: "button", class: "button small", onclick: () => goBy(-1) }, `← ${t("rank.previous")}`),
    createElement("button", { type: "button", class: "button small", onclick: () => goBy(1) }, `${t("rank.next")} →`),
  );
  const dialog = openDialog(t("board.read_title"), createElement("div", { class: "stack" }, title, text, navigation), "reading");
  dialog.addEventListener("keydown", (event) => {
    const offset = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (offset) goBy(offset);
  });
}

/** Open two completions side by side. */
export function openComparison(cards, leftId, rightId, getBody) {
  const selectedIds = [leftId, rightId];
  const sides = selectedIds.map(() => createElement("div", { class: "side plain", dir: "auto", tabindex: "0" }));
  const status = createElement("p", { class: "muted small", role: "status" });
  const update = () => {
    const texts = selectedIds.map((id) => visibleText(getBody(id)));
    const isSame = texts[0] === texts[1], diff = isSame ? null : diffTexts(...texts);
    const contents = diff ? [highlightChanges(diff.left), highlightChanges(diff.right)] : texts.map((text) => [text]);
    sides.forEach((side, index) => side.replaceChildren(...contents[index]));
    const share = diff && Math.round(100 * diff.share);
    status.textContent = isSame ? t("compare.same") : diff ? t("compare.share", { share }) : t("compare.different");
  };
  const pickers = selectedIds.map((id, index) => createPicker(cards, id, (newId) => ((selectedIds[index] = newId), update())));
  update();
  const columns = sides.map((side, index) => createElement("div", { class: "stack tight" }, pickers[index], side));
  const content = createElement("div", { class: "stack" }, status, createElement("div", { class: "sides" }, ...columns));
  openDialog(t("compare.title"), content, "comparing");
}

function createPicker(cards, selectedId, onSelect) {
  const options = cards.map(({ id, letter }) =>
    createElement("option", { value: id, selected: id === selectedId }, t("rank.completion", { letter })),
  );
  const select = createElement("select", { "aria-label": t("compare.choose") }, ...options);
  select.addEventListener("change", () => onSelect(select.value));
  return select;
}

function highlightChanges(runs) {
  return runs.map(({ text, kind }) => (kind === "same" ? text : createElement("mark", {}, text)));
}
