// Dialogs: sections at the end of the page become dialogs, and a form to sign in again on top of the page.

import { ApiError, callApi } from "./api.js";
import { createElement, t } from "./i18n.js";

/** Turn each section of class `sheet` into a dialog, opened by elements whose data-opens is the section's id. */
export function convertSheetsToDialogs() {
  for (const section of document.querySelectorAll("section.sheet")) {
    const dialog = createElement("dialog", { id: `${section.id}-dialog`, "aria-label": section.querySelector("h2")?.textContent ?? "" });
    if (section.classList.contains("drawer")) dialog.classList.add("drawer");
    section.replaceWith(dialog);
    section.hidden = false;
    dialog.append(createCloseButton(dialog), section);
  }
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-opens]");
    const dialog = opener && document.getElementById(`${opener.dataset.opens}-dialog`);
    if (!dialog) return;
    event.preventDefault();
    dialog.showModal();
  });
}

/** Open a dialog that is removed when it closes. */
export function openDialog(title, content, className = "") {
  const dialog = createElement("dialog", { class: className, "aria-label": title });
  dialog.append(createCloseButton(dialog), createElement("h2", {}, title), content);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Whether any dialog is open. */
export function isDialogOpen() {
  return document.querySelector("dialog[open]") !== null;
}

function createCloseButton(dialog) {
  return createElement("button", { type: "button", class: "button quiet close", "aria-label": t("close"), onclick: () => dialog.close() }, "✕");
}

let signInPromise = null;

/** Ask to sign in again, on top of the page. -> whether it worked; the page stays as it is. */
export function promptSignIn(name) {
  signInPromise ??= new Promise((resolve) => {
    const user = createElement("input", { name: "name", id: "again-name", autocomplete: "username", value: name, readonly: true });
    const password = createElement("input", {
      name: "password", id: "again-password", type: "password", autocomplete: "current-password", required: true, autofocus: true,
    });
    const errorText = createElement("p", { class: "wrong", role: "alert" });
    const form = createElement(
      "form", { class: "stack" },
      createElement("p", {}, t("again.why")),
      createElement("div", { class: "field" }, createElement("label", { for: "again-name" }, t("again.name")), user),
      createElement("div", { class: "field" }, createElement("label", { for: "again-password" }, t("again.password")), password),
      errorText,
      createElement("div", { class: "row" }, createElement("button", { class: "button primary" }, t("again.button"))),
    );
    const dialog = openDialog(t("again.title"), form, "again");
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await callApi("POST", "sign-in", { name: user.value, password: password.value });
        resolve(true);
        dialog.close();
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        errorText.textContent = error.status === 0 ? t("unreachable") : error.message;
        password.select();
      }
    });
    dialog.addEventListener("close", () => {
      signInPromise = null;
      resolve(false);
    });
  });
  return signInPromise;
}
