"""Quality of the labelers' work: agreement, gold accuracy, hidden repeats, and a profile of each labeler.

The statistics package is imported inside the functions to keep scipy out of the site's start.
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
from instructgpt.label.db.models.people import Person
from instructgpt.label.db.models.quality import GoldAnswer
from instructgpt.label.db.models.submissions import RankingRow
from instructgpt.label.db.models.tasks import Batch, Task
from instructgpt.label.tasks.questions import OpenQuestionCounter, QuestionSet, parse_questions
from instructgpt.records import LABELS, RATING_POINTS, rescale_rating

if TYPE_CHECKING:
    from instructgpt.statistics.agreement import Agreement, AgreementMatrix, Concordance, LabelerAgreement
    from instructgpt.statistics.intervals import Estimate
    from instructgpt.statistics.labeler_bias import LabelerReport, PositionBias

TYPICAL_AGREEMENT_RANGE = (0.70, 0.80)
"""Published agreement on preferences: 72.6 % and 77.3 % (paper, section 3.4), 73 % (Stiennon et al., 2020)."""
_COHORT_GROUPS = ("training", "heldout", "researcher", "owner")


@dataclass(frozen=True, slots=True)
class CategoryAgreement:
    """Agreement on the rating, or on one label of the paper's Table 3."""

    name: str
    answers: int
    yes: float | None
    """Share of yes among yes and no."""
    alpha: Estimate
    ac1: Estimate | None
    positive: Estimate | None
    """Probability of yes from a second labeler, given yes from the first."""


@dataclass(frozen=True, slots=True)
class LabelerProfile:
    labeler: str
    name: str
    pseudonym: str
    cohort: str
    rankings: int
    seconds: float | None
    """Median active seconds a completion."""
    hours: float
    pasted: float | None
    """Mean share of pasted text; shown to researchers, never used automatically."""
    ratings: tuple[int, ...]
    """Counts of the ratings from 1 to the report's `rating_points`."""
    mean_rating: float | None
    unrated: int
    """Completions without the rating that their batch asks for."""
    unanswered: int
    """Open questions of the rankings, ratings left out."""
    report: LabelerReport
    """Ties, position bias, constant ratings and speed (`statistics.labeler_bias`)."""
    agreement: LabelerAgreement | None
    gold: Agreement | None
    repeats: Agreement | None

    @property
    def warnings(self) -> list[str]:
        """Names of the habits that differ from other labelers' (p < 0.05, adjusted for the number of labelers)."""
        report = self.report
        names = ("position", "ties", "all_tied", "same_rating", "as_shown", "hurried", "pace")
        p_values = {name: getattr(report, name).p for name in names}
        return [name for name, p in p_values.items() if p is not None and p < 0.05]


@dataclass(frozen=True, slots=True)
class TaskDisagreement:
    """The disagreement on one task, counted over all pairs of labelers."""

    task: str
    labelers: int
    opposite: int
    """Pairs of completions on which two labelers have opposite preferences."""
    decided: int
    """Pairs of completions on which neither of two labelers has a tie."""

    @property
    def share(self) -> float:
        return self.opposite / self.decided if self.decided else 0.0


@dataclass(frozen=True, slots=True)
class QualityReport:
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
    rating_points: int = RATING_POINTS
    """Of the scale of all ratings; batches with different scales are rescaled to the paper's."""
    has_mixed_scales: bool = False
    disagreements: Sequence[TaskDisagreement] = field(default_factory=tuple)


def compute_quality(db: Session, batch: str | None = None) -> QualityReport:
    """Compute the quality of one batch, or of all work. Seven statements."""
    from instructgpt.statistics import agreement, labeler_bias

    rankings = load_stored_rankings(db, batch)
    ratings = load_stored_ratings(db, batch)
    golds = _read_gold_rankings(db, batch)
    names_by_person = {person: rest for person, *rest in db.execute(select(Person.id, Person.name, Person.pseudonym))}
    cells = agreement.compare_labelers(rankings)
    by_task = _key_by_task(rankings)
    gold_agreement = agreement.gold_agreement(by_task, golds)
    repeat_agreement = agreement.intra_labeler_agreement(by_task)
    questions = load_question_sets(db)
    open_questions = _count_open_questions(db, questions, rankings, ratings)
    ratings, rating_points, has_mixed_scales = put_on_one_scale(questions, rankings, ratings)
    by_cohort = {cohort: [row for row in rankings if row.cohort == cohort] for cohort in _COHORT_GROUPS}
    by_labeler = {row.labeler: row for row in agreement.agreement_by_labeler(cells)}
    return QualityReport(
        rankings=len(rankings),
        tasks=len({row.task for row in rankings}),
        overall=agreement.summarize_agreement(cells),
        cohorts={cohort: agreement.inter_labeler_agreement(rows) for cohort, rows in by_cohort.items() if rows},
        concordance=agreement.concordance(rankings),
        tau=agreement.kendall_tau(cells),
        categories=_category_agreements(rankings, ratings),
        gold=gold_agreement.get(None),
        repeats=repeat_agreement.get(None),
        position=labeler_bias.measure_position_bias(row.ranks for row in rankings),
        labelers=_labeler_profiles(
            rankings,
            ratings,
            rating_points,
            names_by_person,
            by_labeler,
            gold_agreement,
            repeat_agreement,
            open_questions,
        ),
        matrix=agreement.agreement_matrix(cells),
        rating_points=rating_points,
        has_mixed_scales=has_mixed_scales,
        disagreements=_find_disagreements(by_task),
    )


