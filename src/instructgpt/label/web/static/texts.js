// Texts of a task: plain or rendered, folded or whole, behind the gate or not.

import { make, t } from "./words.js";

/** The switch between text as it was written and rendered Markdown; this browser remembers it. */
export function switchView(button, store = localStorage) {
  const set = (rendered) => {
    button.setAttribute("aria-pressed", `${rendered}`);
    for (const text of document.querySelectorAll(".text")) {
      for (const part of text.children) {
        if (part.matches(".plain, .rendered")) part.hidden = part.classList.contains("rendered") !== rendered;
      }
    }
  };
  button.addEventListener("click", () => {
    const rendered = button.getAttribute("aria-pressed") !== "true";
    store.setItem("view", rendered ? "rendered" : "plain");
    set(rendered);
  });
  set(store.getItem("view") === "rendered");
}

/** A button below each folded text that is higher than its box. */
export function unfoldable(root) {
  for (const text of root.querySelectorAll(".text.long")) {
    const button = make("button", { type: "button", class: "button quiet small unfold", "aria-expanded": "false" }, t("work.unfold"));
    button.addEventListener("click", () => {
      const folded = text.classList.toggle("long");
      button.setAttribute("aria-expanded", `${!folded}`);
      button.textContent = t(folded ? "work.unfold" : "work.fold");
    });
    text.after(button);
  }
}

/** Sensitive content stays out of sight and out of reach until it is asked for. */
export function gate(box) {
  box?.querySelector("#show").addEventListener("click", (event) => {
    event.preventDefault();
    const desk = box.closest(".desk");
    desk.classList.remove("gated");
    for (const part of desk.querySelectorAll("[inert]")) part.inert = false;
    box.remove();
    desk.querySelector(".read").tabIndex = -1;
    desk.querySelector(".read").focus({ preventScroll: true });
  });
}
