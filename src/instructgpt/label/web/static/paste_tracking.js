// The pasted share of a text, and its length in words.

/** Count words; in scripts without spaces with the browser's word segmenter, if it has one. */
export function countWords(text, language = document.documentElement.lang) {
  if (!text.trim()) return 0;
  if (text.length > 50_000 || !("Segmenter" in Intl)) return text.trim().split(/\s+/u).length;
  const parts = new Intl.Segmenter(language, { granularity: "word" }).segment(text);
  let count = 0;
  for (const { isWordLike } of parts) count += isWordLike ? 1 : 0;
  return count;
}

/** The share of inserted characters that were pasted or dropped. `share` is null before the first character. */
export class PasteTracker {
  constructor(share = null, length = 0) {
    this.pasted = share === null ? 0 : share * length;
    this.typed = share === null ? 0 : (1 - share) * length;
  }

  track(field, onChange = () => {}) {
    field.addEventListener("beforeinput", (event) => {
      const length = (event.data ?? event.dataTransfer?.getData("text/plain") ?? "").length;
      if (event.inputType === "insertFromPaste" || event.inputType === "insertFromDrop") this.pasted += length;
      else if (event.inputType.startsWith("insert")) this.typed += length || 1;
      onChange();
    });
  }

  get share() {
    const totalLength = this.pasted + this.typed;
    return totalLength === 0 ? null : Math.round((1000 * this.pasted) / totalLength) / 1000;
  }
}