@dataclass(frozen=True, slots=True)
class _TaskRanking:
    """A ranking whose prompt is the task: several tasks may share a prompt, and the statistics group by prompt."""

    prompt: str
    labeler: str
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    is_first: bool
    """Neither a hidden repeat nor gold."""
    models: None = None


def _key_by_task(rankings: Iterable[StoredRanking]) -> list[_TaskRanking]:
    return [
        _TaskRanking(row.task, row.labeler, row.completions, row.ranks, row.round == 0 and not row.gold)
        for row in rankings
    ]


def _read_gold_rankings(db: Session, batch: str | None = None) -> list[StoredRanking]:
    """Load the gold rankings, one per task, in the form of an unnamed labeler's rankings. One statement."""
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
    """Compute agreement on ratings (ordinal) and labels (nominal, including not applicable), without repeats."""
    from instructgpt.statistics.categorical_agreement import gwet_ac1, krippendorff_alpha, positive_agreement

    first_rankings = {row.submission: row for row in rankings if row.round == 0}
    answers: dict[str, list[tuple[Hashable, float, str, str]]] = {name: [] for name in ("rating", *LABELS)}
    for row in ratings:
        ranking = first_rankings.get(row.submission)
        if ranking is None:
            continue
        unit = (ranking.task, row.completion)
        if row.rating is not None:
            answers["rating"].append((unit, float(row.rating), ranking.prompt, ranking.labeler))
        for name, answer in row.labels.items():
            value = 2.0 if answer is None else float(answer)
            answers.setdefault(name, []).append((unit, value, ranking.prompt, ranking.labeler))
    results = []
    for name, rows in answers.items():
        if not rows:
            continue
        units, values, prompts, labelers = zip(*rows, strict=True)
        if name == "rating":
            alpha = krippendorff_alpha(units, values, "ordinal", prompts, labelers)
            results.append(CategoryAgreement(name, len(rows), None, alpha, None, None))
            continue
        applicable = [(unit, value == 1, prompt, labeler) for unit, value, prompt, labeler in rows if value != 2]
        positive = positive_agreement(*map(list, zip(*applicable, strict=True))) if applicable else None
        share = sum(value for _, value, *_ in applicable) / len(applicable) if applicable else None
        alpha = krippendorff_alpha(units, values, "nominal", prompts, labelers)
        ac1 = gwet_ac1(units, values, prompts, labelers=labelers)
        results.append(CategoryAgreement(name, len(rows), share, alpha, ac1, positive))
    return results


def load_question_sets(db: Session) -> dict[str, QuestionSet]:
    """Return the questions of every batch of rankings. One statement."""
    documents = db.execute(select(Batch.id, Batch.questions).where(Batch.kind == "rank"))
    return {batch: parse_questions(document) for batch, document in documents}


def put_on_one_scale(
    questions: Mapping[str, QuestionSet], rankings: Sequence[StoredRanking], ratings: list[StoredRating]
) -> tuple[list[StoredRating], int, bool]:
    """Return the ratings, the points of their scale, and whether they were rescaled to the paper's from several."""
    batch_by_submission = {row.submission: row.batch for row in rankings}
    points_by_batch = {batch: questions[batch].rating.points for batch in set(batch_by_submission.values())}
    scales = set(points_by_batch.values())
    if len(scales) < 2:
        return ratings, scales.pop() if scales else RATING_POINTS, False
    rescaled = []
    for row in ratings:
        batch = batch_by_submission.get(row.submission)
        if row.rating is not None and batch is not None:
            row = replace(row, rating=rescale_rating(row.rating, points_by_batch[batch]))
        rescaled.append(row)
    return rescaled, RATING_POINTS, True


