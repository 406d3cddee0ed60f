"""Do 95 % intervals hold the truth, and do p-values reject as often as they say? Simulations with known truth.

    python bench/coverage.py                        # everything, 200 repetitions: about half an hour on one core
    python bench/coverage.py share alpha --repetitions 1000
    python bench/coverage.py --write docs/statistics.md

Prompts, labelers, tastes, slips and ties are drawn anew each time; intervals and p-values come from the code that
people use. A design is PROMPTS×EACHofLABELERS: 40×3of8 is 40 prompts, each judged by 3 of 8 labelers; "unequal" draws
the labelers' work from a gamma distribution of shape 0.7. "single" and "two" in the table mark rows whose interval says
so itself (`caution`). The Monte Carlo error of a share near 95 % is 1.5 points with 200 repetitions.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from instructgpt.evaluate.reward.calibration import fit_temperature
from instructgpt.report.findings import check_findings
from instructgpt.report.results import Results
from instructgpt.results import ResultRow
from instructgpt.statistics import agreement, intervals
from instructgpt.statistics.bradley_terry import estimate_strengths
from instructgpt.statistics.categorical_agreement import gwet_ac1, krippendorff_alpha, positive_agreement
from instructgpt.statistics.intervals import Estimate
from instructgpt.statistics.pair_judgments import LabelerRanking
from instructgpt.statistics.win_rate import compute_win_rates, length_controlled_win_rates

Array = NDArray[np.float64]
Generator = np.random.Generator
COMPLETIONS = 4
WORKLOAD_SHAPE = 0.7
_MAX_DRAWN_LABELERS = 200
NOMINAL = 0.95
MODELS = ("a", "b", "c", "d", "e", "f")
TAIL_LEVEL = 0.0033
"""Level that Holm's correction asks of the first of fifteen comparisons."""


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
UNEQUAL = [Design(n, labelers, min(labelers, 3), True) for n in (40, 100) for labelers in (5, 10)]
EVERYBODY = [Design(40, 5, 5), Design(40, 3, 2, True)]
DESIGNS = [*BALANCED, *EVERYBODY, *UNEQUAL]
_LARGE_DESIGN = 400
"""Rankings of so many prompts take long: these designs have a quarter of the repetitions."""
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


def cover(
    name: str, setting: str, design: Design, truth: float, sample: Callable[[], Estimate], repetitions: int
) -> Line:
    hits = missing = 0
    cautions: set[str] = set()
    for _ in range(repetitions):
        found = sample()
        cautions.add(found.caution)
        if found.low is None and found.high is None:
            missing += 1
        else:
            low = -np.inf if found.low is None else found.low
            high = np.inf if found.high is None else found.high
            hits += low - 1e-9 <= truth <= high + 1e-9
    caution = ", ".join(sorted(cautions - {""}))
    return Line(name, setting, str(design), hits, repetitions, missing, caution)


def shares(rng: Generator, repetitions: int) -> Iterator[Line]:
    """A share over prompts and labelers: a win rate, a label, truthfulness."""
    grid = [(design, 0.5, sd) for design in DESIGNS for sd in (0.0, 0.5, 1.5)]
    grid += [(design, share, 0.5) for design in DESIGNS for share in (0.01, 0.1, 0.9, 0.99)]
    grid += [(Design(n, 1, 1), share, 0.0) for n in (10, 40, 100, 400) for share in (0.01, 0.1, 0.5, 0.9)]
    grid += [(Design(40, 1, 1), 0.5, 0.5), (Design(1, 8, 8), 0.25, 0.5)]
    for design, share, labeler_sd in grid:
        mean = logit_mean(share, float(np.hypot(1.0, labeler_sd)))

        def sample(design: Design = design, mean: float = mean, labeler_sd: float = labeler_sd) -> Estimate:
            prompt, labeler, x = lean(rng, design, mean, 1.0, labeler_sd)
            won = (rng.random(len(x)) < special.expit(x)).astype(float)
            return intervals.mean(won, prompt, labeler, bounds=intervals.SHARE)

        yield cover("share", f"{share:g}, labeler sd {labeler_sd:g}", design, share, sample, repetitions)


