// Sentences of the page's language, handed over by the server in a data block.

const block = document.getElementById("words");
const sentences = block ? JSON.parse(block.textContent) : {};

/** A sentence with its {slots} filled. */
export function t(key, values = {}) {
  return (sentences[key] ?? key).replace(/\{(\w+)\}/g, (slot, name) => values[name] ?? slot);
}

/** The time of day, as this browser writes it. */
export function clock(at, seconds = true) {
  const shape = { hour: "2-digit", minute: "2-digit", ...(seconds ? { second: "2-digit" } : {}), hourCycle: "h23" };
  return new Intl.DateTimeFormat(document.documentElement.lang, shape).format(at);
}

/** An element with attributes and children; text stays text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}
