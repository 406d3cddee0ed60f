// Forms with data-repeat: sent again by themselves while the server is busy (503), with what was typed still in them.

import { fetchAgainWhileBusy } from "./api.js";

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-repeat]");
  if (form === null) return;
  event.preventDefault();
  const button = form.querySelector("button.primary");
  const body = new URLSearchParams(new FormData(form));
  button.disabled = true;
  const response = await fetchAgainWhileBusy(form.action, { method: "POST", body, credentials: "same-origin" }).catch(() => null);
  button.disabled = false;
  if (response === null) {
    form.submit(); // the browser shows its own page for an unreachable server
  } else if (response.redirected) {
    location.assign(response.url);
  } else {
    const answer = new DOMParser().parseFromString(await response.text(), "text/html");
    document.querySelector("main").replaceWith(answer.querySelector("main"));
    document.querySelector("main input:not([type=hidden])")?.focus();
  }
});
