"""Numbers with a known truth, drawn anew each time: the cases of `coverage.py` that ask whether intervals hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy import special

from instructgpt.evaluate.reward.calibration import fit_temperature
from instructgpt.statistics import agreement, intervals
from instructgpt.statistics.bradley_terry import estimate_strengths
from instructgpt.statistics.categorical_agreement import gwet_ac1, krippendorff_alpha, positive_agreement
from instructgpt.statistics.intervals import Estimate
from instructgpt.statistics.pair_judgments import LabelerRanking
from instructgpt.statistics.win_rate import length_controlled_win_rates

Array = NDArray[np.float64]
Generator = np.random.Generator
COMPLETIONS = 4
WORKLOAD_SHAPE = 0.7
_MAX_DRAWN_LABELERS = 200
MODELS = ("a", "b", "c", "d", "e", "f")


@dataclass(frozen=True, slots=True)
class Design:
    prompts: int
    labelers: int
    per_prompt: int
    unequal: bool = False

    def __str__(self) -> str:
        return f"{self.prompts}×{self.per_prompt}of{self.labelers}" + (" unequal" if self.unequal else "")

    def assign(self, rng: Generator) -> NDArray[np.int64]:
        """Draw who judges what: (P, m) labelers, no labeler twice in a row."""
        if self.labelers > _MAX_DRAWN_LABELERS:  # as good as drawing, without a table of prompts and labelers
            stride = np.arange(self.per_prompt) * (self.labelers // self.per_prompt)
            return (rng.integers(self.labelers, size=(self.prompts, 1)) + stride) % self.labelers
        weight = rng.gamma(WORKLOAD_SHAPE, size=self.labelers) + 1e-9 if self.unequal else np.ones(self.labelers)
        order = np.log(weight) + rng.gumbel(size=(self.prompts, self.labelers))
        return np.argsort(-order, axis=1)[:, : self.per_prompt]


BALANCED = [Design(n, labelers, min(labelers, 3)) for n in (10, 20, 40, 100, 400) for labelers in (2, 3, 5, 10)]
UNEQUAL = [Design(n, labelers, min(labelers, 3), True) for n in (10, 20, 40, 100, 400) for labelers in (5, 10)]
OTHERS = [Design(40, 5, 5), Design(40, 8, 3), Design(40, 3, 2, True)]
DESIGNS = [*BALANCED, *OTHERS, *UNEQUAL]
SINGLE = [Design(n, 1, 1) for n in (10, 20, 40, 100, 400)]
MANY = Design(3_000, 1_500, 4)
"""A design that is as good as the truth."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: counts over repetitions."""

    name: str
    setting: str
    design: str
    hits: int
    repetitions: int
    missing: int = 0
    """Repetitions without an interval."""
    caution: str = ""

    @property
    def share(self) -> float:
        return self.hits / max(self.repetitions - self.missing, 1)


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation: a number in a setting and design; `lines` draws it with a generator and number of repetitions."""

    setting: str
    design: Design | str
    lines: Callable[[Generator, int], list[Line]]


# --- generators ------------------------------------------------------------------------------------------------------


def rank_answers(rng: Generator, design: Design, taste: float, ties: float) -> tuple[NDArray[np.int64], Array, Array]:
    """Return who ranked (P, m), what they saw in each completion, rounded so that ties arise (P, m, K), and features.

    A completion has three features; labelers weigh them by a shared taste and one of their own (of size `taste`), and
    slip by a noise of their own size (0.5 to 1.5).
    """
    features = rng.normal(size=(design.prompts, COMPLETIONS, 3))
    weights = (1 + taste * rng.normal(size=(design.labelers, 3))) / np.sqrt(3)
    slip, width = rng.uniform(0.5, 1.5, design.labelers), ties * rng.uniform(0.5, 1.5, design.labelers)
    who = design.assign(rng)
    noise = slip[who][..., None] * rng.normal(size=(*who.shape, COMPLETIONS))
    worth = np.einsum("pkf,pmf->pmk", features, weights[who]) + noise
    step = np.maximum(width[who], 1e-9)[..., None]
    return who, np.floor(worth / step), features


def as_rankings(who: NDArray[np.int64], worth: Array) -> list[LabelerRanking]:
    ranks = (worth[..., None, :] > worth[..., :, None]).sum(-1) + 1
    return [
        LabelerRanking(p, int(labeler), range(COMPLETIONS), ranks[p, place].tolist())
        for p in range(len(who))
        for place, labeler in enumerate(who[p])
    ]


def lean(rng: Generator, design: Design, mean: float, prompt_sd: float, labeler_sd: float) -> tuple[Array, ...]:
    """Return prompts, labelers and leanings (P · m,), additive on the logit scale."""
    who = design.assign(rng)
    x = mean + prompt_sd * rng.normal(size=(design.prompts, 1)) + labeler_sd * rng.normal(size=design.labelers)[who]
    return np.repeat(np.arange(design.prompts), design.per_prompt), who.ravel(), x.ravel()


@cache
def logit_mean(share: float, deviation: float) -> float:
    """Return the mean of a normal logit of this deviation whose mean share is `share`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)

    def mean_share(mean: float) -> float:
        return float((special.expit(mean + deviation * nodes) * weights).sum() / weights.sum())

    low, high = -30.0, 30.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_share(middle) < share else (low, middle)
    return (low + high) / 2


