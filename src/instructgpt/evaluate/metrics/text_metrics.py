"""How much of a reference a text holds: words in common (SQuAD, QuAC), bags of numbers and words (DROP), BLEU, ROUGE-L.

SQuAD's, DROP's and QuAC's formulas are their own scripts'; BLEU and ROUGE are those of sacrebleu and rouge-score.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import sacrebleu
from rouge_score import rouge_scorer
from scipy.optimize import linear_sum_assignment

from instructgpt.statistics.intervals import Estimate

PUNCTUATION = str.maketrans("", "", string.punctuation)
RESAMPLES = 1000


def words(text: str) -> list[str]:
    """A text as SQuAD compares it: lower case, without punctuation and the articles a, an, the."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()


def exact_match(said: str, reference: str) -> float:
    """1 where both say the same words, else 0."""
    return float(words(said) == words(reference))


def word_f1(said: str, reference: str) -> float:
    """The harmonic mean of precision and recall over words, each counted as often as it stands there; two empty texts agree."""
    got, wanted = words(said), words(reference)
    if not got or not wanted:
        return float(got == wanted)
    shared = sum((Counter(got) & Counter(wanted)).values())
    return 2 * shared / (len(got) + len(wanted))


def best(score: Callable[[str, str], float]) -> Callable[[str, Sequence[str]], float]:
    """The highest of a score over the references."""
    return lambda said, references: max(score(said, reference) for reference in references)


def squad2(score: Callable[[str, str], float], nothing: str) -> Callable[[str, Sequence[str]], float]:
    """A score by the rules of SQuAD 2.0's own script: where there is no answer, only saying nothing is right.

    Args:
        nothing: how a model says that there is no answer, and how the references say it.
    """

    def scored(said: str, references: Sequence[str]) -> float:
        right = [each for each in references if words(each) and words(each) != words(nothing)] or [""]
        return best(score)("" if words(said) == words(nothing) else said, right)

    return scored


def quac_f1(said: str, references: Sequence[str], nothing: str) -> float:
    """QuAC's F1 (Choi et al. 2018): as many references as not that there is no answer make that the only one; otherwise it is none.

    With several references left, each is left out once, the best of the others counts, and the mean of these is taken: so a person,
    who is compared with the others only, has no smaller chance.
    """
    answers = [each for each in references if words(each) != words(nothing)]
    if len(references) - len(answers) >= len(answers):
        answers = [nothing]
    if len(answers) == 1:
        return word_f1(said, answers[0])
    scores = [word_f1(said, each) for each in answers]
    return sum(max(scores[:out] + scores[out + 1 :]) for out in range(len(scores))) / len(scores)


def drop_exact_match(said: Sequence[str], reference: Sequence[str]) -> float:
    """1 where as many spans were said as the reference has, and the same ones, compared as DROP compares them."""
    return float(len(said) == len(reference) and {_drop_text(span) for span in said} == {_drop_text(span) for span in reference})


def drop_f1(said: Sequence[str], reference: Sequence[str]) -> float:
    """DROP's F1 of spans against spans (Dua et al. 2019): sets of words, aligned one to one, rounded to two decimals.

    A span of the reference with numbers in it gives nothing unless one of them was said.
    """
    got, wanted = [_bag(span) for span in said], [_bag(span) for span in reference]
    scores = np.array([[_bag_f1(mine, right) for mine in got] for right in wanted])
    rows, columns = linear_sum_assignment(-scores)
    return round(float(scores[rows, columns].sum() / max(len(got), len(wanted))), 2)


def _bag(span: str) -> frozenset[str]:
    """The words of a span."""
    return frozenset(_drop_text(span).split())


def _drop_text(span: str) -> str:
    """A span as DROP compares it: split at spaces and hyphens, without articles; numbers as numbers."""
    parts = (_drop_word(part) for part in re.split(" |-", span))
    return " ".join(part for part in parts if part.strip()).strip()


def _drop_word(word: str) -> str:
    word = word.lower()
    bare = word if _number(word) is not None else word.translate(PUNCTUATION)
    number = _number(bare)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare if number is None else str(number)).split())


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _bag_f1(got: frozenset[str], wanted: frozenset[str]) -> float:
    numbers = {word for word in wanted if _number(word) is not None}
    if numbers and not numbers & {word for word in got if _number(word) is not None}:
        return 0.0
    shared = len(got & wanted)
    precision = shared / len(got) if got else 1.0
    recall = shared / len(wanted) if wanted else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def rouge_l(said: str, reference: str) -> float:
    """ROUGE-L, the F-measure over stemmed words (rouge-score)."""
    return float(_rouge().score(reference, said)["rougeL"].fmeasure)


@cache
def _rouge() -> Any:
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def bleu(said: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> Estimate:
    """Corpus BLEU, 0 to 100 (sacrebleu's defaults: tokenizer 13a, mixed case, exponential smoothing), with a bootstrap over sentences.

    Args:
        said: (N,) translations; references: (N, any number) of each.
    """
    most = max(map(len, references))
    columns = [[each[place] if place < len(each) else None for each in references] for place in range(most)]
    value = sacrebleu.corpus_bleu(list(said), columns).score
    if len(said) < 2:
        return Estimate(value, None, None, len(said))
    counts = np.array([_counts(text, each) for text, each in zip(said, references, strict=True)])
    rng = np.random.default_rng(seed)
    drawn = np.array([_bleu_of(counts[rng.integers(len(counts), size=len(counts))].sum(0)) for _ in range(RESAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(said))


def _counts(text: str, references: Sequence[str]) -> list[int]:
    """Of one sentence: n-grams in common (4), n-grams said (4), its length, the length of the nearest reference."""
    found = sacrebleu.sentence_bleu(text, list(references))
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


def _bleu_of(counts: Sequence[int]) -> float:
    return float(sacrebleu.BLEU.compute_bleu(list(counts[:4]), list(counts[4:8]), int(counts[8]), int(counts[9])).score)
