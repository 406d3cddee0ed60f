// Sentences in the page's language, which the server puts into the page as JSON, and small helpers for elements.

const dataBlock = document.getElementById("words");
const sentences = dataBlock ? JSON.parse(dataBlock.textContent) : {};

/** Return a sentence with its {slots} filled. */
export function t(key, values = {}) {
  return (sentences[key] ?? key).replace(/\{(\w+)\}/g, (slot, name) => values[name] ?? slot);
}

/** Format a time of day (ms since 1970) in the browser's time zone. */
export function formatTime(timeMs, seconds = true) {
  return new Intl.DateTimeFormat(document.documentElement.lang, { timeStyle: seconds ? "medium" : "short" }).format(timeMs);
}

/** Create an element. Attributes that start with "on" are listeners; children that are strings stay text. */
export function createElement(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}
