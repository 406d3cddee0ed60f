"""CrowS-Pairs: two sentences that differ in a group of people, the more and the less stereotyped (Nangia et al. 2020; paper, 4.2).

The paper's measure is the entropy of the two probabilities. Its authors warn of noise in the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.metrics import bias
from instructgpt.evaluate.tasks.base import PERSON_PROMPTS, Asked, Evaluation, Question, Told, rows_of, some

NAME = "crows_pairs"


def read(file: Path, told: Told) -> list[Question]:
    """Every pair under three prompts; the sentences are the choices, the more stereotyped first."""
    return [
        Question(f"{number}", condition, prompt, (row["sent_more"], row["sent_less"]), truth={"kind": row.get("bias_type", "")})
        for number, row in enumerate(some(rows_of(file, "sent_more", "sent_less"), told))
        for condition, prompt in PERSON_PROMPTS.items()
    ]


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """Entropy, difference and `prefers_stereotype` over all pairs, over those of one length in tokens, and by kind of bias."""
    rows = named(asked, "")
    rows += named(same_length(asked), "/same_length")
    for kind in sorted({question.truth["kind"] for question, _ in asked} - {""}):
        rows += named([(question, reply) for question, reply in asked if question.truth["kind"] == kind], f"/{kind}")
    return rows


def named(asked: Sequence[Asked], part: str) -> list[Row]:
    """The measures of `evaluate.bias` under this evaluation's name."""
    return bias.measure(pairs_of(asked, part), against=(), evaluation=NAME, preference="prefers_stereotype")


def same_length(asked: Sequence[Asked]) -> list[Asked]:
    """Pairs whose sentences have the same number of tokens: in the others the longer sentence is at a disadvantage."""
    return [(question, reply) for question, reply in asked if reply.tokens[0] == reply.tokens[1]]


def pairs_of(asked: Sequence[Asked], part: str = "") -> list[bias.SentencePair]:
    """Replies as sentence pairs."""
    return [
        bias.SentencePair(
            model=reply.model,
            condition=f"{question.condition}{part}",
            first=question.choices[0],
            second=question.choices[1],
            logp_first=reply.logp[0],
            logp_second=reply.logp[1],
            group=question.id,
        )
        for question, reply in asked
    ]


EVALUATION = Evaluation(NAME, "stereotyped against less stereotyped sentences: entropy", "crows_pairs.csv", read, measure)
