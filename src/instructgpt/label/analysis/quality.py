"""How good the work is: agreement, gold, hidden repeats, habits of each labeler. From rows of the database to numbers, nothing shown here.

The statistics package is imported when numbers are asked for, so that a site starts without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.rankings import Ranked, Rated, read_rankings, read_ratings
from instructgpt.label.db.models import Gold, Person, Task
from instructgpt.records import LABELS

if TYPE_CHECKING:
    from instructgpt.statistics.agreement import Agreement, Concordance, LabelerAgreement, Matrix
    from instructgpt.statistics.intervals import Estimate
    from instructgpt.statistics.labeler_bias import PositionBias, Report

BAND = (0.70, 0.80)
"""Where agreement of preference data has been seen to lie: 72.6 % and 77.3 % in the paper (3.4), 73 % among researchers before it."""
COHORTS = ("training", "heldout", "researcher", "owner")


@dataclass(frozen=True, slots=True)
class Category:
    """Agreement about the rating, or about one label of Table 3."""

    name: str
    answers: int
    yes: float | None
    """The share of yes where the question applies."""
    alpha: Estimate
    ac1: Estimate | None
    positive: Estimate | None
    """When one labeler says yes, how often another one does."""


@dataclass(frozen=True, slots=True)
class Habits:
    """One labeler's work."""

    labeler: str
    name: str
    pseudonym: str
    cohort: str
    rankings: int
    seconds: float | None
    """Median active seconds a completion."""
    hours: float
    pasted: float | None
    """The mean share of pasted text, where text was typed: evidence for people, never used automatically."""
    ratings: tuple[int, ...]
    """How often 1, 2, … 7 was given."""
    mean_rating: float | None
    report: Report
    """Ties, position bias, straight lines, haste: see the statistics package."""
    agreement: LabelerAgreement | None
    gold: Agreement | None
    repeats: Agreement | None

    @property
    def looks(self) -> list[str]:
        """What a person should look at: habits unlike the others' beyond chance (p below 0.05, adjusted for the number of labelers)."""
        report = self.report
        habits = {name: getattr(report, name).p for name in ("ties", "all_tied", "same_rating", "as_shown", "hurried", "pace")}
        return [name for name, p in {"position": report.position.p, **habits}.items() if p is not None and p < 0.05]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A task on which labelers were not of one mind. `opposite` of `decided` pairs went opposite ways, over all couples of labelers."""

    task: str
    labelers: int
    opposite: int
    decided: int

    @property
    def share(self) -> float:
        """The part of decided pairs that went opposite ways."""
        return self.opposite / self.decided if self.decided else 0.0


@dataclass(frozen=True, slots=True)
class Quality:
    """Everything the page shows."""

    rankings: int
    tasks: int
    overall: Agreement
    cohorts: Mapping[str, Agreement]
    concordance: Concordance
    tau: Estimate
    categories: Sequence[Category]
    gold: Agreement | None
    repeats: Agreement | None
    position: PositionBias
    labelers: Sequence[Habits]
    matrix: Matrix
    disagreements: Sequence[Disagreement] = field(default_factory=tuple)


def quality(db: Session, batch: str | None = None) -> Quality:
    """The quality of all work, or of one batch. Five statements, however much there is."""
    from instructgpt.statistics import agreement as agreeing
    from instructgpt.statistics import labeler_bias

    rankings = read_rankings(db, batch)
    ratings = read_ratings(db, batch)
    golds = read_gold(db, batch)
    people = {person: rest for person, *rest in db.execute(select(Person.id, Person.name, Person.pseudonym))}
    cells = agreeing.compare(rankings)
    with_gold = agreeing.with_gold(by_task(rankings), golds)
    with_oneself = agreeing.self_agreement(by_task(rankings))
    cohorts = {
        cohort: agreeing.agreement([each for each in rankings if each.cohort == cohort])
        for cohort in COHORTS
        if any(each.cohort == cohort for each in rankings)
    }
    known = {each.labeler: each for each in agreeing.by_labeler(cells)}
    return Quality(
        rankings=len(rankings),
        tasks=len({each.task for each in rankings}),
        overall=agreeing.summary(cells),
        cohorts=cohorts,
        concordance=agreeing.concordance(rankings),
        tau=agreeing.kendall_tau(cells),
        categories=categories(rankings, ratings),
        gold=with_gold.get(None),
        repeats=with_oneself.get(None),
        position=labeler_bias.position_bias(each.ranks for each in rankings),
        labelers=habits(rankings, ratings, people, known, with_gold, with_oneself),
        matrix=agreeing.matrix(cells),
        disagreements=disagreements(rankings),
    )


def by_task(rankings: Iterable[Ranked]) -> list[Ranked]:
    """The same rankings with the task in the prompt's place: two tasks may ask about one prompt."""
    return [replace(each, prompt=each.task) for each in rankings]


