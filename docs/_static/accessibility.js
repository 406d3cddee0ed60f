// Names for the two side bars, keyboard focus for code that scrolls, no empty headings of tables.
document.addEventListener("DOMContentLoaded", () => {
  const names = { "sidebar-drawer": "Site navigation", "toc-drawer": "On this page" };
  for (const [name, label] of Object.entries(names)) {
    for (const aside of document.querySelectorAll(`aside.${name}`)) aside.setAttribute("aria-label", label);
  }
  for (const heading of document.querySelectorAll("th")) {
    if (!heading.textContent.trim()) heading.replaceWith(document.createElement("td")); // a corner without a name
  }
  for (const region of document.querySelectorAll("pre, .table-wrapper")) region.tabIndex = 0;
});
