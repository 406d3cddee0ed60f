// What every page gets: wide tables that the keyboard can scroll, the page's own link in sight, times in the reader's zone, buttons that copy.

document.documentElement.classList.add("js");

for (const box of document.querySelectorAll(".scroll, .side, .full-text")) {
  if (box.scrollWidth > box.clientWidth && !box.hasAttribute("tabindex")) box.tabIndex = 0;
}

const shape = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
for (const time of document.querySelectorAll("time[datetime]")) time.textContent = shape.format(new Date(time.dateTime));

for (const here of document.querySelectorAll(".top nav a[aria-current]")) {
  const nav = here.parentElement;
  nav.scrollLeft = here.offsetLeft - nav.offsetLeft - (nav.clientWidth - here.offsetWidth) / 2;
}

for (const button of document.querySelectorAll("[data-copies]")) {
  const field = button.parentElement.querySelector("input");
  button.addEventListener("click", async () => {
    field.select();
    await navigator.clipboard?.writeText(field.value).then(() => (button.textContent = button.dataset.done), () => {});
  });
}
