// What was typed and what was pasted, and how long a text is.

/** Words: runs between spaces; scripts without spaces by the browser's own word breaks where it has them. */
export function countWords(text, language = document.documentElement.lang) {
  if (!text.trim()) return 0;
  if (text.length > 50_000 || !("Segmenter" in Intl)) return text.trim().split(/\s+/u).length;
  const parts = new Intl.Segmenter(language, { granularity: "word" }).segment(text);
  let count = 0;
  for (const { isWordLike } of parts) count += isWordLike ? 1 : 0;
  return count;
}

/** The share of what went into the fields that was pasted or dropped; null before anything did. */
export class Pasted {
  constructor(share = null, length = 0) {
    this.pasted = share === null ? 0 : share * length;
    this.typed = share === null ? 0 : (1 - share) * length;
  }

  watch(field, changed = () => {}) {
    field.addEventListener("beforeinput", (event) => {
      const length = (event.data ?? event.dataTransfer?.getData("text/plain") ?? "").length;
      if (event.inputType === "insertFromPaste" || event.inputType === "insertFromDrop") this.pasted += length;
      else if (event.inputType.startsWith("insert")) this.typed += length || 1;
      changed();
    });
  }

  get share() {
    const all = this.pasted + this.typed;
    return all === 0 ? null : Math.round((1000 * this.pasted) / all) / 1000;
  }
}