def read_gold(db: Session, batch: str | None = None) -> list[Ranked]:
    """Gold rankings, one a task, as if a labeler without a name had made them. One statement."""
    statement = select(Gold.task_id, Gold.answer).join(Task, Task.id == Gold.task_id).where(Task.kind == "rank", Task.state != "withdrawn")
    if batch is not None:
        statement = statement.where(Task.batch_id == batch)
    golds = []
    for task, answer in db.execute(statement.order_by(Gold.task_id)):
        completions, ranks = zip(*answer.items(), strict=True)
        golds.append(Ranked("", task, "", task, "", "gold", 0, True, None, 0, 0, None, 0, completions, ranks))
    return golds


def categories(rankings: Sequence[Ranked], ratings: Sequence[Rated]) -> list[Category]:
    """Ratings (ordinal), then every label that was answered (nominal; not applicable is an answer too), without hidden repeats."""
    from instructgpt.statistics.categorical_agreement import gwet_ac1, krippendorff_alpha, positive_agreement

    of = {each.submission: each for each in rankings if each.round == 0}
    answers: dict[str, list[tuple[Hashable, float, str]]] = {name: [] for name in ("rating", *LABELS)}
    for rated in ratings:
        ranking = of.get(rated.submission)
        if ranking is None:
            continue
        unit = (ranking.task, rated.completion)
        if rated.rating is not None:
            answers["rating"].append((unit, float(rated.rating), ranking.prompt))
        for name, answer in rated.labels.items():
            answers[name].append((unit, 2.0 if answer is None else float(answer), ranking.prompt))
    found = []
    for name, rows in answers.items():
        if not rows:
            continue
        units, values, prompts = zip(*rows, strict=True)
        if name == "rating":
            found.append(Category(name, len(rows), None, krippendorff_alpha(units, values, "ordinal", prompts), None, None))
            continue
        yes = [(unit, value == 1, prompt) for unit, value, prompt in rows if value != 2]
        positive = positive_agreement(*(list(column) for column in zip(*yes, strict=True))) if yes else None
        share = sum(value for _, value, _ in yes) / len(yes) if yes else None
        alpha = krippendorff_alpha(units, values, "nominal", prompts)
        found.append(Category(name, len(rows), share, alpha, gwet_ac1(units, values, prompts), positive))
    return found


def habits(
    rankings: Sequence[Ranked],
    ratings: Sequence[Rated],
    people: Mapping[str, Sequence[str]],
    agreement: Mapping[Hashable, LabelerAgreement],
    gold: Mapping[Hashable, Agreement],
    repeats: Mapping[Hashable, Agreement],
) -> list[Habits]:
    """One row a labeler, those who agree least with the others first."""
    from instructgpt.statistics import labeler_bias

    work: dict[str, list[Ranked]] = {}
    given: dict[str, list[int]] = {}
    for rated in ratings:
        if rated.rating is not None:
            given.setdefault(rated.submission, []).append(rated.rating)
    for each in rankings:
        work.setdefault(each.labeler, []).append(each)
    shown = [labeler_bias.Shown(each.labeler, each.ranks, given.get(each.submission), each.active_ms / 1000) for each in rankings]
    reports = {report.labeler: report for report in labeler_bias.reports(shown)}
    rows = []
    for labeler, own in work.items():
        numbers = Counter(rating for each in own for rating in given.get(each.submission, ()))
        counts = [numbers[rating] for rating in range(1, 8)]
        paste = [each.pasted for each in own if each.pasted is not None]
        times = [each.active_ms / 1000 / len(each.ranks) for each in own if each.active_ms]
        rows.append(
            Habits(
                labeler=labeler,
                name=people[labeler][0],
                pseudonym=people[labeler][1],
                cohort=own[0].cohort,
                rankings=len(own),
                seconds=median(times) if times else None,
                hours=sum(each.active_ms for each in own) / 3_600_000,
                pasted=fmean(paste) if paste else None,
                ratings=tuple(counts),
                mean_rating=sum(n * count for n, count in enumerate(counts, 1)) / sum(counts) if any(counts) else None,
                report=reports[labeler],
                agreement=agreement.get(labeler),
                gold=gold.get(labeler),
                repeats=repeats.get(labeler),
            )
        )
    return sorted(rows, key=doubtful)


def doubtful(row: Habits) -> tuple[bool, float, str]:
    """Order of the table: least agreement first, those of whom nothing is known last."""
    value = row.agreement.shrunk.value if row.agreement else None
    return value is None, value or 0.0, row.name


def disagreements(rankings: Sequence[Ranked]) -> list[Disagreement]:
    """Tasks that several labelers ranked, largest disagreement first. Hidden repeats and golds do not count."""
    from instructgpt.statistics import agreement as agreeing

    first = [each for each in by_task(rankings) if each.round == 0 and not each.gold]
    tasks = list(dict.fromkeys(each.task for each in first))
    people = Counter(each.task for each in first)
    cells = agreeing.compare(first)
    opposite, decided = Counter[int](), Counter[int]()
    for prompt, against, alike in zip(cells.prompt.tolist(), cells.opposite.tolist(), cells.alike.tolist(), strict=True):
        opposite[prompt] += round(against)
        decided[prompt] += round(against + alike)
    found = [Disagreement(task, people[task], opposite[n], decided[n]) for n, task in enumerate(tasks) if people[task] > 1]
    return sorted(found, key=lambda each: (-each.share, -each.opposite, each.task))