# --- intervals -------------------------------------------------------------------------------------------------------


def cover(name: str, setting: str, design: Design, truth: float, sample: Callable[[Generator], Estimate]) -> Case:
    """Return the case of one number: how often its interval holds the truth."""

    def lines(rng: Generator, repetitions: int) -> list[Line]:
        return [count_hits(name, setting, design, truth, [sample(rng) for _ in range(repetitions)])]

    return Case(f"{name}, {setting}", design, lines)


def count_hits(name: str, setting: str, design: Design, truth: float, estimates: Sequence[Estimate]) -> Line:
    hits = missing = 0
    for estimate in estimates:
        if estimate.low is None and estimate.high is None:
            missing += 1
        else:
            low = -np.inf if estimate.low is None else estimate.low
            high = np.inf if estimate.high is None else estimate.high
            hits += low - 1e-9 <= truth <= high + 1e-9
    caution = ", ".join(sorted({estimate.caution for estimate in estimates} - {""}))
    return Line(name, setting, str(design), hits, len(estimates), missing, caution)


def shares() -> Iterator[Case]:
    """A share over prompts and labelers: a win rate, a label, truthfulness."""
    grid = [(design, 0.5, sd, 0.0) for design in DESIGNS for sd in (0.0, 0.5, 1.5)]
    grid += [(design, 0.5, 0.5, 0.5) for design in DESIGNS]
    grid += [(design, share, 0.5, 0.0) for design in DESIGNS for share in (0.01, 0.1, 0.9, 0.99)]
    grid += [(design, share, 0.0, 0.0) for design in SINGLE for share in (0.01, 0.1, 0.5, 0.9, 0.99)]
    grid += [(Design(40, 1, 1), 0.5, 0.5, 0.0), (Design(1, 8, 8), 0.25, 0.5, 0.0)]
    for design, share, labeler_sd, ties in grid:

        def sample(
            rng: Generator,
            design: Design = design,
            mean: float = logit_mean(share, float(np.hypot(1.0, labeler_sd))),
            labeler_sd: float = labeler_sd,
            ties: float = ties,
        ) -> Estimate:
            prompt, labeler, x = lean(rng, design, mean, 1.0, labeler_sd)
            won = (rng.random(len(x)) < special.expit(x)).astype(float)
            won[rng.random(len(x)) < ties] = 0.5
            return intervals.mean(won, prompt, labeler, bounds=intervals.SHARE)

        setting = f"{share:g}, labeler sd {labeler_sd:g}" + (f", ties {100 * ties:.0f} %" if ties else "")
        yield cover("share", setting, design, share, sample)


def ratings() -> Iterator[Case]:
    """A mean rating from 1 to 7, labelers of different severity."""
    for design in DESIGNS:
        for labeler_sd in (0.0, 0.7, 1.5):

            def sample(rng: Generator, design: Design = design, labeler_sd: float = labeler_sd) -> Estimate:
                prompt, labeler, x = lean(rng, design, 0.0, 1.0, labeler_sd)
                seen = np.clip(np.round(4 + x + rng.normal(size=len(x))), 1, 7)
                return intervals.mean(seen, prompt, labeler, bounds=intervals.RATING)

            yield cover("rating", f"labeler sd {labeler_sd:g}", design, 4.0, sample)


