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

from instructgpt.label.analysis.rankings import StoredRanking, StoredRating, load_stored_rankings, load_stored_ratings
from instructgpt.label.db.models import GoldAnswer, Person, Task
from instructgpt.records import LABELS

if TYPE_CHECKING:
    from instructgpt.statistics.agreement import Agreement, AgreementMatrix, Concordance, LabelerAgreement
    from instructgpt.statistics.intervals import Estimate
    from instructgpt.statistics.labeler_bias import LabelerReport, PositionBias

TYPICAL_AGREEMENT_RANGE = (0.70, 0.80)
"""Where agreement of preference data has been seen to lie: 72.6 % and 77.3 % in the paper (3.4), 73 % among researchers before it."""
_COHORT_GROUPS = ("training", "heldout", "researcher", "owner")


@dataclass(frozen=True, slots=True)
class CategoryAgreement:
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
class LabelerProfile:
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
    report: LabelerReport
    """Ties, position bias, straight lines, haste: see the statistics package."""
    agreement: LabelerAgreement | None
    gold: Agreement | None
    repeats: Agreement | None

    @property
    def warnings(self) -> list[str]:
        """What a person should look at: habits unlike the others' beyond chance (p below 0.05, adjusted for the number of labelers)."""
        report = self.report
        p_values = {
            name: getattr(report, name).p for name in ("ties", "all_tied", "same_rating", "as_shown", "hurried", "pace")
        }
        return [name for name, p in {"position": report.position.p, **p_values}.items() if p is not None and p < 0.05]


@dataclass(frozen=True, slots=True)
class TaskDisagreement:
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
class QualityReport:
    """Everything the page shows."""

    rankings: int
    tasks: int
    overall: Agreement
    cohorts: Mapping[str, Agreement]
    concordance: Concordance
    tau: Estimate
    categories: Sequence[CategoryAgreement]
    gold: Agreement | None
    repeats: Agreement | None
    position: PositionBias
    labelers: Sequence[LabelerProfile]
    matrix: AgreementMatrix
    disagreements: Sequence[TaskDisagreement] = field(default_factory=tuple)


def compute_quality(db: Session, batch: str | None = None) -> QualityReport:
    """The quality of all work, or of one batch. Five statements, however much there is."""
    from instructgpt.statistics import agreement as agreeing
    from instructgpt.statistics import labeler_bias

    rankings = load_stored_rankings(db, batch)
    ratings = load_stored_ratings(db, batch)
    golds = _read_gold_rankings(db, batch)
    names_by_person = {person: rest for person, *rest in db.execute(select(Person.id, Person.name, Person.pseudonym))}
    cells = agreeing.compare_labelers(rankings)
    gold_agreement = agreeing.gold_agreement(_key_by_task(rankings), golds)
    repeat_agreement = agreeing.intra_labeler_agreement(_key_by_task(rankings))
    cohorts = {
        cohort: agreeing.inter_labeler_agreement([each for each in rankings if each.cohort == cohort])
        for cohort in _COHORT_GROUPS
        if any(each.cohort == cohort for each in rankings)
    }
    agreement_by_labeler = {each.labeler: each for each in agreeing.agreement_by_labeler(cells)}
    return QualityReport(
        rankings=len(rankings),
        tasks=len({each.task for each in rankings}),
        overall=agreeing.summarize_agreement(cells),
        cohorts=cohorts,
        concordance=agreeing.concordance(rankings),
        tau=agreeing.kendall_tau(cells),
        categories=_category_agreements(rankings, ratings),
        gold=gold_agreement.get(None),
        repeats=repeat_agreement.get(None),
        position=labeler_bias.measure_position_bias(each.ranks for each in rankings),
        labelers=_labeler_profiles(
            rankings, ratings, names_by_person, agreement_by_labeler, gold_agreement, repeat_agreement
        ),
        matrix=agreeing.agreement_matrix(cells),
        disagreements=find_disagreements(rankings),
    )


def _key_by_task(rankings: Iterable[StoredRanking]) -> list[StoredRanking]:
    """The same rankings with the task in the prompt's place: two tasks may ask about one prompt."""
    return [replace(each, prompt=each.task) for each in rankings]


def _read_gold_rankings(db: Session, batch: str | None = None) -> list[StoredRanking]:
    """Gold rankings, one a task, as if a labeler without a name had made them. One statement."""
    statement = (
        select(GoldAnswer.task_id, GoldAnswer.answer)
        .join(Task, Task.id == GoldAnswer.task_id)
        .where(Task.kind == "rank", Task.state != "withdrawn")
    )
    if batch is not None:
        statement = statement.where(Task.batch_id == batch)
    golds = []
    for task, answer in db.execute(statement.order_by(GoldAnswer.task_id)):
        completions, ranks = zip(*answer.items(), strict=True)
        golds.append(StoredRanking("", task, "", task, "", "gold", 0, True, None, 0, 0, None, 0, completions, ranks))
    return golds