def _count_open_questions(
    db: Session,
    questions: Mapping[str, QuestionSet],
    rankings: Sequence[StoredRanking],
    ratings: Sequence[StoredRating],
) -> Counter[tuple[str, bool]]:
    """Count the open questions by (labeler, whether it is the rating). One statement."""
    statement = select(RankingRow.submission_id, RankingRow.answers).where(RankingRow.answers.is_not(None))
    answers = {submission: row or {} for submission, row in db.execute(statement)}
    ratings_by_submission: dict[str, dict[str, StoredRating]] = {}
    for rating in ratings:
        ratings_by_submission.setdefault(rating.submission, {})[rating.completion] = rating
    counts = Counter[tuple[str, bool]]()
    counter = OpenQuestionCounter(questions)
    for row in rankings:
        submitted = ratings_by_submission.get(row.submission, {})
        unrated, unanswered = counter.count(row.batch, answers.get(row.submission, {}), submitted, row.completions)
        counts[row.labeler, True] += unrated
        counts[row.labeler, False] += unanswered
    return counts


def _labeler_profiles(
    rankings: Sequence[StoredRanking],
    ratings: Sequence[StoredRating],
    rating_points: int,
    names_by_person: Mapping[str, Sequence[str]],
    agreement: Mapping[Hashable, LabelerAgreement],
    gold: Mapping[Hashable, Agreement],
    repeats: Mapping[Hashable, Agreement],
    open_questions: Mapping[tuple[str, bool], int],
) -> list[LabelerProfile]:
    """Build one profile per labeler, lowest agreement with the others first."""
    from instructgpt.statistics import labeler_bias

    rankings_by_labeler: dict[str, list[StoredRanking]] = {}
    ratings_by_submission: dict[str, list[float]] = {}
    for rating in ratings:
        if rating.rating is not None:
            ratings_by_submission.setdefault(rating.submission, []).append(rating.rating)
    presented_rankings = []
    for row in rankings:
        values = ratings_by_submission.get(row.submission)
        rankings_by_labeler.setdefault(row.labeler, []).append(row)
        presented_rankings.append(labeler_bias.PresentedRanking(row.labeler, row.ranks, values, row.active_ms / 1000))
    reports = {report.labeler: report for report in labeler_bias.labeler_reports(presented_rankings)}
    profiles = []
    for labeler, rows in rankings_by_labeler.items():
        values = [value for row in rows for value in ratings_by_submission.get(row.submission, ())]
        rating_counts = Counter(int(value + 0.5) for value in values)
        counts = [rating_counts[value] for value in range(1, rating_points + 1)]
        pasted = [row.pasted for row in rows if row.pasted is not None]
        seconds = [row.active_ms / 1000 / len(row.ranks) for row in rows if row.active_ms]
        profiles.append(
            LabelerProfile(
                labeler=labeler,
                name=names_by_person[labeler][0],
                pseudonym=names_by_person[labeler][1],
                cohort=rows[0].cohort,
                rankings=len(rows),
                seconds=median(seconds) if seconds else None,
                hours=sum(row.active_ms for row in rows) / 3_600_000,
                pasted=fmean(pasted) if pasted else None,
                ratings=tuple(counts),
                mean_rating=fmean(values) if values else None,
                unrated=open_questions.get((labeler, True), 0),
                unanswered=open_questions.get((labeler, False), 0),
                report=reports[labeler],
                agreement=agreement.get(labeler),
                gold=gold.get(labeler),
                repeats=repeats.get(labeler),
            )
        )
    return sorted(profiles, key=_agreement_sort_key)


def _agreement_sort_key(profile: LabelerProfile) -> tuple[bool, float, str]:
    value = profile.agreement.shrunk.value if profile.agreement else None
    return value is None, value or 0.0, profile.name


def find_disagreements(rankings: Sequence[StoredRanking]) -> list[TaskDisagreement]:
    """Return the tasks of several labelers, largest disagreement first, without hidden repeats and gold."""
    return _find_disagreements(_key_by_task(rankings))


def _find_disagreements(rankings: Sequence[_TaskRanking]) -> list[TaskDisagreement]:
    from instructgpt.statistics import agreement

    first_rankings = [row for row in rankings if row.is_first]
    labelers = Counter(row.prompt for row in first_rankings)
    cells = agreement.compare_labelers(first_rankings)
    opposite, decided = Counter[int](), Counter[int]()
    columns = (cells.prompt.tolist(), cells.discordant.tolist(), cells.concordant.tolist())
    for task_index, discordant, concordant in zip(*columns, strict=True):
        opposite[task_index] += round(discordant)
        decided[task_index] += round(discordant + concordant)
    counts = enumerate(labelers.items())
    results = [TaskDisagreement(task, k, opposite[n], decided[n]) for n, (task, k) in counts if k > 1]
    return sorted(results, key=lambda row: (-row.share, -row.opposite, row.task))
