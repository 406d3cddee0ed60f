"""Text metrics against references: word overlap (SQuAD, QuAC, DROP), BLEU, ROUGE-L.

The formulas of SQuAD, DROP and QuAC follow their own scripts; BLEU and ROUGE are those of sacrebleu and rouge-score.
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

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BLEU_RESAMPLES = 1000


def normalize_words(text: str) -> list[str]:
    """Return the words as SQuAD compares them: lower case, without punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(prediction: str, reference: str) -> float:
    return float(normalize_words(prediction) == normalize_words(reference))


def word_f1(prediction: str, reference: str) -> float:
    """Return the F1 over bags of words; two empty texts agree."""
    predicted_words, reference_words = normalize_words(prediction), normalize_words(reference)
    if not predicted_words or not reference_words:
        return float(predicted_words == reference_words)
    shared_count = sum((Counter(predicted_words) & Counter(reference_words)).values())
    return 2 * shared_count / (len(predicted_words) + len(reference_words))


def max_over_references(metric: Callable[[str, str], float]) -> Callable[[str, Sequence[str]], float]:
    return lambda prediction, references: max(metric(prediction, reference) for reference in references)


def squad2_metric(metric: Callable[[str, str], float], no_answer: str) -> Callable[[str, Sequence[str]], float]:
    """Apply SQuAD 2.0's rules to a metric: only an empty answer is right for an unanswerable question (`no_answer`)."""

    def metric_or_no_answer(prediction: str, references: Sequence[str]) -> float:
        empty: tuple[list[str], ...] = ([], normalize_words(no_answer))
        answers = [reference for reference in references if normalize_words(reference) not in empty] or [""]
        return max_over_references(metric)("" if normalize_words(prediction) in empty else prediction, answers)

    return metric_or_no_answer


def quac_f1(prediction: str, references: Sequence[str], no_answer: str) -> float:
    """Return QuAC's F1 (Choi et al. 2018).

    If at least half of the references are "no answer", that is the only reference; otherwise those are dropped. With
    several references left, the result is the mean, over leaving out each once, of the best of the others, as for a
    human answer.
    """
    answers = [reference for reference in references if normalize_words(reference) != normalize_words(no_answer)]
    if len(references) - len(answers) >= len(answers):
        answers = [no_answer]
    if len(answers) == 1:
        return word_f1(prediction, answers[0])
    f1s = [word_f1(prediction, answer) for answer in answers]
    return sum(max(f1s[:out] + f1s[out + 1 :]) for out in range(len(f1s))) / len(f1s)


def drop_exact_match(predicted_spans: Sequence[str], reference_spans: Sequence[str]) -> float:
    return float(
        len(predicted_spans) == len(reference_spans)
        and {_normalize_drop_span(span) for span in predicted_spans}
        == {_normalize_drop_span(span) for span in reference_spans}
    )


def drop_f1(predicted_spans: Sequence[str], reference_spans: Sequence[str]) -> float:
    """Return DROP's F1 of spans (Dua et al. 2019): sets of words, aligned one to one, rounded to two decimals.

    A reference span with numbers scores 0 against a predicted span that shares none of them.
    """
    predicted_bags = [_bag_of_words(span) for span in predicted_spans]
    reference_bags = [_bag_of_words(span) for span in reference_spans]
    f1s = np.array([[_bag_f1(predicted, right) for predicted in predicted_bags] for right in reference_bags])
    rows, columns = linear_sum_assignment(-f1s)
    return round(float(f1s[rows, columns].sum() / max(len(predicted_bags), len(reference_bags))), 2)


def _bag_of_words(span: str) -> frozenset[str]:
    return frozenset(_normalize_drop_span(span).split())


def _normalize_drop_span(span: str) -> str:
    """Normalize as DROP does: split at spaces and hyphens, drop articles, parse numbers."""
    parts = (_normalize_drop_word(part) for part in re.split(" |-", span))
    return " ".join(part for part in parts if part.strip()).strip()


def _normalize_drop_word(word: str) -> str:
    word = word.lower()
    stripped_word = word if _parse_number(word) is not None else word.translate(_PUNCTUATION)
    number = _parse_number(stripped_word)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", stripped_word if number is None else str(number)).split())


def _parse_number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _bag_f1(predicted_bag: frozenset[str], reference_bag: frozenset[str]) -> float:
    numbers = {word for word in reference_bag if _parse_number(word) is not None}
    if numbers and not numbers & {word for word in predicted_bag if _parse_number(word) is not None}:
        return 0.0
    shared_count = len(predicted_bag & reference_bag)
    precision = shared_count / len(predicted_bag) if predicted_bag else 1.0
    recall = shared_count / len(reference_bag) if reference_bag else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def rouge_l(prediction: str, reference: str) -> float:
    return float(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure)


@cache
def _rouge_scorer() -> Any:
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0) -> Estimate:
    """Return corpus BLEU, 0 to 100 (sacrebleu's defaults), with a bootstrap over sentences."""
    max_references = max(map(len, references))
    reference_columns = [[r[i] if i < len(r) else None for r in references] for i in range(max_references)]
    value = sacrebleu.corpus_bleu(list(predictions), reference_columns).score
    if len(predictions) < 2:
        return Estimate(value, None, None, len(predictions))
    counts = np.array([_bleu_counts(text, correct) for text, correct in zip(predictions, references, strict=True)])
    rng = np.random.default_rng(seed)
    # BLEU is a function of summed n-gram counts, so a resample needs no new matching
    resamples = (rng.integers(len(counts), size=len(counts)) for _ in range(_BLEU_RESAMPLES))
    low, high = np.quantile([_bleu_from_counts(counts[rows].sum(0)) for rows in resamples], [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(predictions))


def _bleu_counts(text: str, references: Sequence[str]) -> list[int]:
    """Return a sentence's matching n-grams (4), all n-grams (4), its length, and that of the nearest reference."""
    score = sacrebleu.sentence_bleu(text, list(references))
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def _bleu_from_counts(counts: Sequence[int]) -> float:
    return float(sacrebleu.BLEU.compute_bleu(list(counts[:4]), list(counts[4:8]), int(counts[8]), int(counts[9])).score)