def _category_agreements(rankings: Sequence[StoredRanking], ratings: Sequence[StoredRating]) -> list[CategoryAgreement]:
    """Ratings (ordinal), then every label that was answered (nominal; not applicable is an answer too), without hidden repeats."""
    from instructgpt.statistics.categorical_agreement import gwet_ac1, krippendorff_alpha, positive_agreement

    first_rankings = {each.submission: each for each in rankings if each.round == 0}
    answers: dict[str, list[tuple[Hashable, float, str]]] = {name: [] for name in ("rating", *LABELS)}
    for stored_rating in ratings:
        ranking = first_rankings.get(stored_rating.submission)
        if ranking is None:
            continue
        unit = (ranking.task, stored_rating.completion)
        if stored_rating.rating is not None:
            answers["rating"].append((unit, float(stored_rating.rating), ranking.prompt))
        for name, answer in stored_rating.labels.items():
            answers[name].append((unit, 2.0 if answer is None else float(answer), ranking.prompt))
    results = []
    for name, rows in answers.items():
        if not rows:
            continue
        units, values, prompts = zip(*rows, strict=True)
        if name == "rating":
            results.append(
                CategoryAgreement(
                    name, len(rows), None, krippendorff_alpha(units, values, "ordinal", prompts), None, None
                )
            )
            continue
        applicable = [(unit, value == 1, prompt) for unit, value, prompt in rows if value != 2]
        positive = (
            positive_agreement(*(list(column) for column in zip(*applicable, strict=True))) if applicable else None
        )
        share = sum(value for _, value, _ in applicable) / len(applicable) if applicable else None
        alpha = krippendorff_alpha(units, values, "nominal", prompts)
        results.append(CategoryAgreement(name, len(rows), share, alpha, gwet_ac1(units, values, prompts), positive))
    return results


def _labeler_profiles(
    rankings: Sequence[StoredRanking],
    ratings: Sequence[StoredRating],
    names_by_person: Mapping[str, Sequence[str]],
    agreement: Mapping[Hashable, LabelerAgreement],
    gold: Mapping[Hashable, Agreement],
    repeats: Mapping[Hashable, Agreement],
) -> list[LabelerProfile]:
    """One row a labeler, those who agree least with the others first."""
    from instructgpt.statistics import labeler_bias

    rankings_by_labeler: dict[str, list[StoredRanking]] = {}
    ratings_by_submission: dict[str, list[int]] = {}
    for stored_rating in ratings:
        if stored_rating.rating is not None:
            ratings_by_submission.setdefault(stored_rating.submission, []).append(stored_rating.rating)
    for ranking in rankings:
        rankings_by_labeler.setdefault(ranking.labeler, []).append(ranking)
    presented_rankings = [
        labeler_bias.PresentedRanking(
            ranking.labeler, ranking.ranks, ratings_by_submission.get(ranking.submission), ranking.active_ms / 1000
        )
        for ranking in rankings
    ]
    reports = {report.labeler: report for report in labeler_bias.labeler_reports(presented_rankings)}
    rows = []
    for labeler, labeler_rankings in rankings_by_labeler.items():
        rating_counts = Counter(
            rating for ranking in labeler_rankings for rating in ratings_by_submission.get(ranking.submission, ())
        )
        counts = [rating_counts[rating] for rating in range(1, 8)]
        pasted_shares = [ranking.pasted for ranking in labeler_rankings if ranking.pasted is not None]
        seconds = [ranking.active_ms / 1000 / len(ranking.ranks) for ranking in labeler_rankings if ranking.active_ms]
        rows.append(
            LabelerProfile(
                labeler=labeler,
                name=names_by_person[labeler][0],
                pseudonym=names_by_person[labeler][1],
                cohort=labeler_rankings[0].cohort,
                rankings=len(labeler_rankings),
                seconds=median(seconds) if seconds else None,
                hours=sum(ranking.active_ms for ranking in labeler_rankings) / 3_600_000,
                pasted=fmean(pasted_shares) if pasted_shares else None,
                ratings=tuple(counts),
                mean_rating=sum(n * count for n, count in enumerate(counts, 1)) / sum(counts) if any(counts) else None,
                report=reports[labeler],
                agreement=agreement.get(labeler),
                gold=gold.get(labeler),
                repeats=repeats.get(labeler),
            )
        )
    return sorted(rows, key=_agreement_sort_key)


def _agreement_sort_key(profile: LabelerProfile) -> tuple[bool, float, str]:
    """Order of the table: least agreement first, those of whom nothing is known last."""
    value = profile.agreement.shrunk.value if profile.agreement else None
    return value is None, value or 0.0, profile.name


def find_disagreements(rankings: Sequence[StoredRanking]) -> list[TaskDisagreement]:
    """Tasks that several labelers ranked, largest disagreement first. Hidden repeats and golds do not count."""
    from instructgpt.statistics import agreement as agreeing

    first_rankings = [each for each in _key_by_task(rankings) if each.round == 0 and not each.gold]
    tasks = list(dict.fromkeys(each.task for each in first_rankings))
    labeler_counts = Counter(each.task for each in first_rankings)
    cells = agreeing.compare_labelers(first_rankings)
    opposite, decided = Counter[int](), Counter[int]()
    for task_index, opposite_count, agreeing_count in zip(
        cells.prompt.tolist(), cells.discordant.tolist(), cells.concordant.tolist(), strict=True
    ):
        opposite[task_index] += round(opposite_count)
        decided[task_index] += round(opposite_count + agreeing_count)
    results = [
        TaskDisagreement(task, labeler_counts[task], opposite[n], decided[n])
        for n, task in enumerate(tasks)
        if labeler_counts[task] > 1
    ]
    return sorted(results, key=lambda each: (-each.share, -each.opposite, each.task))
