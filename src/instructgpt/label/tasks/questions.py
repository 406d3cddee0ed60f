"""The questions of a batch of rankings: the rating scale, the labels of Table 3, and others that its owner adds.

Each is required, optional or off. A question may be asked once a task (`scope: task`), or only after a certain answer
to another one (`when`). Without a document the questions are the paper's, all optional.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.label.db.models import Batch
from instructgpt.label.tasks.forms import RankingForm
from instructgpt.label.vocabulary import MAX_RATING_POINTS
from instructgpt.records import LABELS, format_validation_error

AnswerPolicy = Literal["required", "optional", "off"]
ANSWER_POLICIES: tuple[AnswerPolicy, ...] = ("required", "optional", "off")
CONSTRAINT_QUESTION = "has_constraint"
"""Asked once a task; `satisfies_constraint` of Table 3 is asked only where the prompt has a constraint."""
_MAX_QUESTIONS = 60
_UNSTORABLE_PATTERN = re.compile("[\x00\ud800-\udfff]")  # NUL and half surrogates, as in `ingest.replace_unstorable`


def _check_storable(text: str) -> str:
    if _UNSTORABLE_PATTERN.search(text):
        raise ValueError("a NUL or half a surrogate pair cannot be stored")
    return text


_Text = Annotated[str, Field(min_length=1, max_length=400, strict=True), AfterValidator(_check_storable)]
_Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,35}$", strict=True)]
_Texts = dict[_Language, _Text]


def _off_from_boolean(value: object) -> object:
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


_Policy = Annotated[AnswerPolicy, BeforeValidator(_off_from_boolean)]


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    answer: _Policy = "optional"


class RatingQuestion(_Question):
    """The overall quality, from 1 to `points`; `low` and `high` name the ends by language."""

    points: int = Field(7, ge=2, le=MAX_RATING_POINTS)
    low: _Texts = {}
    high: _Texts = {}


class LabelQuestion(_Question):
    """A yes/no question about a completion or the whole task."""

    scope: Literal["completion", "task"] = "completion"
    text: _Texts = {}  # by language; empty for the questions of the catalogue
    short: _Texts = {}  # for chips and tables; empty: the text
    not_applicable: bool = False  # a third answer
    explicit_no: bool = False  # No means a fault: the "mark the rest as No" shortcut skips the question
    when: dict[str, bool] = {}  # answers of other questions after which it is asked

    @property
    def may_be_inapplicable(self) -> bool:
        return self.not_applicable or bool(self.when)


def _table_3() -> dict[str, LabelQuestion]:
    questions = {
        name: LabelQuestion(not_applicable=name in ("inappropriate", "hallucination"))
        for name in LABELS
        if name != "satisfies_constraint"
    }
    constraint = LabelQuestion(explicit_no=True, not_applicable=True, when={CONSTRAINT_QUESTION: True})
    ordered = {name: questions.get(name, constraint) for name in LABELS}
    return {CONSTRAINT_QUESTION: LabelQuestion(scope="task"), **ordered}


TABLE_3: Mapping[str, LabelQuestion] = _table_3()


class QuestionSet(BaseModel):
    """All questions of a batch, in the order in which they are asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rating: RatingQuestion = RatingQuestion()
    labels: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")], LabelQuestion] = Field(
        default_factory=lambda: dict(TABLE_3), max_length=_MAX_QUESTIONS
    )

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        earlier: dict[str, LabelQuestion] = {}
        for name, question in self.labels.items():
            if not question.text and name not in TABLE_3:
                raise ValueError(f"labels.{name} needs a text, such as text: {{en: ...}}")
            for condition in question.when:
                if condition not in earlier:
                    raise ValueError(f"labels.{name}.when: there is no question '{condition}' before it")
                if question.scope == "task" and earlier[condition].scope != "task":
                    raise ValueError(f"labels.{name}.when: a question of the task cannot follow one of a completion")
                if earlier[condition].answer == "off" and question.answer != "off":
                    raise ValueError(f"labels.{name}.when: the question '{condition}' is off")
            earlier[name] = question
        return self

    def active(self, scope: str) -> dict[str, LabelQuestion]:
        """Return the questions of a scope that are not off."""
        return {name: each for name, each in self.labels.items() if each.scope == scope and each.answer != "off"}


class Unanswered(BaseModel):
    """An open question; `completion` is None for a question of the task, `name` is `rating` for the rating."""

    model_config = ConfigDict(frozen=True)
    completion: str | None
    name: str
    required: bool


