"""Models and labelers between whom nothing differs: the cases of `coverage.py` that count false alarms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from coverage_numbers import BALANCED, COMPLETIONS, DESIGNS, MODELS, SINGLE, Case, Design, Generator, Line, lean
from scipy import special, stats

from instructgpt.report.findings import check_findings
from instructgpt.report.results import Results
from instructgpt.results import ResultRow
from instructgpt.statistics.labeler_bias import PresentedRanking, labeler_reports
from instructgpt.statistics.pair_judgments import LabelerRanking
from instructgpt.statistics.win_rate import compute_win_rates

NOMINAL = 0.05
TAIL_LEVEL = 0.0033
"""Level that Holm's correction asks of the first of fifteen comparisons."""


def vote_rankings(rng: Generator, design: Design, labeler_sd: float, ties: float) -> list[LabelerRanking]:
    """Return rankings of two equal models."""
    prompt, who, x = lean(rng, design, 0.0, 1.0, labeler_sd)
    votes = np.where(rng.random(len(x)) < ties, 0, np.where(rng.random(len(x)) < special.expit(x), 1, -1))
    ranks = {0: (1, 1), 1: (1, 2), -1: (2, 1)}
    return [
        LabelerRanking(i, j, (0, 1), ranks[v], ("a", "b"))
        for i, j, v in zip(prompt.tolist(), who.tolist(), votes.tolist(), strict=True)
    ]


def _count_rejections(name: str, setting: str, design: Design, p: Sequence[float | None]) -> list[Line]:
    rejected = [sum(each is not None and each < level for each in p) for level in (NOMINAL, TAIL_LEVEL)]
    return [
        Line(f"{name}, p < {level:g}", setting, str(design), count, len(p))
        for level, count in zip((NOMINAL, TAIL_LEVEL), rejected, strict=True)
    ]


def p_values() -> Iterator[Case]:
    """Type I error of a win rate between equal models at 5 % and at Holm's first level."""

    def lines(rng: Generator, repetitions: int, design: Design, labeler_sd: float, ties: float) -> list[Line]:
        rows = (vote_rankings(rng, design, labeler_sd, ties) for _ in range(4 * repetitions))
        p = [compute_win_rates(each, "b")[0].p for each in rows]
        kind = "one labeler" if design.labelers == 1 else f"labeler sd {labeler_sd:g}"
        return _count_rejections("win rate", f"{kind}, ties {100 * ties:.0f} %", design, p)

    grid = [(design, 0.0, ties) for design in SINGLE for ties in (0.0, 0.1, 0.5)]
    grid += [(design, sd, 0.1) for design in DESIGNS for sd in (0.0, 1.0)]
    grid += [(design, 0.5, 0.5) for design in BALANCED[::3]]
    for design, labeler_sd, ties in grid:
        case = partial(lines, design=design, labeler_sd=labeler_sd, ties=ties)
        yield Case(f"p, labeler sd {labeler_sd:g}, ties {ties:g}", design, case)


def family_wise() -> Iterator[Case]:
    """Tables of six equal models with any difference that Holm's correction lets pass."""

    def lines(rng: Generator, repetitions: int, design: Design, labeler_sd: float) -> list[Line]:
        hits = 0
        for _ in range(2 * repetitions):
            who, leaning = design.assign(rng), labeler_sd * rng.normal(size=(design.labelers, len(MODELS)))
            worth = rng.normal(size=(design.prompts, 1, 6)) + leaning[who] + rng.gumbel(size=(*who.shape, 6))
            ranks = np.argsort(np.argsort(-worth, axis=-1), axis=-1) + 1
            rows = [
                LabelerRanking(p, int(q), MODELS, ranks[p, place].tolist(), MODELS)
                for p in range(design.prompts)
                for place, q in enumerate(who[p])
            ]
            hits += min(row.holm or 1.0 for row in compute_win_rates(rows)) < NOMINAL
        kind = "one judge" if design.labelers == 1 else f"labeler sd {labeler_sd:g}"
        return [Line("Holm, six equal models", kind, str(design), hits, 2 * repetitions)]

    grid = [(design, 0.0) for design in SINGLE]
    grid += [(design, 0.7) for design in (Design(10, 3, 3), Design(40, 3, 3), Design(40, 5, 5), Design(40, 10, 3))]
    for design, labeler_sd in grid:
        yield Case("Holm", design, partial(lines, design=design, labeler_sd=labeler_sd))


HABITS = ("position", "ties", "all_tied", "same_rating", "as_shown", "hurried", "pace")


def habits() -> Iterator[Case]:
    """Batches in which any labeler's habit is marked after Holm's correction, where nobody is odd."""

    def lines(rng: Generator, repetitions: int, design: Design, spread: float) -> list[Line]:
        flagged = 0
        batches = max(repetitions // 4, 1)
        for _ in range(batches):
            width, slow = (rng.lognormal(0, spread, design.labelers) for _ in range(2))
            who = design.assign(rng)
            worth = rng.normal(size=(*who.shape, COMPLETIONS)) / (0.5 * width[who][..., None])
            seconds = slow[who] * rng.lognormal(3, 0.4, size=who.shape)
            same = rng.random(who.shape) < 0.05
            presented = [
                PresentedRanking(
                    int(person),
                    stats.rankdata(-np.round(worth[p, m]), method="dense").tolist(),
                    [4] * COMPLETIONS if same[p, m] else [3, 4, 5, 6],
                    float(seconds[p, m]),
                )
                for p, people in enumerate(who)
                for m, person in enumerate(people)
            ]
            tests = [getattr(report, habit) for report in labeler_reports(presented) for habit in HABITS]
            flagged += any(test.p is not None and test.p < NOMINAL for test in tests)
        setting = f"widths and paces differ by {100 * spread:.0f} %"
        return [Line("batch with a marked habit", setting, str(design), flagged, batches)]

    for spread in (0.0, 0.3):
        for design in (Design(40, 5, 3), Design(150, 8, 3), Design(400, 10, 3)):
            yield Case(f"habits, {spread:g}", design, partial(lines, design=design, spread=spread))


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


def findings() -> Iterator[Case]:
    """Reports in which nothing is true and any finding of a direction is still called so."""

    def lines(rng: Generator, repetitions: int) -> list[Line]:
        counts = dict.fromkeys((("shown",), ("partly",), ("opposite",), ("shown", "partly", "opposite")), 0)
        for _ in range(repetitions * 10):
            verdicts = {
                finding.verdict
                for finding in check_findings(Results.from_rows(finding_rows(rng)))
                if not any(words in finding.paper for words in EQUIVALENCES)
            }
            for names in counts:
                counts[names] += bool(verdicts & set(names))
        return [
            Line("report with a false " + " or ".join(names), "all models equal", "", hits, repetitions * 10)
            for names, hits in counts.items()
        ]

    yield Case("findings", "", lines)
