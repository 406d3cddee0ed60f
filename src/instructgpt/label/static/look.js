// What every page gets: wide tables that the keyboard can scroll.

for (const box of document.querySelectorAll(".scroll")) {
  if (box.scrollWidth > box.clientWidth && !box.hasAttribute("tabindex")) {
    box.tabIndex = 0;
  }
}
