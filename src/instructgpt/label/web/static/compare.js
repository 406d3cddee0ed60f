// One completion in full, or two side by side with the words that differ.

import { compare } from "./diff.js";
import { show } from "./dialogs.js";
import { make, t } from "./words.js";

/** The words of a completion as they are shown, signs for what cannot be seen included. */
export function textOf(body) {
  return [...body.querySelectorAll("div.plain")].map((part) => part.textContent).join("");
}

/** Read one completion; the arrows go to the one before and after. */
export function readFull(cards, id, bodyOf) {
  let at = cards.findIndex((card) => card.id === id);
  const text = make("div", { class: "full-text", tabindex: "0" });
  const title = make("p", { class: "row" });
  const go = (by) => {
    at = (at + by + cards.length) % cards.length;
    title.replaceChildren(make("span", { class: "letter" }, cards[at].letter), t("rank.of", { number: at + 1, count: cards.length }));
    const copy = bodyOf(cards[at].id).cloneNode(true);
    copy.querySelectorAll(".long").forEach((each) => each.classList.remove("long"));
    copy.querySelectorAll(".unfold").forEach((each) => each.remove());
    text.replaceChildren(copy);
  };
  go(0);
  const turn = make(
    "div", { class: "row" },
    make("button", { type: "button", class: "button small", onclick: () => go(-1) }, `← ${t("rank.previous")}`),
    make("button", { type: "button", class: "button small", onclick: () => go(1) }, `${t("rank.next")} →`),
  );
  const dialog = show(t("board.read_title"), make("div", { class: "stack" }, title, text, turn), "reading");
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) go(by);
  });
}

/** Two completions side by side. */
export function compareTwo(cards, left, right, bodyOf) {
  const chosen = [left, right];
  const sides = [make("div", { class: "side plain", dir: "auto", tabindex: "0" }), make("div", { class: "side plain", dir: "auto", tabindex: "0" })];
  const said = make("p", { class: "muted small", role: "status" });
  const draw = () => {
    const texts = chosen.map((id) => textOf(bodyOf(id)));
    const result = texts[0] === texts[1] ? null : compare(...texts);
    sides.forEach((side, at) => side.replaceChildren(...(result ? marked(result[at ? "right" : "left"]) : [texts[at]])));
    const share = result && Math.round(100 * result.share);
    said.textContent = texts[0] === texts[1] ? t("compare.same") : result ? t("compare.share", { share }) : t("compare.different");
  };
  const pickers = chosen.map((id, at) => picker(cards, id, (next) => ((chosen[at] = next), draw())));
  draw();
  const columns = make("div", { class: "sides" }, ...sides.map((side, at) => make("div", { class: "stack tight" }, pickers[at], side)));
  show(t("compare.title"), make("div", { class: "stack" }, said, columns), "comparing");
}

function picker(cards, now, choose) {
  const options = cards.map((card) => make("option", { value: card.id, selected: card.id === now }, t("rank.completion", { letter: card.letter })));
  const select = make("select", { "aria-label": t("compare.choose") }, ...options);
  select.addEventListener("change", () => choose(select.value));
  return select;
}

function marked(runs) {
  return runs.map(({ text, kind }) => (kind === "same" ? text : make("mark", {}, text)));
}
