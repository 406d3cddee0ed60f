// Word diff of two texts: Myers' shortest edit script (An O(ND) Difference Algorithm, 1986), on words.

const MAX_WORDS = 4000; // in each text
const MAX_EDITS = 600; // a diff of texts that differ more is of no use

/** Split into words with the spaces after them; in scripts without spaces into characters. */
export function splitWords(text) {
  return text.match(/[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+\s*|\s+/gu) ?? [];
}

/** Return runs [{text, kind}] of each text, kind "same" or "changed"; null when they are too long or too different. */
export function diffTexts(left, right) {
  const leftWords = splitWords(left), rightWords = splitWords(right);
  if (leftWords.length > MAX_WORDS || rightWords.length > MAX_WORDS) return null;
  const pairs = longestCommonSubsequence(leftWords, rightWords);
  if (pairs === null) return null;
  const sameLeft = new Set(pairs.map(([index]) => index)), sameRight = new Set(pairs.map(([, index]) => index));
  const total = leftWords.length + rightWords.length;
  return { left: groupRuns(leftWords, sameLeft), right: groupRuns(rightWords, sameRight), share: total === 0 ? 1 : (2 * pairs.length) / total };
}

/** Return index pairs [[left, right]] of a longest common subsequence; null after MAX_EDITS edits. */
export function longestCommonSubsequence(leftWords, rightWords) {
  const last = leftWords.length + rightWords.length, trace = [];
  const same = (x, y) => leftWords[x].trim() === rightWords[y].trim();
  let furthestX = new Map([[1, 0]]);
  for (let edits = 0; edits <= Math.min(last, MAX_EDITS); edits++) {
    trace.push(new Map(furthestX));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && furthestX.get(k - 1) < furthestX.get(k + 1));
      let x = down ? furthestX.get(k + 1) : furthestX.get(k - 1) + 1;
      while (x < leftWords.length && x - k < rightWords.length && same(x, x - k)) x++;
      furthestX.set(k, x);
      if (x >= leftWords.length && x - k >= rightWords.length) return backtrack(trace, leftWords.length, rightWords.length);
    }
  }
  return null;
}

function backtrack(trace, x, y) {
  const pairs = [];
  for (let edits = trace.length - 1; edits >= 0; edits--) {
    const furthestX = trace[edits], k = x - y;
    const down = k === -edits || (k !== edits && furthestX.get(k - 1) < furthestX.get(k + 1));
    const previousK = down ? k + 1 : k - 1;
    const startX = edits === 0 ? 0 : furthestX.get(previousK), startY = edits === 0 ? 0 : startX - previousK;
    while (x > startX && y > startY && pairs.push([--x, --y]));
    [x, y] = [startX, startY];
  }
  return pairs.reverse();
}

function groupRuns(words, commonIndices) {
  const runs = [];
  words.forEach((text, index) => {
    const kind = commonIndices.has(index) ? "same" : "changed";
    if (runs.at(-1)?.kind === kind) runs.at(-1).text += text;
    else runs.push({ text, kind });
  });
  return runs;
}
