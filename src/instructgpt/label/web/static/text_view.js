// The texts of a task: plain or rendered, folded or in full, behind the gate for sensitive content or not.

import { createElement, t } from "./i18n.js";

/** Bind the button that switches between plain text and rendered Markdown. The choice is stored in this browser. */
export function bindViewSwitch(button, storage = localStorage) {
  const setView = (rendered) => {
    button.setAttribute("aria-pressed", `${rendered}`);
    for (const text of document.querySelectorAll(".text")) {
      for (const part of text.children) {
        if (part.matches(".plain, .rendered")) part.hidden = part.classList.contains("rendered") !== rendered;
      }
    }
  };
  button.addEventListener("click", () => {
    const rendered = button.getAttribute("aria-pressed") !== "true";
    storage.setItem("view", rendered ? "rendered" : "plain");
    setView(rendered);
  });
  setView(storage.getItem("view") === "rendered");
}

/** Add a button below each folded text. */
export function addUnfoldButtons(root) {
  for (const text of root.querySelectorAll(".text.long")) {
    const button = createElement("button", { type: "button", class: "button quiet small unfold", "aria-expanded": "false" }, t("work.unfold"));
    button.addEventListener("click", () => {
      const folded = text.classList.toggle("long");
      button.setAttribute("aria-expanded", `${!folded}`);
      button.textContent = t(folded ? "work.unfold" : "work.fold");
    });
    text.after(button);
  }
}

/** Bind the gate: sensitive content is hidden and inert until the labeler asks for it. */
export function bindSensitivityGate(box) {
  box?.querySelector("#show").addEventListener("click", (event) => {
    event.preventDefault();
    const taskArea = box.closest(".desk");
    taskArea.classList.remove("gated");
    for (const part of taskArea.querySelectorAll("[inert]")) part.inert = false;
    box.remove();
    taskArea.querySelector(".read").tabIndex = -1;
    taskArea.querySelector(".read").focus({ preventScroll: true });
  });
}
