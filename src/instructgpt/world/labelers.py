"""Simulated labelers: people with tastes of their own and a bad day now and then, who know the truth of the small world.

They stand behind the same protocol as real people (`records.Labelers`), so the offline demo is the pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from instructgpt.errors import BadInput
from instructgpt.records import LABELS, Cohort, Completion, Demonstration, Prompt, Ranking
from instructgpt.world.utility import MAX_UTILITY, WEIGHTS, Judgement
from instructgpt.world.world import World

MEAN_TASTES: Mapping[Cohort, Mapping[str, float]] = {
    "training": dict.fromkeys(WEIGHTS, 1.0),
    "heldout": {"follow": 0.8, "constraint": 1.2, "truth": 1.2, "clean": 0.7, "stopped": 0.8, "rambling": 0.5},
}
"""How much a cohort cares for each part, as a factor on its true weight."""
PEOPLE: Mapping[Cohort, int] = {"training": 20, "heldout": 10}
NOISE = 1.2
"""Standard deviation of a labeler's slip on one completion, set so that two training labelers agree on about 73 % of decided pairs."""
TIE = 0.25
"""Completions this close to the best of their rank share it."""


@dataclass(frozen=True)
class Labeler:
    """One simulated person: a weight for each part of a judgement."""

    name: str
    weights: Mapping[str, float]

    def worth(self, judgement: Judgement) -> float:
        """What a completion is worth to this person, before noise."""
        return sum(self.weights[name] * part for name, part in judgement.parts().items())


def make_people(cohort: Cohort, count: int, rng: Random) -> list[Labeler]:
    """People whose weights scatter by a third around their cohort's."""
    tastes = MEAN_TASTES[cohort]
    return [
        Labeler(f"{cohort}-{number:02}", {name: weight * tastes[name] * max(0.1, rng.gauss(1, 0.35)) for name, weight in WEIGHTS.items()})
        for number in range(count)
    ]


class SimulatedLabelers:
    """A cohort of simulated people; everything they do follows from the seed, the order of the calls plays no part.

    Args:
        people: how many there are.
        per_prompt: how many of them rank each list of completions; each gives a ranking of their own.
        noise: the standard deviation of their slips, in units of utility.
    """

    def __init__(
        self, world: World, cohort: Cohort = "training", people: int | None = None, per_prompt: int = 1, seed: int = 0, noise: float = NOISE
    ) -> None:
        if cohort not in MEAN_TASTES:
            raise BadInput(f"no cohort '{cohort}'; there are: {', '.join(MEAN_TASTES)}")
        self.people = make_people(cohort, people if people is not None else PEOPLE[cohort], Random(f"{world.seed} {cohort}"))
        if not 1 <= per_prompt <= len(self.people):
            raise BadInput(f"per_prompt is {per_prompt}, expected 1 to {len(self.people)}, the number of people")
        self.world, self.cohort, self.per_prompt, self.seed, self.noise = world, cohort, per_prompt, seed, noise

    def demonstrate(self, prompts: Sequence[Prompt]) -> list[Demonstration]:
        """A right answer to each prompt, in somebody's words. Raises BadInput for a prompt that is not of this world."""
        made: list[Demonstration] = []
        for index, prompt in enumerate(prompts):
            rng = Random(f"{self.seed} {self.cohort} demonstration {index} {prompt.text}")
            person = rng.choice(self.people)
            answer = self.world.task(prompt.text).gold(rng)
            made.append(Demonstration(prompt=prompt.text, completion=answer, labeler=person.name, source="simulated"))
        return made

    def rank(self, candidates: Sequence[Sequence[Completion]]) -> list[Ranking]:
        """`per_prompt` rankings for each list of completions of one prompt, with ratings and labels.

        Raises:
            BadInput: fewer than two completions, completions of different prompts, or a prompt that is not of this world.
        """
        rankings: list[Ranking] = []
        for index, completions in enumerate(candidates):
            if len(completions) < 2 or len({completion.prompt for completion in completions}) != 1:
                raise BadInput(f"list {index} of completions to rank: expected two or more completions of one prompt")
            judgements = [self.world.judge(each.prompt, each.completion, each.finish) for each in completions]
            drawn = Random(f"{self.seed} {self.cohort} {index} {completions[0].prompt}").sample(self.people, self.per_prompt)
            rankings += [self._ranking(person, index, completions, judgements) for person in drawn]
        return rankings

    def _ranking(self, person: Labeler, index: int, completions: Sequence[Completion], judgements: Sequence[Judgement]) -> Ranking:
        worths = [
            person.worth(judgement)
            + Random(f"{self.seed} {person.name} {index} {each.prompt} {each.completion} {each.finish}").gauss(0, self.noise)
            for each, judgement in zip(completions, judgements, strict=True)
        ]
        return Ranking(
            prompt=completions[0].prompt,
            completions=tuple(each.completion for each in completions),
            ranks=ranks(worths),
            labeler=person.name,
            cohort=self.cohort,
            source="simulated",
            models=tuple(each.model for each in completions),
            finish=tuple(each.finish for each in completions),
            ratings=tuple(min(7, max(1, round(1 + 6 * worth / MAX_UTILITY))) for worth in worths),
            labels=tuple(labels(judgement, each.completion) for judgement, each in zip(judgements, completions, strict=True)),
        )


def ranks(worths: Sequence[float]) -> tuple[int, ...]:
    """Ranks from 1, the highest worth first; whatever lies within TIE of the best of a rank shares it."""
    given, rank, best = [0] * len(worths), 0, float("inf")
    for position in sorted(range(len(worths)), key=lambda each: -worths[each]):
        if best - worths[position] > TIE:
            rank, best = rank + 1, worths[position]
        given[position] = rank
    return tuple(given)


def labels(judgement: Judgement, completion: str) -> dict[str, bool | None]:
    """The answers to Table 3 that follow from the truth; nothing in this world is sexual or violent."""
    known = {
        "fails_instruction": judgement.follow < 0.5,
        "inappropriate": judgement.clean < 1,
        "hallucination": judgement.invented,
        "satisfies_constraint": None if judgement.constraint is None else bool(judgement.constraint),
        "opinion": any(word in completion.split() for word in ("like", "lovely", "awful")),
    }
    return {name: known.get(name, False) for name in LABELS}
