// Dialogs: what stands on the page's end without script becomes a dialog with it; and the one that asks to sign in again.

import { ApiError, call, renewToken } from "./api.js";
import { make, t } from "./words.js";

/** Turn each section with class `sheet` into a dialog, opened by what has data-opens with its id. */
export function prepare() {
  for (const section of document.querySelectorAll("section.sheet")) {
    const dialog = make("dialog", { id: `${section.id}-dialog`, "aria-label": section.querySelector("h2")?.textContent ?? "" });
    if (section.classList.contains("drawer")) dialog.classList.add("drawer");
    section.replaceWith(dialog);
    section.hidden = false;
    dialog.append(closing(dialog), section);
  }
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-opens]");
    const dialog = opener && document.getElementById(`${opener.dataset.opens}-dialog`);
    if (!dialog) return;
    event.preventDefault();
    dialog.showModal();
  });
}

/** A dialog of its own, removed when it is closed. */
export function show(title, content, className = "") {
  const dialog = make("dialog", { class: className, "aria-label": title });
  dialog.append(closing(dialog), make("h2", {}, title), content);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Whether a dialog is open. */
export function isOpen() {
  return document.querySelector("dialog[open]") !== null;
}

function closing(dialog) {
  return make("button", { type: "button", class: "button quiet close", "aria-label": t("close"), onclick: () => dialog.close() }, "✕");
}

let asking = null;

/** Ask to sign in again, on top of the page. Resolves when it worked; the page stays as it is. */
export function signIn(name) {
  asking ??= new Promise((resolve) => {
    const user = make("input", { name: "name", id: "again-name", autocomplete: "username", value: name, readonly: true });
    const password = make("input", {
      name: "password", id: "again-password", type: "password", autocomplete: "current-password", required: true, autofocus: true,
    });
    const wrong = make("p", { class: "wrong", role: "alert" });
    const form = make(
      "form", { class: "stack" },
      make("p", {}, t("again.why")),
      make("div", { class: "field" }, make("label", { for: "again-name" }, t("again.name")), user),
      make("div", { class: "field" }, make("label", { for: "again-password" }, t("again.password")), password),
      wrong,
      make("div", { class: "row" }, make("button", { class: "button primary" }, t("again.button"))),
    );
    const dialog = show(t("again.title"), form, "again");
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        const me = await call("POST", "sign-in", { name: user.value, password: password.value });
        renewToken(me.csrf);
        resolve(true);
        dialog.close();
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        wrong.textContent = error.status === 0 ? t("unreachable") : error.message;
        password.select();
      }
    });
    dialog.addEventListener("close", () => {
      asking = null;
      resolve(false);
    });
  });
  return asking;
}
