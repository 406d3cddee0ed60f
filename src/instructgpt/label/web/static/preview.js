// Previews of Markdown below the field in which it is written. The server renders, with the same rules as for readers.

import { callApi } from "./api.js";
import { t } from "./i18n.js";

const DELAY_MS = 400;

/** Bind the buttons with data-previews (the id of a field): each opens and closes the preview below its field. */
export function bindPreviews(root) {
  for (const button of root.querySelectorAll("[data-previews]")) {
    const field = document.getElementById(button.dataset.previews), box = document.getElementById(`${field.id}-preview`);
    let timer = null, renderedText = null, isRendering = false;
    const update = async () => {
      if (box.hidden || isRendering || field.value === renderedText) return;
      isRendering = true;
      const text = field.value;
      try {
        const { html } = await callApi("POST", "preview", { text });
        // The server's HTML has passed the sanitizer and the page's policy allows no inline script.
        box.innerHTML = html || t("write.preview_empty");
        renderedText = text;
      } catch (error) {
        box.textContent = error.status ? error.message : t("unreachable");
      } finally {
        isRendering = false;
      }
      if (field.value !== text) schedule();
    };
    const schedule = () => (clearTimeout(timer), (timer = setTimeout(update, DELAY_MS)));
    button.addEventListener("click", () => {
      box.hidden = !box.hidden;
      button.setAttribute("aria-expanded", `${!box.hidden}`);
      update();
    });
    field.addEventListener("input", schedule);
    root.addEventListener("input", schedule);
  }
}