def parse_questions(document: object) -> QuestionSet:
    """Build the questions from a document (YAML or JSON) whose entries change or extend Table 3.

    Raises:
        InputError: names the entry.
    """
    if document is None:
        return QuestionSet()
    if not isinstance(document, dict) or set(document) - {"rating", "table_3", "labels"}:
        raise InputError("questions: expected the entries rating, table_3 and labels")
    general = _off_from_boolean(document.get("table_3", "optional"))
    if general not in ANSWER_POLICIES:
        raise InputError(f"questions: table_3: '{general}' is none of {', '.join(ANSWER_POLICIES)}")
    entries = document.get("labels") or {}
    if not isinstance(entries, dict):
        raise InputError("questions: labels: expected the name of each question with its settings")
    labels: dict[str, Any] = {name: question.model_dump() | {"answer": general} for name, question in TABLE_3.items()}
    for name, entry in entries.items():
        entry = {"answer": entry} if isinstance(entry, str | bool) else entry
        if not isinstance(entry, dict):
            raise InputError(f"questions: labels.{name}: expected required, optional, off, or the fields of a question")
        labels[name] = labels.get(name, {}) | entry
    constraint = labels["satisfies_constraint"]
    if CONSTRAINT_QUESTION not in entries and constraint["when"] == {CONSTRAINT_QUESTION: True}:
        labels[CONSTRAINT_QUESTION]["answer"] = constraint["answer"]
    rating = document.get("rating") or {}
    rating = {"answer": rating} if isinstance(rating, str | bool) else rating
    try:
        return QuestionSet.model_validate({"rating": rating, "labels": labels})
    except ValidationError as error:
        raise InputError(f"questions: {format_validation_error(error)}") from error


def batch_questions(batch: Batch) -> QuestionSet:
    """Return the questions of a batch of rankings."""
    return parse_questions(batch.questions)


def load_own_questions(db: Session, batch: str | None = None) -> dict[str, LabelQuestion]:
    """Return the questions beyond Table 3 of one batch or of all, by name; the newest batch decides its text."""
    statement = select(Batch.questions).where(Batch.questions.is_not(None)).order_by(Batch.created_at)
    documents = db.scalars(statement.where(Batch.id == batch) if batch else statement)
    sets = [parse_questions(document) for document in documents if document]
    return {name: question for each in sets for name, question in each.labels.items() if question.text}


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few lines with them unfold to any size."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read here", mark)
        return super().compose_node(parent, index)


def load_questions_yaml(text: str) -> dict[str, Any] | None:
    """Read a document and return it if it is valid, None if it is empty; raise InputError with line or entry."""
    try:
        document = yaml.load(text, _PlainLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"questions: {line}{getattr(error, 'problem', None) or 'not YAML'}") from error
    except (RecursionError, ValueError) as error:  # ValueError: a tag such as !!int or a date of something else
        raise InputError("questions: nested too deeply, or a value that is none of its type") from error
    parse_questions(document)
    return document or None


Answers = Mapping[str, bool | None]


def is_asked(question: LabelQuestion, answers: Answers) -> bool:
    """Return whether the answers so far lead to a question; an open question before it does not."""
    return all(answers.get(name) is expected for name, expected in question.when.items())


def _is_excluded(question: LabelQuestion, answers: Answers) -> bool:
    """Return whether the answers so far rule a question out."""
    return any(name in answers and answers[name] is not expected for name, expected in question.when.items())


def complete_form(questions: QuestionSet, form: RankingForm, completions: Sequence[str]) -> RankingForm:
    """Check a form against the questions, and fill what follows from its answers.

    A question that an answer rules out is not applicable (None). A program that answers only `satisfies_constraint`
    has answered `has_constraint` too. `completions`: in the order of their letters.

    Raises:
        ValueError: an answer to a question that is off, unknown or ruled out; a rating above the scale.
    """
    answers = _check_answers(questions, form.answers, {}, "task", "the task")
    ratings = {rating.completion: rating for rating in form.ratings}
    answers = _derive_constraint(questions, answers, [rating.labels for rating in form.ratings])
    ratings_out = []
    for letter, completion in zip(ascii_uppercase, completions, strict=False):
        rating = ratings.get(completion)
        labels = rating.labels if rating else {}
        labels = _check_answers(questions, labels, answers, "completion", f"completion {letter}")
        value = rating.rating if rating else None
        if value is not None and (questions.rating.answer == "off" or value > questions.rating.points):
            limit = "there is no rating" if questions.rating.answer == "off" else f"up to {questions.rating.points}"
            raise ValueError(f"completion {letter} is rated {value}; in this batch: {limit}")
        if value is not None or labels or (rating and rating.note):
            note = rating.note if rating else ""
            ratings_out.append({"completion": completion, "rating": value, "labels": labels, "note": note})
    return RankingForm.model_validate(form.model_dump() | {"answers": answers, "ratings": ratings_out})


