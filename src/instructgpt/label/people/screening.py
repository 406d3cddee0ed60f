"""The screening test (paper, appendix B.1): its four parts, how far somebody is, their numbers, and the decision a person takes.

Nothing is decided here. The cut-offs are the paper's "soft" ones, shown beside each number with its interval and its count.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    Assignment,
    Batch,
    Decision,
    Demonstration,
    Gold,
    Grade,
    Person,
    Prompt,
    PromptReview,
    RankingItem,
    Submission,
    Task,
)
from instructgpt.label.db.models.people import Status
from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.errors import Problem
from instructgpt.label.people.surveys import is_done

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate

Part = Literal["sensitive", "ranking", "demonstration"]
PARTS: tuple[Part, ...] = get_args(Part)
KINDS: dict[Part, Kind] = {"sensitive": "review", "ranking": "rank", "demonstration": "demonstrate"}
CUTOFFS: dict[Part, float] = {"sensitive": 0.75, "ranking": 0.75, "demonstration": 6.0}
"""Soft, as in the paper: 75 % agreement on flagging sensitive speech and on comparisons, a demonstration score of 6 of 7."""
ENOUGH: dict[Part, int] = {"sensitive": 60, "ranking": 20, "demonstration": 8}
"""Fewer items say little: 75 % of 20 is anything from 53 % to 89 %."""
FOLDS = 5

Verdict = Literal["admit", "decline", "pause", "resume"]
VERDICTS: dict[Verdict, tuple[tuple[Status, ...], Status]] = {
    "admit": (("screening", "declined"), "active"),
    "decline": (("screening",), "declined"),
    "pause": (("active",), "paused"),
    "resume": (("paused",), "active"),
}
"""From which states a verdict leads to which."""


class Progress(BaseModel):
    """How far somebody is with one part: tasks handed in, and tasks there are."""

    model_config = ConfigDict(frozen=True)
    part: str
    kind: Kind | None
    done: int
    total: int

    @property
    def left(self) -> int:
        """Tasks still to be handed in."""
        return max(0, self.total - self.done)


class Measure(BaseModel):
    """One number of the screening test. All are None where nothing was measured yet."""

    model_config = ConfigDict(frozen=True)
    value: float | None
    low: float | None
    high: float | None
    items: int
    """Prompts: judged, ranked or written for."""
    cutoff: float
    enough: bool
    """Whether there are as many items as such a test should have."""


def progress(db: Session, person: Person) -> list[Progress]:
    """How far somebody is, part by part; the survey of groups is the fourth."""
    totals = dict(
        db.execute(
            select(Batch.screening, func.count(Task.id))
            .join(Task, Task.batch_id == Batch.id)
            .where(Batch.screening.is_not(None), Batch.state == "open", Task.state != "withdrawn")
            .group_by(Batch.screening)
        ).all()
    )
    parts = [
        Progress(part=part, kind=KINDS[part], done=done, total=max(done, totals.get(part, 0)))
        for part in PARTS
        for done in [len(db.scalars(_submissions(person, part)).all())]
    ]
    return [*parts, Progress(part="groups", kind=None, done=int(is_done(db, person, "groups")), total=1)]


def measures(db: Session, person: Person) -> dict[Part, Measure]:
    """Somebody's numbers on the three parts that have numbers."""
    return {
        "sensitive": _measure("sensitive", *sensitive_agreement(db, person)),
        "ranking": _measure("ranking", *ranking_agreement(db, person)),
        "demonstration": _graded(demonstration_scores(db, person)),
    }


def sensitive_agreement(db: Session, person: Person) -> tuple[float, int]:
    """(prompts flagged as the gold answer has it, prompts). One handed in without an answer is not flagged as it should be."""
    rows = db.execute(
        _submissions(person, "sensitive")
        .join(PromptReview, PromptReview.submission_id == Submission.id)
        .join(Gold, Gold.task_id == Task.id)
        .with_only_columns(PromptReview.sensitive, Gold.answer)
    )
    right = [said is not None and said == answer.get("sensitive") for said, answer in rows]
    return float(sum(right)), len(right)


def ranking_agreement(db: Session, person: Person) -> tuple[float, int]:
    """(agreement with the researchers' rankings, summed over prompts; prompts).

    A prompt's agreement is the share of the pairs the researchers decided that the person put the same way round; a tie of the
    person's is worth one half, so that tying everything gives 1/2 and not nothing at all or everything. Prompts count alike, since
    pairs of one prompt are not independent of each other.
    """
    ranked: dict[str, dict[str, int]] = {}
    gold: dict[str, dict[str, int]] = {}
    for submission, completion, rank, answer in db.execute(
        _submissions(person, "ranking")
        .join(RankingItem, RankingItem.submission_id == Submission.id)
        .join(Gold, Gold.task_id == Task.id)
        .with_only_columns(Submission.id, RankingItem.completion_id, RankingItem.rank, Gold.answer)
    ):
        ranked.setdefault(submission, {})[completion] = rank
        gold[submission] = answer
    shares = [share for submission, ranks in ranked.items() if (share := pair_agreement(ranks, gold[submission])) is not None]
    return sum(shares), len(shares)


def pair_agreement(ranks: dict[str, int], gold: dict[str, int]) -> float | None:
    """The share of the gold ranking's decided pairs that a ranking has the same way round, its ties worth 1/2; None without such pairs."""
    decided = [(a, b) for a, b in combinations(sorted(ranks.keys() & gold.keys()), 2) if gold[a] != gold[b]]
    same = [0.5 if ranks[a] == ranks[b] else float((ranks[a] < ranks[b]) == (gold[a] < gold[b])) for a, b in decided]
    return sum(same) / len(same) if same else None


