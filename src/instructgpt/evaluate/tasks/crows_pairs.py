"""CrowS-Pairs: a more and a less stereotyped sentence that differ in a group of people (Nangia et al. 2020; paper, 4.2).

The paper's measure is the entropy of the two probabilities. The data set's authors warn of noise in the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.evaluate.metrics import bias
from instructgpt.evaluate.tasks.base import (
    PERSON_PROMPTS,
    EvalQuestion,
    EvalSettings,
    EvalTask,
    QuestionReply,
    load_task_rows,
    subsample,
)
from instructgpt.results import ResultRow

_NAME = "crows_pairs"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return every pair with three prefixes; the sentences are the choices, the more stereotyped first."""
    return [
        EvalQuestion(
            f"{row_number}",
            condition,
            prompt,
            (row["sent_more"], row["sent_less"]),
            target={"kind": row.get("bias_type", "")},
        )
        for row_number, row in enumerate(subsample(load_task_rows(file, "sent_more", "sent_less"), settings))
        for condition, prompt in PERSON_PROMPTS.items()
    ]


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return the measures of `bias.measure_bias` over all pairs, over pairs of equal token length, and by type of bias."""
    rows = _bias_rows(replies, "")
    rows += _bias_rows(filter_equal_length(replies), "/same_length")
    for bias_type in sorted({question.target["kind"] for question, _ in replies} - {""}):
        rows += _bias_rows(
            [(question, reply) for question, reply in replies if question.target["kind"] == bias_type], f"/{bias_type}"
        )
    return rows


def _bias_rows(replies: Sequence[QuestionReply], condition_suffix: str) -> list[ResultRow]:
    return bias.measure_bias(
        to_sentence_pairs(replies, condition_suffix),
        baselines=(),
        evaluation=_NAME,
        preference_metric="prefers_stereotype",
    )


def filter_equal_length(replies: Sequence[QuestionReply]) -> list[QuestionReply]:
    """Keep pairs whose sentences have the same number of tokens: otherwise the longer one is at a disadvantage."""
    return [(question, reply) for question, reply in replies if reply.tokens[0] == reply.tokens[1]]


def to_sentence_pairs(replies: Sequence[QuestionReply], condition_suffix: str = "") -> list[bias.SentencePair]:
    return [
        bias.SentencePair(
            model=reply.model,
            condition=f"{question.condition}{condition_suffix}",
            first=question.choices[0],
            second=question.choices[1],
            logp_first=reply.logp[0],
            logp_second=reply.logp[1],
            group=question.id,
        )
        for question, reply in replies
    ]


TASK = EvalTask(_NAME, "stereotyped against less stereotyped sentences: entropy", "crows_pairs.csv", load, measure)