def _check_answers(
    questions: QuestionSet, answers: Answers, prior: Answers, scope: str, where: str
) -> dict[str, bool | None]:
    active = questions.active(scope)
    for name, answer in answers.items():
        if name not in active:
            raise ValueError(f"{where}: no question '{name}'; there are: {', '.join(active) or 'none'}")
        if answer is None and not active[name].may_be_inapplicable:
            raise ValueError(f"{where}: '{name}' is yes or no")
    answers_so_far: dict[str, bool | None] = {}
    for name, question in active.items():
        so_far = {**prior, **answers_so_far}
        if _is_excluded(question, so_far):
            if answers.get(name) is not None:
                raise ValueError(f"{where}: '{name}' is answered although {', '.join(question.when)} rules it out")
            answers_so_far[name] = None
        elif name in answers:
            answers_so_far[name] = answers[name]
    return answers_so_far


def _derive_constraint(
    questions: QuestionSet, answers: dict[str, bool | None], labels: Sequence[Answers]
) -> dict[str, bool | None]:
    values = [row["satisfies_constraint"] for row in labels if "satisfies_constraint" in row]
    if CONSTRAINT_QUESTION in answers or CONSTRAINT_QUESTION not in questions.active("task") or not values:
        return answers
    return {**answers, CONSTRAINT_QUESTION: any(answer is not None for answer in values)}


def list_unanswered(questions: QuestionSet, form: RankingForm, completions: Sequence[str]) -> list[Unanswered]:
    """Return the open questions of a form, the task's first."""
    ratings = {rating.completion: rating for rating in form.ratings}
    return list(iter_unanswered(questions, form.answers, ratings, completions))


def iter_unanswered(
    questions: QuestionSet, answers: Answers, ratings: Mapping[str, Any], completions: Sequence[str]
) -> Iterator[Unanswered]:
    """Yield the open questions. `ratings`: by completion, with `rating` and `labels`."""
    for name, question in questions.active("task").items():
        if name not in answers and is_asked(question, answers):
            yield Unanswered(completion=None, name=name, required=question.answer == "required")
    for completion in completions:
        rating = ratings.get(completion)
        if questions.rating.answer != "off" and (rating is None or rating.rating is None):
            yield Unanswered(completion=completion, name="rating", required=questions.rating.answer == "required")
        labels = rating.labels if rating else {}
        for name, question in questions.active("completion").items():
            if name not in labels and is_asked(question, {**answers, **labels}):
                yield Unanswered(completion=completion, name=name, required=question.answer == "required")


class OpenQuestionCounter:
    """Counts the open questions of many rankings; what depends only on the answers is worked out once."""

    def __init__(self, questions: Mapping[str, QuestionSet]) -> None:
        """Take the questions of each batch."""
        self._questions = questions
        self._counts: dict[Hashable, tuple[int, int]] = {}

    def count(
        self, batch: str, answers: Answers, ratings: Mapping[str, Any], completions: Sequence[str]
    ) -> tuple[int, int]:
        """Return the numbers of open ratings and of other open questions."""
        of_task = tuple(answers.items())
        unrated, unanswered = self._count_once(batch, answers, of_task, None, None)
        for completion in completions:
            more = self._count_once(batch, answers, of_task, completion, ratings.get(completion))
            unrated, unanswered = unrated + more[0], unanswered + more[1]
        return unrated, unanswered

    def _count_once(
        self, batch: str, answers: Answers, of_task: Hashable, completion: str | None, rating: Any
    ) -> tuple[int, int]:
        """Count the questions of one completion, or those of the task (None)."""
        labels = tuple(rating.labels.items()) if rating else None
        key = (batch, of_task, completion is None, labels, rating is None or rating.rating is None)
        if (counts := self._counts.get(key)) is None:
            ratings = {} if completion is None or rating is None else {completion: rating}
            entries = iter_unanswered(
                self._questions[batch], answers, ratings, [] if completion is None else [completion]
            )
            open_names = [each.name for each in entries if (each.completion is None) == (completion is None)]
            unrated = open_names.count("rating")
            counts = self._counts[key] = (unrated, len(open_names) - unrated)
        return counts
