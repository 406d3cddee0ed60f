"""What people hand in: one form for each kind of task, the same in the browser, over the API and in a draft.

A form is complete or refused, never mended: a completion that was forgotten is not given a rank of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from instructgpt.label.db.models.tasks import TaskKind
from instructgpt.label.errors import SiteError
from instructgpt.records import LABELS, USE_CASES, format_validation_error

MAX_TEXT_LENGTH = 200_000
"""Characters; nobody types more, and one paste must not fill the disk."""

CONDITIONAL_LABELS = ("inappropriate", "hallucination", "satisfies_constraint")
"""Labels that can be not applicable: no customer assistant, not closed domain, no constraint in the prompt (paper, Table 3)."""

EXPLICIT_NO_LABELS = ("satisfies_constraint",)
"""Labels whose No is a reproach and not the harmless answer: no key answers them together with others."""

PROMPT_LABELS = (
    "ambiguous",
    "sensitive",
    "identity_dependent",
    "closed_domain",
    "continuation",
    "asks_opinion",
    "asks_advice",
    "asks_moral_judgment",
    "safety_constraint",
    "other_constraint",
    "intent_unclear",
)
"""The yes/no questions about a prompt (paper, Table 7)."""


def validate_storable(text: str) -> str:
    """The text as it is. Raises ValueError for what no database keeps: a NUL character, half of a surrogate pair."""
    if "\x00" in text:
        raise ValueError("the text holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} of the text is not a whole one") from error
    return text


_StorableText = Annotated[str, Field(max_length=MAX_TEXT_LENGTH), AfterValidator(validate_storable)]
NoteText = Annotated[str, Field(max_length=10_000), AfterValidator(validate_storable)]


class SubmissionForm(BaseModel):
    """What all forms have: a note, and how long the person was at it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    note: NoteText = ""
    active_ms: int = Field(0, ge=0, lt=2**40)
    """Time with the page in use, idle time left out."""
    pasted: float | None = Field(None, ge=0, le=1)


class CompletionRating(BaseModel):
    """One completion's rating and labels. A label left out was not answered; None is not applicable."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    completion: str
    rating: int | None = Field(None, ge=1, le=7)
    labels: dict[str, bool | None] = {}
    note: NoteText = ""

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        for name, answer in self.labels.items():
            if name not in LABELS:
                raise ValueError(f"no label '{name}'; there are: {', '.join(LABELS)}")
            if answer is None and name not in CONDITIONAL_LABELS:
                raise ValueError(
                    f"label '{name}' is yes or no; only {', '.join(CONDITIONAL_LABELS)} can be not applicable"
                )
        return self


class RankingForm(SubmissionForm):
    """Every completion rated, then all of them put into tiers, best first; those of one tier tie, a tier may be empty."""

    kind: Literal["rank"] = "rank"
    ratings: tuple[CompletionRating, ...]
    tiers: tuple[tuple[str, ...], ...]
    none_acceptable: bool = False
    confidence: int | None = Field(None, ge=1, le=9)

    def validate_completions(self, completions: Sequence[str]) -> None:
        """Raises ValueError unless every completion of the task (ids) is rated at most once and stands in exactly one tier."""
        ranked = [each for tier in self.tiers for each in tier]
        missing, unexpected = set(completions) - set(ranked), set(ranked) - set(completions)
        if missing or unexpected or len(ranked) != len(set(ranked)):
            raise ValueError(
                f"every completion must stand in exactly one tier ({len(missing)} missing, {len(unexpected)} unknown, "
                f"{len(ranked) - len(set(ranked))} twice)"
            )
        if len(self.tiers) > len(completions):
            raise ValueError(f"{len(completions)} completions have at most as many tiers, found {len(self.tiers)}")
        rated = [each.completion for each in self.ratings]
        if set(rated) - set(completions) or len(rated) != len(set(rated)):
            raise ValueError("a rating is of an unknown completion, or given twice")


class DemonstrationForm(SubmissionForm):
    """The completion a labeler wrote. The paper's shortest demonstration is empty, so empty is allowed where it is meant."""

    kind: Literal["demonstrate"] = "demonstrate"
    text: _StorableText
    meant_empty: bool = False

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if not self.text.strip() and not self.meant_empty:
            raise ValueError("the demonstration is empty; tick 'meant to be empty' if nothing is the right answer")
        return self


class PromptForm(SubmissionForm):
    """A prompt a labeler wrote (paper, A.1): plain, few-shot (an instruction with examples), or for a use case users asked for."""

    kind: Literal["write"] = "write"
    form: Literal["plain", "few_shot", "user_based"] = "plain"
    text: Annotated[_StorableText, Field(min_length=1)]
    examples: tuple[tuple[_StorableText, _StorableText], ...] = ()
    use_case: str | None = None
    sensitive: bool = False

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        if not self.text.strip():
            raise ValueError("the prompt is empty")
        if (self.form == "few_shot") != bool(self.examples):
            raise ValueError("a few-shot prompt has examples, another one has none")
        if self.use_case is not None and self.use_case not in USE_CASES:
            raise ValueError(f"no use case '{self.use_case}'; there are: {', '.join(USE_CASES)}")
        return self


class ReviewForm(SubmissionForm):
    """How a labeler describes a prompt."""

    kind: Literal["review"] = "review"
    use_case: str | None = None
    personal_data: bool | None = None
    sensitive: bool | None = None
    labels: dict[str, bool] = {}
    rejected: Literal["personal_data", "not_a_prompt", "other_language", "duplicate", "other"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _merge_sensitive(cls, data: Any) -> Any:
        """Table 7's `sensitive` and the field of that name are one question: whoever answers one answers both."""
        if not isinstance(data, dict) or not isinstance(labels := data.get("labels") or {}, dict):
            return data
        answer = labels.get("sensitive") if data.get("sensitive") is None else data["sensitive"]
        return data if answer is None else data | {"sensitive": answer, "labels": {**labels, "sensitive": answer}}

    @model_validator(mode="after")
    def _check_vocabulary(self) -> Self:
        if self.use_case is not None and self.use_case not in USE_CASES:
            raise ValueError(f"no use case '{self.use_case}'; there are: {', '.join(USE_CASES)}")
        for name in self.labels:
            if name not in PROMPT_LABELS:
                raise ValueError(f"no prompt label '{name}'; there are: {', '.join(PROMPT_LABELS)}")
        return self


SUBMISSION_FORMS: dict[TaskKind, type[SubmissionForm]] = {
    "rank": RankingForm,
    "demonstrate": DemonstrationForm,
    "write": PromptForm,
    "review": ReviewForm,
}


def tier_ranks(tiers: Sequence[Sequence[str]]) -> dict[str, tuple[int, int]]:
    """(tier, rank) of every completion: tiers count from 1 as they stand, ranks from 1 without gaps over the tiers that are not empty."""
    ranks: dict[str, tuple[int, int]] = {}
    rank = 0
    for tier, completions in enumerate(tiers, start=1):
        rank += bool(completions)
        ranks |= dict.fromkeys(completions, (tier, rank))
    return ranks


def parse_submission_form(kind: TaskKind, body: dict[str, Any]) -> SubmissionForm:
    """A request's body as the form of a kind of task. Raises Problem `bad_form` (422) with the first thing that is wrong."""
    try:
        return SUBMISSION_FORMS[kind].model_validate(body)
    except ValidationError as error:
        raise SiteError(422, "bad_form", reason=format_validation_error(error)) from error
