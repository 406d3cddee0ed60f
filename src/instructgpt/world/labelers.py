"""Simulated labelers with individual tastes and noise, who know the truth of the small world.

They implement `records.Labelers`, so the offline demo is the real pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from instructgpt.errors import InputError
from instructgpt.records import LABELS, Cohort, Completion, Demonstration, Prompt, Ranking
from instructgpt.world.utility import MAX_UTILITY, UTILITY_WEIGHTS, CompletionJudgment
from instructgpt.world.world import World

_COHORT_TASTES: Mapping[Cohort, Mapping[str, float]] = {
    "training": dict.fromkeys(UTILITY_WEIGHTS, 1.0),
    "heldout": {"follow": 0.8, "constraint": 1.2, "truth": 1.2, "clean": 0.7, "stopped": 0.8, "rambling": 0.5},
}
"""Factor of each cohort on the true weight of a component."""
_COHORT_SIZES: Mapping[Cohort, int] = {"training": 20, "heldout": 10}
LABELER_NOISE = 1.2
"""Noise (standard deviation) on one completion's utility;
two training labelers then agree on about 73 % of decided pairs.
"""
_TIE_MARGIN = 0.25
"""Completions within this distance of the best of their rank tie."""


@dataclass(frozen=True)
class SimulatedLabeler:
    """A simulated person: a weight for each component of a judgment."""

    name: str
    weights: Mapping[str, float]

    def perceived_utility(self, judgment: CompletionJudgment) -> float:
        """Return the utility of a completion to this person, before noise."""
        return sum(self.weights[name] * part for name, part in judgment.components().items())


def _make_labelers(cohort: Cohort, count: int, rng: Random) -> list[SimulatedLabeler]:
    """Sample people whose weights scatter by a third around their cohort's."""
    tastes = _COHORT_TASTES[cohort]
    return [
        SimulatedLabeler(
            f"{cohort}-{index:02}",
            {name: weight * tastes[name] * max(0.1, rng.gauss(1, 0.35)) for name, weight in UTILITY_WEIGHTS.items()},
        )
        for index in range(count)
    ]


class SimulatedLabelers:
    """A cohort of simulated people. Results depend on the seed only, not on the order of calls.

    Args:
        people: number of labelers.
        per_prompt: labelers who rank each list of completions; each gives a ranking.
        noise: standard deviation of their noise, in units of utility.
    """

    def __init__(
        self,
        world: World,
        cohort: Cohort = "training",
        labeler_count: int | None = None,
        per_prompt: int = 1,
        seed: int = 0,
        noise: float = LABELER_NOISE,
    ) -> None:
        if cohort not in _COHORT_TASTES:
            raise InputError(f"no cohort '{cohort}'; there are: {', '.join(_COHORT_TASTES)}")
        self.labelers = _make_labelers(
            cohort,
            labeler_count if labeler_count is not None else _COHORT_SIZES[cohort],
            Random(f"{world.seed} {cohort}"),
        )
        if not 1 <= per_prompt <= len(self.labelers):
            raise InputError(f"per_prompt is {per_prompt}, expected 1 to {len(self.labelers)}, the number of people")
        self.world, self.cohort, self.per_prompt, self.seed, self.noise = world, cohort, per_prompt, seed, noise

    def demonstrate(self, prompts: Sequence[Prompt]) -> list[Demonstration]:
        """Return a right answer to each prompt, in varying words. Raises InputError for a prompt outside this world."""
        demonstrations: list[Demonstration] = []
        for index, prompt in enumerate(prompts):
            rng = Random(f"{self.seed} {self.cohort} demonstration {index} {prompt.prompt}")
            labeler = rng.choice(self.labelers)
            answer = self.world.task(prompt.prompt).gold_answer(rng)
            demonstrations.append(
                Demonstration(prompt=prompt.prompt, completion=answer, labeler=labeler.name, source="simulated")
            )
        return demonstrations

    def rank(self, candidates: Sequence[Sequence[Completion]]) -> list[Ranking]:
        """Return `per_prompt` rankings for each list of completions of one prompt, with ratings and labels.

        Raises:
            InputError: fewer than two completions, completions of different prompts, or a prompt outside this world.
        """
        rankings: list[Ranking] = []
        for index, completions in enumerate(candidates):
            if len(completions) < 2 or len({completion.prompt for completion in completions}) != 1:
                raise InputError(f"list {index} of completions to rank: expected two or more completions of one prompt")
            judgments = [self.world.judge(each.prompt, each.completion, each.finish) for each in completions]
            labelers = Random(f"{self.seed} {self.cohort} {index} {completions[0].prompt}").sample(
                self.labelers, self.per_prompt
            )
            rankings += [self._ranking(person, index, completions, judgments) for person in labelers]
        return rankings

    def _ranking(
        self,
        labeler: SimulatedLabeler,
        index: int,
        completions: Sequence[Completion],
        judgments: Sequence[CompletionJudgment],
    ) -> Ranking:
        utilities = [
            labeler.perceived_utility(judgment)
            + Random(
                f"{self.seed} {labeler.name} {index} {completion.prompt} {completion.completion} {completion.finish}"
            ).gauss(0, self.noise)
            for completion, judgment in zip(completions, judgments, strict=True)
        ]
        return Ranking(
            prompt=completions[0].prompt,
            completions=tuple(completion.completion for completion in completions),
            ranks=ranks_by_utility(utilities),
            labeler=labeler.name,
            cohort=self.cohort,
            source="simulated",
            models=tuple(completion.model for completion in completions),
            finish=tuple(completion.finish for completion in completions),
            ratings=tuple(min(7, max(1, round(1 + 6 * worth / MAX_UTILITY))) for worth in utilities),
            labels=tuple(
                _labels_from_judgment(judgment, completion.completion)
                for judgment, completion in zip(judgments, completions, strict=True)
            ),
        )


def ranks_by_utility(utilities: Sequence[float]) -> tuple[int, ...]:
    """Return ranks from 1, highest utility first; utilities within the tie margin of a rank's best share it."""
    assigned_ranks, rank, best = [0] * len(utilities), 0, float("inf")
    for position in sorted(range(len(utilities)), key=lambda each: -utilities[each]):
        if best - utilities[position] > _TIE_MARGIN:
            rank, best = rank + 1, utilities[position]
        assigned_ranks[position] = rank
    return tuple(assigned_ranks)


def _labels_from_judgment(judgment: CompletionJudgment, completion: str) -> dict[str, bool | None]:
    """Answer the questions of Table 3 from the truth; nothing in this world is sexual or violent."""
    derived = {
        "fails_instruction": not judgment.follows_instruction,
        "inappropriate": judgment.clean < 1,
        "hallucination": judgment.hallucinated,
        "satisfies_constraint": None if judgment.constraint is None else bool(judgment.constraint),
        "opinion": any(word in completion.split() for word in ("like", "lovely", "awful")),
    }
    return {name: derived.get(name, False) for name in LABELS}
