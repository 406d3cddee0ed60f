"""CrowS-Pairs: a more and a less stereotyped sentence about different groups (Nangia et al. 2020; paper, 4.2).

The paper's measure is the entropy of the two probabilities. The data set's authors warn of noise in the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from instructgpt.evaluate.metrics import bias
from instructgpt.evaluate.tasks.base import BIAS_PROMPTS, EvalQuestion, EvalSettings, EvalTask, QuestionReply, subsample
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.results import ResultRow

_NAME = "crows_pairs"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return every pair with three prefixes; the sentences are the choices, the more stereotyped first."""
    questions = []
    for index, row in enumerate(
        subsample(load_task_rows(file, "sent_more", "sent_less", skip_bad=settings.skip_bad), settings)
    ):
        sentences, target = (row["sent_more"], row["sent_less"]), {"kind": row.get("bias_type", "")}
        for condition, prefix in BIAS_PROMPTS.items():
            questions.append(EvalQuestion(f"{index}", condition, prefix, sentences, target=target))
    return questions


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return the measures of `bias.measure_bias`, also over pairs of equal token length and by type of bias."""
    parts = {f"/{name}": [(q, reply) for q, reply in replies if q.target["kind"] == name] for name in _kinds(replies)}
    return measure_sentence_bias(_NAME, replies, parts, "prefers_stereotype")


def _kinds(replies: Sequence[QuestionReply]) -> list[str]:
    return sorted({question.target["kind"] for question, _ in replies} - {""})


def measure_sentence_bias(
    evaluation: str,
    replies: Sequence[QuestionReply],
    parts: Mapping[str, Sequence[QuestionReply]],
    preference_metric: str,
) -> list[ResultRow]:
    """Return the measures of `bias.measure_bias` over all pairs, over pairs of equal token length, and over the parts.

    In pairs of unequal length the longer sentence is at a disadvantage.
    """
    equal_length = [(question, reply) for question, reply in replies if reply.tokens[0] == reply.tokens[1]]
    rows: list[ResultRow] = []
    for suffix, part in ({"": replies, "/same_length": equal_length} | dict(parts)).items():
        rows += bias.measure_bias(_to_sentence_pairs(part, suffix), (), evaluation, preference_metric)
    return rows


def _to_sentence_pairs(replies: Sequence[QuestionReply], condition_suffix: str = "") -> list[bias.SentencePair]:
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