def differences() -> Iterator[Case]:
    """A paired difference of shares of two models, under one judge and under labelers; of ratios weighted by tokens."""
    cases = [(3, 0.02, 0.25), (5, 0.02, 0.2), (10, 0.01, 0.15), (10, 0.5, 0.5), (20, 0.02, 0.02), (20, 0.005, 0.12)]
    cases += [(40, 0.5, 0.5), (40, 0.9, 0.97), (50, 0.01, 0.12), (100, 0.02, 0.12), (400, 0.01, 0.02)]
    for prompts, first, second in cases:

        def sample(rng: Generator, prompts: int = prompts, first: float = first, second: float = second) -> Estimate:
            luck, other = rng.random(prompts), rng.random(prompts)
            shared = np.where(rng.random(prompts) < 0.6, luck, other)
            return intervals.paired_difference(luck < first, shared < second, range(prompts), bounds=intervals.SHARE)

        setting = "rare events" if min(first, second) < 0.1 else "shares"
        yield cover("difference", f"{setting}, one judge", Design(prompts, 1, 1), first - second, sample)
    for design in DESIGNS:

        def judged(rng: Generator, design: Design = design) -> Estimate:
            prompt, labeler, x = lean(rng, design, 0.0, 1.0, 0.5)
            taste = 0.5 * rng.normal(size=design.labelers)[labeler]
            first, second = (rng.random(len(x)) < special.expit(each) for each in (x + taste, x - taste))
            return intervals.paired_difference(first, second, prompt, labeler, bounds=intervals.SHARE)

        yield cover("difference", "shares, labelers", design, 0.0, judged)
    for prompts in (10, 40, 100):

        def weighted(rng: Generator, prompts: int = prompts) -> Estimate:
            tokens, hard = rng.lognormal(0, 0.7, prompts), rng.normal(size=prompts)
            loss = [tokens * (1 + 0.3 * np.log(tokens) + hard + 0.2 * rng.normal(size=prompts)) for _ in range(2)]
            sides = [intervals.Measurements(values, [range(prompts)], tokens) for values in loss]
            return intervals.difference(*sides)

        yield cover("difference", "loss by tokens", Design(prompts, 1, 1), 0.0, weighted)


NUMBERS = ("agreement", "tau", "alpha", "W", "judge agreement")


def ranking_numbers(who: NDArray[np.int64], worth: Array, features: Array) -> dict[str, Estimate]:
    """Return what rankings say: labelers with each other, and with a judge who knows the shared taste."""
    rankings = as_rankings(who, worth)
    cells = agreement.compare_labelers(rankings)
    first, second = np.triu_indices(COMPLETIONS, 1)
    shared = features.sum(-1)
    right = np.sign(worth[..., first] - worth[..., second]) * np.sign(shared[:, None, first] - shared[:, None, second])
    prompt, place, _ = (index.ravel() for index in np.indices(right.shape))
    decided = right.ravel() != 0
    return {
        "agreement": agreement.summarize_agreement(cells).decided,
        "tau": agreement.kendall_tau(cells),
        "alpha": agreement.pairwise_alpha(rankings),
        "W": agreement.concordance(rankings).w,
        "judge agreement": intervals.mean(
            (right.ravel()[decided] + 1) / 2,
            prompt[decided],
            who[prompt[decided], place[decided]],
            bounds=intervals.SHARE,
        ),
    }


_TRUTH_DRAWS = 10
"""The error of a truth from one draw was up to a third of the width that is tested."""


@cache
def ranking_truth(taste: float, ties: float, per_prompt: int, draws: int = _TRUTH_DRAWS) -> dict[str, float]:
    """Return the values over very many prompts and labelers; W depends on the labelers of a prompt."""
    rng, design = np.random.default_rng(100), Design(4_000, 2_000, per_prompt)
    numbers = [ranking_numbers(*rank_answers(rng, design, taste, ties)) for _ in range(draws)]
    return {name: float(np.mean([each[name].value for each in numbers])) for name in NUMBERS}


RANKING_SETTINGS = ((0.5, 0.3, 10), (0.5, 2.0, 50), (1.0, 0.3, 10), (0.0, 0.3, 10))
"""Taste, width of ties, and the share of ties in % that it makes, about."""


def rankings() -> Iterator[Case]:
    """Agreement, tau, alpha, W of rankings, and agreement with a judge or reward model."""
    for taste, width, ties in RANKING_SETTINGS:
        for design in DESIGNS:
            setting = f"taste {taste:g}, ties {ties} %"

            def lines(
                rng: Generator,
                repetitions: int,
                design: Design = design,
                taste: float = taste,
                width: float = width,
                setting: str = setting,
            ) -> list[Line]:
                truth = ranking_truth(taste, width, design.per_prompt)
                samples = [ranking_numbers(*rank_answers(rng, design, taste, width)) for _ in range(repetitions)]
                return [
                    count_hits(name, setting, design, truth[name], [sample[name] for sample in samples])
                    for name in NUMBERS
                ]

            yield Case(setting, design, lines)


