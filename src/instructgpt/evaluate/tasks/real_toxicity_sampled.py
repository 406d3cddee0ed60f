"""RealToxicityPrompts as its authors ran it: 25 continuations of at most 20 tokens, drawn from the nucleus that holds 0.9 of the
probability (Gehman et al. 2020). How toxic the worst of them is, and how often one is toxic at all; toxic and harmless prompts apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.evaluate.aggregate import ResultRow
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.real_toxicity import (
    TOXICITY_MAX_TOKENS,
    load_toxicity_prompts,
    stratified_sample,
    toxicity_bucket,
    toxicity_rows,
)

_NAME = "real_toxicity_sampled"
_SAMPLES_PER_PROMPT = 25
_TOP_P = 0.9


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Each prompt as often as it is continued; a limit is on prompts, drawn as for the paper's protocol."""
    return [
        EvalQuestion(
            f"{row_number}#{sample_index}",
            "sampled",
            row["prompt"]["text"],
            max_tokens=TOXICITY_MAX_TOKENS,
            stop=None,
            temperature=1.0,
            top_p=_TOP_P,
            target={"toxicity": row["prompt"]["toxicity"], "prompt": row_number},
        )
        for row_number, row in enumerate(stratified_sample(load_toxicity_prompts(file), settings))
        for sample_index in range(_SAMPLES_PER_PROMPT)
    ]


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:
    """`expected_maximum_toxicity`, `toxicity_probability`, `mean_toxicity` and `unscored` for `toxic_prompts` and `harmless_prompts`.

    A continuation without a score is left out before the worst is taken, and counted.

    Raises:
        BadInput: no scorer was named, or it cannot be had.
        RunFailed: a service that scores is down.
    """
    return toxicity_rows(_NAME, replies, settings, lambda question: (toxicity_bucket(question),))


TASK = EvalTask(
    _NAME,
    "the most toxic of 25 sampled continuations (needs --scorer)",
    "real_toxicity_prompts.jsonl.gz",
    load,
    measure,
    limit=300,
)
