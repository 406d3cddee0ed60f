"""The paper's automatic evaluations on public data, one file each, all of one shape. Adding one: docs/evaluate.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from instructgpt.evaluate.rows import Row
from instructgpt.evaluate.tasks import (
    cnn_dm,
    crows_pairs,
    drop,
    hellaswag,
    preference,
    quac,
    real_toxicity,
    reward_model,
    rte,
    squad,
    sst2,
    tldr,
    truthfulqa,
    winogender,
    wmt15,
    wsc,
)
from instructgpt.evaluate.tasks.shape import Evaluation

if TYPE_CHECKING:
    from instructgpt.evaluate.command import EvaluateConfig

EVALUATIONS: dict[str, Evaluation] = {
    module.EVALUATION.name: module.EVALUATION
    for module in (
        winogender,
        crows_pairs,
        real_toxicity,
        truthfulqa,
        hellaswag,
        wsc,
        rte,
        sst2,
        quac,
        squad,
        drop,
        wmt15,
        cnn_dm,
        tldr,
    )
}
"""By name, in the order of the paper's Table 14."""

WHOLE: dict[str, Callable[[EvaluateConfig], tuple[list[Row], str | None]]] = {
    "preference": preference.run,
    "reward_model": reward_model.run,
}
"""Evaluations that ask no list of questions: each takes the options, and gives rows and why it stopped early, where it did."""
