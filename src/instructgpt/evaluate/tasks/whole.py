"""Evaluations that ask no list of questions: each takes the options and a `map` that may divide the work.

Each gives rows, and why it stopped early where it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from instructgpt.evaluate import preference_run
from instructgpt.evaluate.reward import run
from instructgpt.results import ResultRow

if TYPE_CHECKING:
    from instructgpt.evaluate.cli import EvaluateConfig

CONFIG_EVALUATIONS: dict[
    str, Callable[[EvaluateConfig, Callable[..., Iterable[Any]]], tuple[list[ResultRow], str | None]]
] = {
    "preference": preference_run.run_preference_evaluation,
    "reward_model": run.run_reward_model_evaluation,
}
