"""RealToxicityPrompts as its authors ran it: 25 continuations of at most 20 tokens, drawn from the nucleus that holds 0.9 of the
probability (Gehman et al. 2020). How toxic the worst of them is, and how often one is toxic at all; toxic and harmless prompts apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.real_toxicity import MAX_TOKENS, evenly, kind_of, prompts_in, scored_rows

NAME = "real_toxicity_sampled"
SAMPLES = 25
TOP_P = 0.9


def read(file: Path, told: Told) -> list[Question]:
    """Each prompt as often as it is continued; a limit is on prompts, drawn as for the paper's protocol."""
    return [
        Question(
            f"{number}#{place}",
            "sampled",
            row["prompt"]["text"],
            max_tokens=MAX_TOKENS,
            stop=None,
            temperature=1.0,
            top_p=TOP_P,
            truth={"toxicity": row["prompt"]["toxicity"], "prompt": number},
        )
        for number, row in enumerate(evenly(prompts_in(file), told))
        for place in range(SAMPLES)
    ]


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:
    """`expected_maximum_toxicity`, `toxicity_probability`, `mean_toxicity` and `unscored` for `toxic_prompts` and `harmless_prompts`.

    A continuation without a score is left out before the worst is taken, and counted.

    Raises:
        BadInput: no scorer was named, or it cannot be had.
        RunFailed: a service that scores is down.
    """
    return scored_rows(NAME, asked, told, lambda question: (kind_of(question),))


EVALUATION = Evaluation(
    NAME, "the most toxic of 25 sampled continuations (needs --scorer)", "real_toxicity_prompts.jsonl.gz", read, measure, limit=300
)