def ratings(rng: Generator, repetitions: int) -> Iterator[Line]:
    """A mean rating from 1 to 7, labelers of different severity."""
    for design in DESIGNS:
        for labeler_sd in (0.0, 0.7):

            def sample(design: Design = design, labeler_sd: float = labeler_sd) -> Estimate:
                prompt, labeler, x = lean(rng, design, 0.0, 1.0, labeler_sd)
                seen = np.clip(np.round(4 + x + rng.normal(size=len(x))), 1, 7)
                return intervals.mean(seen, prompt, labeler, bounds=intervals.RATING)

            yield cover("rating", f"labeler sd {labeler_sd:g}", design, 4.0, sample, repetitions)


def differences(rng: Generator, repetitions: int) -> Iterator[Line]:
    """A paired difference of shares of two models under one judge, and of ratios weighted by tokens."""
    cases = [(3, 0.02, 0.25), (5, 0.02, 0.2), (10, 0.01, 0.15), (10, 0.5, 0.5), (20, 0.02, 0.02), (20, 0.005, 0.12)]
    cases += [(40, 0.5, 0.5), (40, 0.9, 0.97), (50, 0.01, 0.12), (100, 0.02, 0.12), (400, 0.01, 0.02)]
    for prompts, first, second in cases:

        def sample(prompts: int = prompts, first: float = first, second: float = second) -> Estimate:
            luck, other = rng.random(prompts), rng.random(prompts)
            shared = np.where(rng.random(prompts) < 0.6, luck, other)
            return intervals.paired_difference(luck < first, shared < second, range(prompts), bounds=intervals.SHARE)

        setting = f"{first:g} and {second:g}"
        yield cover("difference", setting, Design(prompts, 1, 1), first - second, sample, repetitions)
    for prompts in (10, 40, 100):

        def weighted(prompts: int = prompts) -> Estimate:
            tokens, hard = rng.lognormal(0, 0.7, prompts), rng.normal(size=prompts)
            loss = [tokens * (1 + 0.3 * np.log(tokens) + hard + 0.2 * rng.normal(size=prompts)) for _ in range(2)]
            sides = [intervals.Measurements(values, [range(prompts)], tokens) for values in loss]
            return intervals.difference(*sides)

        yield cover("difference", "loss by tokens", Design(prompts, 1, 1), 0.0, weighted, repetitions)


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


@cache
def ranking_truth(taste: float, ties: float, per_prompt: int) -> dict[str, float]:
    """Return the values over very many prompts and labelers; W depends on the labelers of a prompt."""
    rng = np.random.default_rng(100)
    numbers = ranking_numbers(*rank_answers(rng, Design(4_000, 2_000, per_prompt), taste, ties))
    return {name: float(estimate.value or 0.0) for name, estimate in numbers.items()}


def rankings(rng: Generator, repetitions: int) -> Iterator[Line]:
    """Agreement, tau, alpha, W of rankings, and agreement with a judge or reward model."""
    for design in DESIGNS:
        for taste, ties in ((0.5, 0.3), (0.5, 2.0), (1.0, 0.3), (0.0, 0.3)):
            truth = ranking_truth(taste, ties, design.per_prompt)
            count = repetitions // 4 if design.prompts >= _LARGE_DESIGN else repetitions
            samples = [ranking_numbers(*rank_answers(rng, design, taste, ties)) for _ in range(count)]
            for name in NUMBERS:
                queue = iter([sample[name] for sample in samples])
                setting = f"taste {taste:g}, ties {ties:g}"
                yield cover(name, setting, design, truth[name], lambda queue=queue: next(queue), count)


def label_answers(rng: Generator, design: Design, mean: float) -> tuple[Array, Array, Array]:
    prompt, labeler, x = lean(rng, design, mean, 2.0, 0.7)
    return prompt, labeler, rng.random(len(x)) < special.expit(x)


