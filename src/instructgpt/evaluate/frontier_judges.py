"""Judges of the frontier: the small world, which knows the truth, or a reward model of the other half of the rankings.

Both say what an answer is worth, and rank answers to the same prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Protocol

from instructgpt.evaluate.best_of_n_policy import score_answers
from instructgpt.evaluate.reward.metrics import ScoredRanking
from instructgpt.evaluate.reward.scores import ranks_by_score
from instructgpt.evaluate.sampled_answers import answer_key
from instructgpt.models.reward_model import ScalarModel
from instructgpt.records import Cohort, Completion, Ranking
from instructgpt.world import SimulatedLabelers, World

_LABELERS = 3
"""Labelers of each cohort of the small world who rank a list of answers."""


class FrontierJudge(Protocol):
    """What a judge knows, and what it is asked."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the values that `assess` returns."""

    @property
    def win_rates(self) -> tuple[tuple[str, Cohort], ...]:
        """Splits of the prompts and cohorts whose win rates are reported; the first one chooses each best point."""

    def assess(self, answers: Sequence[Completion]) -> list[tuple[float, ...]]:
        """Return the measures of each answer."""

    def rank(self, lists: Sequence[Sequence[Completion]], cohort: Cohort) -> Sequence[Ranking]:
        """Have a cohort rank lists of answers, each to one prompt."""


class WorldJudge:
    """The small world: true utility, the held-out labelers' mean opinion without noise, and labelers of both cohorts.

    Args:
        seed: of the labelers' noise.
    """

    measures = ("utility", "heldout")
    win_rates: tuple[tuple[str, Cohort], ...] = (("validation", "training"), ("test", "training"), ("test", "heldout"))

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._seed = world, seed
        self._people = SimulatedLabelers(world, "heldout").labelers
        self._cache: dict[tuple[str, str, str], tuple[float, ...]] = {}

    def assess(self, answers: Sequence[Completion]) -> list[tuple[float, ...]]:
        return [self._assess_answer(answer) for answer in answers]

    def _assess_answer(self, answer: Completion) -> tuple[float, ...]:
        key = (answer.prompt, answer.completion, answer.finish)
        if key not in self._cache:
            judgment = self._world.judge(*key)
            opinion = fmean(person.perceived_utility(judgment) for person in self._people)
            self._cache[key] = judgment.utility, opinion
        return self._cache[key]

    def rank(self, lists: Sequence[Sequence[Completion]], cohort: Cohort) -> Sequence[Ranking]:
        return SimulatedLabelers(self._world, cohort, per_prompt=_LABELERS, seed=self._seed).rank(lists)


class RewardModelJudge:
    """A reward model whose rankings no method was trained on: its score, and ranks by it."""

    measures = ("heldout",)
    win_rates: tuple[tuple[str, Cohort], ...] = (("validation", "heldout"), ("test", "heldout"))

    def __init__(self, reward: ScalarModel) -> None:
        self._reward = reward
        self._cache: dict[tuple[str, bool, str, str], float] = {}

    def assess(self, answers: Sequence[Completion]) -> list[tuple[float, ...]]:
        return [(score,) for score in self._score(answers)]

    def _score(self, answers: Sequence[Completion]) -> list[float]:
        new = [answer for answer in answers if answer_key(answer) not in self._cache]
        if new:
            self._cache |= dict(zip(map(answer_key, new), score_answers(self._reward, new), strict=True))
        return [self._cache[answer_key(answer)] for answer in answers]

    def rank(self, lists: Sequence[Sequence[Completion]], cohort: Cohort) -> Sequence[Ranking]:
        return [_rank_by_score(answers, self._score(answers), cohort) for answers in lists]


def _rank_by_score(answers: Sequence[Completion], scores: Sequence[float], cohort: Cohort) -> ScoredRanking:
    fields: Mapping[str, object] = {
        **answers[0].prompt_columns(),
        "completions": [answer.completion for answer in answers],
        "ranks": ranks_by_score(scores),
        "models": [answer.model for answer in answers],
        "finish": [answer.finish for answer in answers],
        "scores": scores,
        "cohort": cohort,
    }
    return ScoredRanking.model_validate(fields)