def demonstration_scores(db: Session, person: Person) -> list[float]:
    """The mean grade, 1–7, of each demonstration that a researcher has graded."""
    grades: dict[str, list[int]] = {}
    statement = _submissions(person, "demonstration").join(Grade, Grade.submission_id == Submission.id)
    for submission, score in db.execute(statement.with_only_columns(Submission.id, Grade.score)):
        grades.setdefault(submission, []).append(score)
    return [sum(scores) / len(scores) for scores in grades.values()]


def ungraded(db: Session, grader: Person) -> Iterator[tuple[Submission, str, str]]:
    """(submission, prompt, demonstration) of every demonstration this person has not graded, in an order that tells no author."""
    mine = select(Grade.submission_id).where(Grade.grader_id == grader.id)
    rows = db.execute(
        _submissions(None, "demonstration")
        .join(Demonstration, Demonstration.submission_id == Submission.id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .where(Submission.id.not_in(mine))
        .with_only_columns(Submission, Prompt.text, Demonstration.text)
    )
    yield from sorted(rows, key=lambda row: row[0].id[::-1])


def grade(db: Session, grader: Person, submission_id: str, score: int) -> None:
    """Grade a demonstration of the screening test, 1–7, or change one's own grade.

    Raises:
        Problem: there is no such demonstration, or no such grade.
    """
    if not 1 <= score <= 7:
        raise Problem(422, "bad_score")
    if db.scalar(_submissions(None, "demonstration").where(Submission.id == submission_id)) is None:
        raise Problem(404, "not_found")
    row = db.get(Grade, (submission_id, grader.id))
    if row is None:
        db.add(Grade(submission_id=submission_id, grader_id=grader.id, score=score))
    else:
        row.score = score
    db.flush()
    audit_log.note(db, grader.id, "screening.grade", submission_id, score=score)


def decide(db: Session, person: Person, by: Person, verdict: str, reason: str) -> Decision:
    """Record what somebody decided about a labeler, with the numbers as they stood, and carry it out.

    A labeler for training who is admitted joins the smallest fold.

    Raises:
        Problem: there is no such verdict, it does not fit the labeler's state, or the reason is missing.
    """
    if verdict not in possible(person):
        raise Problem(409, "no_such_verdict")
    if not reason.strip():
        raise Problem(422, "reason_missing")
    measured = {part: measure.model_dump() for part, measure in measures(db, person).items()}
    row = Decision(person_id=person.id, by_id=by.id, verdict=verdict, reason=reason.strip(), measured=measured)
    person.status = VERDICTS[possible(person)[verdict]][1]
    if verdict == "admit":
        assign_fold(db, person)
    db.add(row)
    db.flush()
    audit_log.note(db, by.id, f"person.{verdict}", person.id, decision=row.id, measured=measured)
    return row


def possible(person: Person) -> dict[str, Verdict]:
    """The verdicts that fit a labeler's state, by name."""
    fitting = [verdict for verdict, (before, _) in VERDICTS.items() if person.role == "labeler" and person.status in before]
    return {str(verdict): verdict for verdict in fitting}


def assign_fold(db: Session, person: Person) -> None:
    """Put a training labeler who has none into the smallest fold. Nobody is ever moved: folds keep the labels made in them."""
    if person.cohort != "training" or person.fold is not None:
        return
    sizes = dict(db.execute(select(Person.fold, func.count()).where(Person.fold.is_not(None)).group_by(Person.fold)).all())
    person.fold = min(range(FOLDS), key=lambda fold: (sizes.get(fold, 0), fold))
    db.flush()


def decisions(db: Session, person: Person) -> list[Decision]:
    """What was decided about somebody, latest first."""
    return list(db.scalars(select(Decision).where(Decision.person_id == person.id).order_by(Decision.id.desc())))


def _submissions(person: Person | None, part: Part) -> Select[Submission]:
    """The current submissions of a part, somebody's or everybody's."""
    chosen = (
        select(Submission)
        .join(Assignment, Assignment.id == Submission.assignment_id)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(Batch.screening == part, Submission.replaced_at.is_(None), Submission.invalid_reason.is_(None), Assignment.round == 0)
    )
    return chosen if person is None else chosen.where(Assignment.person_id == person.id)


def _measure(part: Part, agreed: float, items: int) -> Measure:
    """A share with Wilson's interval."""
    from instructgpt.statistics.intervals import wilson  # loads scipy, which the site starts without

    return _shown(part, wilson(agreed, items), items)


def _graded(scores: list[float]) -> Measure:
    """A mean grade with its interval over demonstrations, cut at the ends of the scale."""
    from instructgpt.statistics.intervals import mean  # loads scipy, which the site starts without

    part: Part = "demonstration"
    found = _shown(part, mean(scores, list(range(len(scores)))), len(scores))
    low, high = (None if end is None else min(7.0, max(1.0, end)) for end in (found.low, found.high))
    return found.model_copy(update={"low": low, "high": high})


def _shown(part: Part, estimate: Estimate, items: int) -> Measure:
    return Measure(
        value=estimate.value, low=estimate.low, high=estimate.high, items=items, cutoff=CUTOFFS[part], enough=items >= ENOUGH[part]
    )