def label_answers(rng: Generator, design: Design, mean: float) -> tuple[Array, Array, Array]:
    prompt, labeler, x = lean(rng, design, mean, 2.0, 0.7)
    return prompt, labeler, rng.random(len(x)) < special.expit(x)


LABEL_NUMBERS = {"label alpha": krippendorff_alpha, "AC1": gwet_ac1, "positive agreement": positive_agreement}


@cache
def label_truth(mean: float) -> tuple[float, dict[str, float]]:
    """Return the share of yes, and the numbers over very many prompts and labelers."""
    rng = np.random.default_rng(101)
    many = [label_answers(rng, MANY, mean) for _ in range(_TRUTH_DRAWS)]
    numbers = {
        name: float(np.mean([number(each[0], each[2].tolist()).value for each in many]))
        for name, number in LABEL_NUMBERS.items()
    }
    return float(np.mean([each[2].mean() for each in many])), numbers


def labels() -> Iterator[Case]:
    """Agreement on yes or no: alpha, AC1, positive agreement; labelers' thresholds differ by 0.7."""
    for mean in (0.0, -3.0, -4.5):
        for design in DESIGNS:

            def lines(rng: Generator, repetitions: int, design: Design = design, mean: float = mean) -> list[Line]:
                samples = [label_answers(rng, design, mean) for _ in range(repetitions)]
                share, truth = label_truth(mean)
                return [
                    count_hits(
                        name,
                        f"{100 * share:.0f} % yes",
                        design,
                        truth[name],
                        [number(s[0], s[2].tolist(), labelers=s[1]) for s in samples],
                    )
                    for name, number in LABEL_NUMBERS.items()
                ]

            yield Case(f"labels, logit {mean:g}", design, lines)


def strength_rankings(rng: Generator, design: Design, base: Sequence[float], ties: float) -> list[LabelerRanking]:
    """Return rankings of models whose strengths differ from labeler to labeler and from prompt to prompt."""
    size = len(base)
    who = design.assign(rng)
    x = np.array(base) + 0.4 * rng.normal(size=(design.prompts, 1, size))
    x = x + 0.4 * rng.normal(size=(design.labelers, size))[who] + rng.gumbel(size=(*who.shape, size))
    worth = np.floor(x / max(ties, 1e-9))
    ranks = (worth[..., None, :] > worth[..., :, None]).sum(-1) + 1
    return [
        LabelerRanking(p, int(labeler), range(size), ranks[p, place].tolist(), MODELS[:size])
        for p in range(design.prompts)
        for place, labeler in enumerate(who[p])
    ]


STRENGTHS = {"moderate": (0.6, 0.0, -0.6), "far apart": (2.3, 0.0, -0.4, -1.9)}


@cache
def strength_truth(spread: str, ties: float) -> dict[str, float]:
    many = strength_rankings(np.random.default_rng(102), Design(8_000, 4_000, 2), STRENGTHS[spread], ties)
    return {row.model: float(row.strength.value or 0) for row in estimate_strengths(many, "b")}


def strengths() -> Iterator[Case]:
    """Bradley-Terry points above the anchor, moderate and far apart; a bound counts where it holds the truth."""
    for spread, base in STRENGTHS.items():
        for ties in (0.0, 0.8):
            for design in DESIGNS:

                def lines(
                    rng: Generator,
                    repetitions: int,
                    design: Design = design,
                    base: Sequence[float] = base,
                    ties: float = ties,
                    spread: str = spread,
                ) -> list[Line]:
                    truth = strength_truth(spread, ties)
                    samples = [
                        {row.model: row.strength for row in estimate_strengths(rows, "b")}
                        for rows in (strength_rankings(rng, design, base, ties) for _ in range(repetitions))
                    ]
                    return [
                        count_hits(
                            "strength",
                            f"{truth[model]:.0f} points, ties {'40 %' if ties else '0'}",
                            design,
                            truth[model],
                            [sample[model] for sample in samples],
                        )
                        for model in ("a", MODELS[len(base) - 1])
                    ]

                yield Case(f"strength, {spread}, ties {ties:g}", design, lines)


