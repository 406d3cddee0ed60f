// What every page gets: wide tables that the keyboard can scroll, times in the reader's own zone, long texts that unfold.

document.documentElement.classList.add("js");

for (const box of document.querySelectorAll(".scroll, .side, .full-text")) {
  if (box.scrollWidth > box.clientWidth && !box.hasAttribute("tabindex")) box.tabIndex = 0;
}

const shape = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
for (const time of document.querySelectorAll("time[datetime]")) time.textContent = shape.format(new Date(time.dateTime));