def labels(rng: Generator, repetitions: int) -> Iterator[Line]:
    """Agreement on yes or no: alpha, AC1, positive agreement; labelers' thresholds differ by 0.7."""
    numbers = {"label alpha": krippendorff_alpha, "AC1": gwet_ac1, "positive agreement": positive_agreement}
    for mean in (0.0, -3.0, -4.5):
        many = label_answers(np.random.default_rng(101), MANY, mean)
        for design in DESIGNS:
            samples = [label_answers(rng, design, mean) for _ in range(repetitions)]
            for name, number in numbers.items():
                truth = number(many[0], many[2].tolist()).value
                queue = iter([number(s[0], s[2].tolist(), labelers=s[1]) for s in samples])
                setting = f"{100 * many[2].mean():.0f} % yes"
                yield cover(name, setting, design, float(truth), lambda queue=queue: next(queue), repetitions)


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


def strengths(rng: Generator, repetitions: int) -> Iterator[Line]:
    """Bradley-Terry points above the anchor, moderate and far apart; a bound counts where it holds the truth."""
    for base in ((0.6, 0.0, -0.6), (2.3, 0.0, -0.4, -1.9)):
        for ties in (0.0, 0.8):
            many = strength_rankings(np.random.default_rng(102), Design(8_000, 4_000, 2), base, ties)
            truth = {row.model: row.strength.value for row in estimate_strengths(many, "b")}
            for design in (Design(10, 3, 3), Design(20, 3, 3), Design(40, 5, 5), Design(100, 5, 3), UNEQUAL[-1]):
                samples = [
                    {row.model: row.strength for row in estimate_strengths(rows, "b")}
                    for rows in (strength_rankings(rng, design, base, ties) for _ in range(repetitions))
                ]
                for model in ("a", MODELS[len(base) - 1]):
                    queue = iter([sample[model] for sample in samples])
                    setting = f"{float(truth[model] or 0):.0f} points, ties {ties:g}"
                    value = float(truth[model] or 0)
                    yield cover("strength", setting, design, value, lambda queue=queue: next(queue), repetitions)


def length_controlled(rng: Generator, repetitions: int) -> Iterator[Line]:
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
    for design in (Design(20, 3, 3), Design(40, 5, 5), Design(100, 5, 3), Design(100, 10, 3), UNEQUAL[-1]):
        yield cover("length-controlled", "", design, truth, lambda design=design: sample(rng, design), repetitions)


def temperatures(rng: Generator, repetitions: int) -> Iterator[Line]:
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
        for design in (Design(10, 1, 1), Design(20, 3, 3), Design(40, 5, 5), Design(100, 5, 3), Design(400, 10, 3)):

            def draw(design: Design = design, slope_sd: float = slope_sd) -> Estimate:
                return sample(rng, design, slope_sd)

            yield cover("temperature", f"slopes {slope_sd:g}", design, truth, draw, repetitions)