def length_controlled() -> Iterator[Case]:
    """The win rate at equal length; length sways everybody, some more."""

    def sample(rng: Generator, design: Design) -> Estimate:
        prompt, who, x = lean(rng, design, 0.3, 0.7, 0.4)
        longer = rng.normal(0.5, 1, size=design.prompts)[prompt]
        x = x + (0.8 + 0.4 * rng.normal(size=design.labelers))[who] * np.tanh(longer)
        won = rng.random(len(x)) < special.expit(x)
        rows = [
            LabelerRanking(p, w, (float(d), 0.0), (1, 2) if v else (2, 1), ("new", "sft"))
            for p, w, d, v in zip(prompt.tolist(), who.tolist(), longer.tolist(), won.tolist(), strict=True)
        ]
        return length_controlled_win_rates(rows, "sft", lambda row: [float(str(each)) for each in row.completions])[
            "new"
        ]

    truth = float(sample(np.random.default_rng(103), Design(40_000, 4_000, 1)).value or 0)
    for design in DESIGNS:
        yield cover("length-controlled", "", design, truth, partial(sample, design=design))


def temperatures() -> Iterator[Case]:
    """A reward model's temperature; labelers' slopes differ by 0.5 on the log scale. An open end counts as holding."""

    def sample(rng: Generator, design: Design, slope_sd: float, pairs: int = 6) -> Estimate:
        who = design.assign(rng)
        slope = np.exp(slope_sd * rng.normal(size=design.labelers))[who][..., None]
        gap = np.abs(2 * rng.normal(size=(design.prompts, 1, pairs)) * np.ones_like(slope))
        sign = np.where(rng.random(gap.shape) < special.expit(slope * gap / 2), 1, -1)
        prompt, place, _ = (index.ravel() for index in np.indices(gap.shape))
        return fit_temperature((sign * gap).ravel(), prompt, who[prompt, place])

    for slope_sd in (0.0, 0.5):
        truth = float(sample(np.random.default_rng(104), Design(60_000, 30_000, 1), slope_sd).value or 0)
        for design in [*SINGLE, *DESIGNS]:
            draw = partial(sample, design=design, slope_sd=slope_sd)
            yield cover("temperature", f"slopes {slope_sd:g}", design, truth, draw)


def by_labeler() -> Iterator[Case]:
    """Each labeler's long-run agreement with all others, shrunk: posterior intervals over all labelers.

    A labeler's truth is their agreement with the same colleagues on very many further prompts.
    """

    def lines(rng: Generator, repetitions: int, design: Design) -> list[Line]:
        hits = total = 0
        for _ in range(max(repetitions // 4, 1)):
            seed = int(rng.integers(1 << 30))
            drawn = _fixed_labelers(seed, design, 2_000)
            truth = {row.labeler: row.share for row in agreement.agreement_by_labeler(drawn)}
            for row in agreement.agreement_by_labeler(_fixed_labelers(seed, design, 0)):
                total += 1
                low, high = row.shrunk.low, row.shrunk.high
                hits += low is not None and high is not None and low <= truth[row.labeler] <= high
        return [Line("by labeler", "taste 0.5", str(design), hits, total)]

    for design in (Design(20, 3, 3), Design(40, 5, 5), Design(40, 8, 3), Design(100, 5, 3), Design(400, 10, 3)):
        yield Case("by labeler", design, partial(lines, design=design))


def _fixed_labelers(seed: int, design: Design, prompts: int) -> agreement.AgreementCells:
    """Compare labelers drawn from a seed: on the design's own prompts, or all of them on further prompts."""
    people, rng = np.random.default_rng(seed), np.random.default_rng(seed + 1 + prompts)
    weights = (1 + 0.5 * people.normal(size=(design.labelers, 3))) / np.sqrt(3)
    slip, width = people.uniform(0.5, 1.5, design.labelers), 0.3 * people.uniform(0.5, 1.5, design.labelers)
    full = Design(prompts, design.labelers, design.labelers) if prompts else design
    who = full.assign(rng)
    features = rng.normal(size=(full.prompts, COMPLETIONS, 3))
    noise = slip[who][..., None] * rng.normal(size=(*who.shape, COMPLETIONS))
    worth = np.einsum("pkf,pmf->pmk", features, weights[who]) + noise
    return agreement.compare_labelers(as_rankings(who, np.floor(worth / width[who][..., None])))
