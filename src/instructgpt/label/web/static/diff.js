// What two texts have in common, word by word: Myers' shortest edit script (An O(ND) difference algorithm, 1986), on words.

const LONGEST = 4000; // words of one text
const MOST = 600; // edits; texts that differ more have nothing to show side by side

/** Words with the spaces behind them; a character each where a script has no spaces. */
export function words(text) {
  return text.match(/[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+\s*|\s+/gu) ?? [];
}

/** Runs [{text, kind}] of each text, kind "same" or "changed"; null when they are too long or too different to compare. */
export function compare(left, right) {
  const one = words(left), other = words(right);
  if (one.length > LONGEST || other.length > LONGEST) return null;
  const pairs = common(one, other);
  if (pairs === null) return null;
  const sameLeft = new Set(pairs.map(([at]) => at)), sameRight = new Set(pairs.map(([, at]) => at));
  return { left: runs(one, sameLeft), right: runs(other, sameRight), share: share(one, pairs, other) };
}

/** Places [[in one, in other]] of a longest common subsequence; null after MOST edits. */
export function common(one, other) {
  const last = one.length + other.length, trace = [];
  const same = (x, y) => one[x].trim() === other[y].trim();
  let reach = new Map([[1, 0]]);
  for (let edits = 0; edits <= Math.min(last, MOST); edits++) {
    trace.push(new Map(reach));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && reach.get(k - 1) < reach.get(k + 1));
      let x = down ? reach.get(k + 1) : reach.get(k - 1) + 1;
      while (x < one.length && x - k < other.length && same(x, x - k)) x++;
      reach.set(k, x);
      if (x >= one.length && x - k >= other.length) return walkBack(trace, one.length, other.length);
    }
  }
  return null;
}

function walkBack(trace, x, y) {
  const pairs = [];
  for (let edits = trace.length - 1; edits >= 0; edits--) {
    const reach = trace[edits], k = x - y;
    const down = k === -edits || (k !== edits && reach.get(k - 1) < reach.get(k + 1));
    const before = down ? k + 1 : k - 1;
    const startX = edits === 0 ? 0 : reach.get(before), startY = edits === 0 ? 0 : startX - before;
    while (x > startX && y > startY && pairs.push([--x, --y]));
    [x, y] = [startX, startY];
  }
  return pairs.reverse();
}

function runs(list, same) {
  const out = [];
  list.forEach((text, at) => {
    const kind = same.has(at) ? "same" : "changed";
    if (out.at(-1)?.kind === kind) out.at(-1).text += text;
    else out.push({ text, kind });
  });
  return out;
}

function share(one, pairs, other) {
  return one.length + other.length === 0 ? 1 : (2 * pairs.length) / (one.length + other.length);
}