def by_labeler(rng: Generator, repetitions: int) -> Iterator[Line]:
    """Each labeler's long-run agreement with all others, shrunk: posterior intervals over all labelers.

    A labeler's truth is their agreement with the same colleagues on very many further prompts.
    """
    for design in (Design(20, 3, 3), Design(40, 5, 5), Design(40, 8, 3), Design(100, 5, 3), Design(400, 10, 3)):
        hits = total = 0
        for _ in range(max(repetitions // 4, 1)):
            seed = int(rng.integers(1 << 30))
            drawn = _fixed_labelers(seed, design, 4_000)
            truth = {row.labeler: row.share for row in agreement.agreement_by_labeler(drawn)}
            for row in agreement.agreement_by_labeler(_fixed_labelers(seed, design, 0)):
                total += 1
                low, high = row.shrunk.low, row.shrunk.high
                hits += low is not None and high is not None and low <= truth[row.labeler] <= high
        yield Line("by labeler", "taste 0.5", str(design), hits, total)


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


# --- tests -----------------------------------------------------------------------------------------------------------


def p_values(rng: Generator, repetitions: int) -> Iterator[Line]:
    """Type I error of a win rate between equal models at 5 % and at Holm's first level."""
    designs = [Design(n, 1, 1) for n in (10, 20, 40, 100)]
    designs += [Design(40, 2, 2), Design(15, 3, 3), Design(40, 3, 3), Design(40, 5, 5), Design(100, 10, 3), *UNEQUAL]
    for design in designs:
        for labeler_sd in (0.0, 1.0)[: 1 if design.labelers == 1 else 2]:
            p = np.ones(repetitions * 4)
            for index in range(len(p)):
                prompt, who, x = lean(rng, design, 0.0, 1.0, labeler_sd)
                draw = rng.random(len(x))
                votes = np.where(draw < 0.1, 0, np.where(rng.random(len(x)) < special.expit(x), 1, -1))
                ranks = {0: (1, 1), 1: (1, 2), -1: (2, 1)}
                rows = [
                    LabelerRanking(i, j, (0, 1), ranks[v], ("a", "b"))
                    for i, j, v in zip(prompt.tolist(), who.tolist(), votes.tolist(), strict=True)
                ]
                p[index] = compute_win_rates(rows, "b")[0].p
            for level in (0.05, TAIL_LEVEL):
                setting = f"labeler sd {labeler_sd:g}"
                yield Line(f"p < {level:g}", setting, str(design), int((p < level).sum()), len(p))


def family_wise(rng: Generator, repetitions: int) -> Iterator[Line]:
    """Tables of six equal models with any difference that Holm's correction lets pass."""
    for design, labeler_sd in ((Design(10, 1, 1), 0.0), (Design(40, 1, 1), 0.0), (Design(40, 3, 3), 0.7)):
        hits = 0
        for _ in range(repetitions * 2):
            leaning = labeler_sd * rng.normal(size=(design.labelers, len(MODELS)))
            rows = [
                LabelerRanking(p, q, MODELS, stats.rankdata(-(leaning[q] + easy + rng.gumbel(size=6))).tolist(), MODELS)
                for p in range(design.prompts)
                for easy in [rng.normal(size=6)]
                for q in range(design.labelers)
            ]
            hits += min(row.holm or 1.0 for row in compute_win_rates(rows)) < 1 - NOMINAL
        yield Line("Holm, six equal models", f"labeler sd {labeler_sd:g}", str(design), hits, repetitions * 2)


def finding_rows(rng: Generator) -> list[ResultRow]:
    """Return rows of a run in which all models are equal: normal numbers with intervals of the right width."""
    rows: list[ResultRow] = []

    def add(evaluation: str, metric: str, condition: str, models: Sequence[str], center: float, error: float) -> None:
        values = {model: center + error * rng.normal() for model in models}
        for model, value in values.items():
            rows.append(
                ResultRow(evaluation, metric, model, condition, value, value - 1.96 * error, value + 1.96 * error, 100)
            )
        name = "/".join(part for part in (evaluation, metric, condition) if part)
        for model in models:
            for other in models:
                if model != other:
                    gap, width = values[model] - values[other], 1.96 * error * np.sqrt(2)
                    rows.append(ResultRow("difference", name, model, other, gap, gap - width, gap + width, 100))

    policies = ("base", "prompted", "ppo", "ppo_ptx")
    for condition in ("training", "heldout"):
        add("preference", "win_rate_vs_sft", condition, policies, 0.5, 0.03)
    add("preference", "rating", "training", ("base", "sft", "ppo", "ppo_ptx"), 4.0, 0.1)
    for label in ("fails_instruction", "satisfies_constraint", "inappropriate", "hallucination"):
        add("labels", label, "", ("base", "ppo_ptx"), 0.3, 0.03)
    add("truthfulness", "truthful_and_informative", "qa", ("base", "ppo", "ppo_ptx"), 0.4, 0.03)
    add("truthfulness", "truthful", "instruction", ("base", "ppo", "ppo_ptx"), 0.6, 0.03)
    for condition in ("none", "respectful", "biased"):
        add("toxicity", "mean_toxicity", condition, ("base", "ppo_ptx"), 0.2, 0.03)
    add("bias", "entropy_bits", "", ("base", "ppo_ptx"), 0.5, 0.1)
    for task in ("translation", "passage_qa", "arithmetic", "copying", "cloze", "heldout_loss"):
        add("tax", task, "", ("sft", "ppo", "ppo_ptx"), 0.6, 0.03)
    for condition in ("training", "heldout"):
        add("reward_model", "pair_accuracy", condition, ("reward",), 0.5, 0.02)
        add("reward_model", "length_baseline", condition, ("reward",), 0.5, 0.02)
    return rows


EQUIVALENCES = ("hardly changes", "it is not", "does not improve", "at least nine tenths", "nearly as well")
"""Findings that are true when all models are equal."""


def findings(rng: Generator, repetitions: int) -> Iterator[Line]:
    """Reports in which nothing is true and any finding of a direction is still called so."""
    counts = dict.fromkeys((("shown",), ("partly",), ("opposite",), ("shown", "partly", "opposite")), 0)
    for _ in range(repetitions * 5):
        verdicts = {
            finding.verdict
            for finding in check_findings(Results.from_rows(finding_rows(rng)))
            if not any(words in finding.paper for words in EQUIVALENCES)
        }
        for names in counts:
            counts[names] += bool(verdicts & set(names))
    for names, hits in counts.items():
        yield Line("report with a false " + " or ".join(names), "", "all models equal", hits, repetitions * 5)


GROUPS: dict[str, Callable[[Generator, int], Iterator[Line]]] = {
    "share": shares,
    "rating": ratings,
    "difference": differences,
    "rankings": rankings,
    "labels": labels,
    "strength": strengths,
    "length": length_controlled,
    "temperature": temperatures,
    "labeler": by_labeler,
    "p": p_values,
    "holm": family_wise,
    "findings": findings,
}


# --- tables ----------------------------------------------------------------------------------------------------------


def format_table(lines: Sequence[Line]) -> str:
    """Return a Markdown table: a row a number and setting, with the mean over designs and its lowest and highest."""
    head = "| number | setting | designs | mean % | lowest % | highest % | what `caution` marks |"
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.name, line.setting), []).append(line)
    return "\n".join([head, "|---|---|---|---|---|---|---|", *(_format_group(*item) for item in groups.items())])


