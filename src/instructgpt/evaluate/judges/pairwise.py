"""Models side by side before a judge: which completions meet, what its verdicts say, and how far the judge can be trusted.

Two completions that meet are one game: two matches, each completion standing first once. A game counts when both matches have a verdict;
what is left of it then is two rankings, so that a judge who follows the place alone calls a draw. Everything after that is what people's
rankings go through as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from instructgpt.evaluate.aggregate import Observation, Row, per_model, row
from instructgpt.evaluate.judges.llm_judge import Better, Match, Verdict
from instructgpt.records import Completion, Ranking
from instructgpt.statistics.agreement import compare, summary
from instructgpt.statistics.pair_judgments import Ranked

EVALUATION = "preference"
RANKS: dict[Better, tuple[int, int]] = {"first": (1, 2), "second": (2, 1), "tie": (1, 1)}
TURNED: dict[Better, Better] = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class Game:
    """A model's completion of a prompt beside another model's, usually the baseline's."""

    one: Completion
    other: Completion

    def matches(self) -> tuple[Match, Match]:
        """Each standing first once."""
        prompt, a, b = self.one.prompt, self.one.completion, self.other.completion
        return Match(prompt, a, b), Match(prompt, b, a)


@dataclass(frozen=True, slots=True)
class Judged:
    """A game with the verdicts on its two matches, both seen from the one: `first` says that the one is better."""

    game: Game
    straight: Verdict | None
    turned: Verdict | None

    @property
    def verdicts(self) -> tuple[Better, Better] | None:
        """Both verdicts, or None where one is missing or could not be read."""
        if self.straight is None or self.turned is None or self.straight.better is None or self.turned.better is None:
            return None
        return self.straight.better, TURNED[self.turned.better]

    @property
    def won(self) -> float | None:
        """What the game is worth to the one: 0, 1/4, 1/2, 3/4 or 1."""
        return None if self.verdicts is None else sum({"first": 0.5, "tie": 0.25, "second": 0.0}[each] for each in self.verdicts)

    def rankings(self, labeler: str) -> list[Ranking]:
        """The two matches as rankings, the completion that stood first being the first."""
        if self.verdicts is None or self.straight is None or self.turned is None:
            return []
        shown = ((self.game.one, self.game.other, self.straight), (self.game.other, self.game.one, self.turned))
        return [
            Ranking(
                prompt=first.prompt,
                completions=(first.completion, second.completion),
                ranks=RANKS[verdict.better],
                labeler=labeler,
                models=(first.model, second.model),
                finish=(first.finish, second.finish),
            )
            for first, second, verdict in shown
            if verdict.better is not None
        ]


def games_of(candidates: Iterable[Sequence[Completion]], baseline: str) -> list[Game]:
    """Every completion beside the baseline's of the same list; the two of a list of two in any case. Equal models do not meet."""
    games: list[Game] = []
    for completions in candidates:
        rivals = [each for each in completions if each.model == baseline]
        others = [each for each in completions if each.model != baseline]
        if not rivals and len(others) == 2:
            rivals = [others.pop()]
        games += [Game(one, rival) for rival in rivals for one in others if one.model != rival.model]
    return games


def judged_games(games: Sequence[Game], verdicts: Sequence[Verdict | None]) -> list[Judged]:
    """Games with the verdicts on their matches, which stand in the order of the games, two each."""
    return [Judged(game, *verdicts[2 * place : 2 * place + 2]) for place, game in enumerate(games)]


def reliability(judged: Sequence[Judged], condition: str) -> list[Row]:
    """How a judge judged each model: what was lost, and how much the place had a say. Clustered by prompt.

    `unanswered` of all matches; `unparsable` of those answered; `first_shown_wins` of those decided; `position_consistency`, the share of
    games whose two verdicts are the same, of games with both; `win_probability`, the judge's own probability that the model is better,
    and `verdict_mass`, the probability that it gives a verdict at all, where they were read.
    """
    found: dict[str, list[Observation]] = {name: [] for name in (*MEASURES, "position_consistency", "win_probability")}
    for each in judged:
        model, clusters = each.game.one.model, (each.game.one.prompt,)
        for verdict in (each.straight, each.turned):
            for name, measure in MEASURES.items():
                if (value := measure(verdict)) is not None:
                    found[name].append(Observation(model, value, clusters))
        if each.verdicts is not None:
            found["position_consistency"].append(Observation(model, float(len(set(each.verdicts)) == 1), clusters))
            if (one := _probability(each)) is not None:
                found["win_probability"].append(Observation(model, one, clusters))
    return [row for name, seen in found.items() for row in per_model(EVALUATION, name, condition, seen, share=True)]


def _first_wins(verdict: Verdict | None) -> float | None:
    decided = verdict is not None and verdict.better in ("first", "second")
    return float(verdict.better == "first") if verdict is not None and decided else None


MEASURES: dict[str, Callable[[Verdict | None], float | None]] = {
    "unanswered": lambda verdict: float(verdict is None),
    "unparsable": lambda verdict: None if verdict is None else float(verdict.better is None),
    "first_shown_wins": _first_wins,
    "verdict_mass": lambda verdict: None if verdict is None else verdict.mass,
}
"""What is measured of each match: a number, or None where the question does not apply."""


def _probability(judged: Judged) -> float | None:
    """The mean of both matches, which takes the place out."""
    straight, turned = judged.straight, judged.turned
    if straight is None or turned is None or straight.first is None or turned.first is None:
        return None
    return (straight.first + 1 - turned.first) / 2


def with_people(judged: Sequence[Judged], rankings: Sequence[Ranking], judge: str) -> list[Row]:
    """How often a judge decides as a labeler did (`judge_agreement`), and two labelers as each other, over pairs that both decided.

    What the judge says of a game is the mean of its two verdicts.
    """
    rows: list[Ranked] = [Ranked(each.prompt, (each.labeler,), each.completions, each.ranks) for each in rankings if each.labeler]
    for each in judged:
        if each.won is not None:
            sign = np.sign(each.won - 0.5)
            texts = (each.game.one.completion, each.game.other.completion)
            rows.append(Ranked(each.game.one.prompt, judge, texts, (float(1 - sign), float(1 + sign))))
    cells = compare(rows)
    mine = np.array([labeler == judge for labeler in cells.labelers], dtype=np.bool_)
    if not mine.any():
        return []
    beside = mine[cells.first] | mine[cells.second]
    found = {"judge_agreement": cells.where(beside), "labeler_agreement": cells.where(~beside)}
    shares = {name: summary(part).decided for name, part in found.items()}
    return [row(EVALUATION, name, judge, judge, share) for name, share in shares.items() if share.n]
