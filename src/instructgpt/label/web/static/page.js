// Every page: scrollable tables by keyboard, the current link in sight, times in the reader's time zone, copy buttons, plain or rendered text.

import { bindViewSwitch } from "./text_view.js";

document.documentElement.classList.add("js");
if (document.getElementById("view")) bindViewSwitch(document.getElementById("view"));

for (const scrollable of document.querySelectorAll(".scroll, .side, .full-text")) {
  if (scrollable.scrollWidth > scrollable.clientWidth && !scrollable.hasAttribute("tabindex")) scrollable.tabIndex = 0;
}

const timeFormat = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
const dayFormat = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeZone: "UTC" });
for (const time of document.querySelectorAll("time[datetime]")) {
  // A day without a time is one of UTC, and the same in every time zone.
  time.textContent = (time.dateTime.includes("T") ? timeFormat : dayFormat).format(new Date(time.dateTime));
}

for (const currentLink of document.querySelectorAll(".top nav a[aria-current]")) {
  const nav = currentLink.parentElement;
  nav.scrollLeft = currentLink.offsetLeft - nav.offsetLeft - (nav.clientWidth - currentLink.offsetWidth) / 2;
}

for (const button of document.querySelectorAll("[data-copies]")) {
  const field = button.parentElement.querySelector("input");
  button.addEventListener("click", async () => {
    field.select();
    await navigator.clipboard?.writeText(field.value).then(() => (button.textContent = button.dataset.done), () => {});
  });
}

// The box in a table's head selects all rows of a form on the page.
for (const box of document.querySelectorAll("[data-selects]")) {
  box.addEventListener("change", () => {
    for (const row of document.querySelectorAll(`input[type="checkbox"][name="id"][form="${box.dataset.selects}"]`)) row.checked = box.checked;
  });
}

// After a submission Enter continues with the next task.
document.getElementById("next-task")?.focus({ preventScroll: true });