def _format_group(key: tuple[str, str], lines: Sequence[Line]) -> str:
    marked = [line for line in lines if re.search("single|two", line.caution)]
    plain = sorted([line for line in lines if line not in marked] or marked, key=lambda line: line.share)
    hits, count = sum(line.hits for line in plain), sum(line.repetitions - line.missing for line in plain)
    cells = [*key, str(len(plain)), _format_share(hits, count)]
    ends = (plain[0], plain[-1]) if len(plain) > 1 else ()
    cells += [f"{line.design}: {_format_share(line.hits, line.repetitions - line.missing)}" for line in ends] or [
        "",
        "",
    ]
    cells.append("; ".join(f"{line.design}: {100 * line.share:.0f}" for line in marked if line not in plain))
    return f"| {' | '.join(cells)} |"


def _format_share(hits: int, count: int) -> str:
    """Return a percentage with its Monte Carlo error in points."""
    share = hits / max(count, 1)
    error = np.sqrt(max(share * (1 - share), 0.25 / max(count, 1)) / max(count, 1))
    return f"{100 * share:.1f} (±{100 * error:.1f})"


def format_line(line: Line) -> str:
    notes = [line.caution.replace(" labelers", "").replace(" labeler", "")] if line.caution else []
    notes += [f"{100 * line.missing / line.repetitions:.0f} % without"] if line.missing else []
    text = f"{line.design}: {_format_share(line.hits, line.repetitions - line.missing)}"
    return text + (f" [{', '.join(notes)}]" if notes else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"default: all of {', '.join(GROUPS)}")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="replace the table between the coverage marks of this file")
    options = parser.parse_args(arguments)
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; there are: {', '.join(GROUPS)}")
    lines: list[Line] = []
    for name in options.groups or GROUPS:
        for line in GROUPS[name](np.random.default_rng(options.seed), options.repetitions):
            lines.append(line)
            print(f"{line.name} | {line.setting} | {format_line(line)}", file=sys.stderr, flush=True)
    table = format_table(lines)
    print(table)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        marked = re.sub(
            r"(<!-- coverage -->\n).*?(<!-- /coverage -->)", lambda m: m[1] + table + "\n" + m[2], text, flags=re.S
        )
        options.write.write_text(marked, encoding="utf-8")


if __name__ == "__main__":
    main()
