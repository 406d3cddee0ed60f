"""The forms that labelers submit, one for each kind of task, shared by pages, API and drafts.

A form is complete or rejected, never repaired: no completion gets a rank that its labeler did not give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from instructgpt.label.errors import SiteError
from instructgpt.label.vocabulary import MAX_RATING_POINTS, TaskKind
from instructgpt.records import USE_CASES, format_validation_error

MAX_TEXT_LENGTH = 200_000  # characters

CONDITIONAL_LABELS = ("inappropriate", "hallucination", "satisfies_constraint")
"""May be not applicable: no customer assistant, not closed domain, no constraint in the prompt (paper, Table 3)."""

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
"""Questions about a prompt (paper, Table 7)."""


def validate_storable(text: str) -> str:
    """Return the text; raise ValueError for NUL and half surrogates, which no database stores."""
    if "\x00" in text:
        raise ValueError("the text contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} of the text is half of a surrogate pair") from error
    return text


_StorableText = Annotated[str, Field(max_length=MAX_TEXT_LENGTH), AfterValidator(validate_storable)]
NoteText = Annotated[str, Field(max_length=10_000), AfterValidator(validate_storable)]


class SubmissionForm(BaseModel):
    """Fields of all forms."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    note: NoteText = ""
    active_ms: int = Field(0, ge=0, lt=2**40)  # time with the page in use, without idle time
    pasted: float | None = Field(None, ge=0, le=1)


class CompletionRating(BaseModel):
    """One completion's rating and labels. Unanswered labels are left out; None is not applicable."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    completion: str
    rating: int | None = Field(None, ge=1, le=MAX_RATING_POINTS)  # `questions` checks it against the batch's scale
    labels: dict[str, bool | None] = {}
    note: NoteText = ""


class RankingForm(SubmissionForm):
    """All completions in tiers, best first; a tier is a tie and may be empty. `questions` checks the answers."""

    kind: Literal["rank"] = "rank"
    ratings: tuple[CompletionRating, ...]
    tiers: tuple[tuple[str, ...], ...]
    answers: dict[str, bool | None] = {}  # to the questions that are asked once a task
    none_acceptable: bool = False
    confidence: int | None = Field(None, ge=1, le=9)

    def validate_completions(self, completions: Sequence[str]) -> None:
        """Raise ValueError unless every completion id is in exactly one tier and rated at most once."""
        ranked = [completion for tier in self.tiers for completion in tier]
        missing, unexpected = len(set(completions) - set(ranked)), len(set(ranked) - set(completions))
        repeated = len(ranked) - len(set(ranked))
        if missing or unexpected or repeated:
            counts = f"{missing} missing, {unexpected} unknown, {repeated} repeated"
            raise ValueError(f"every completion must be in exactly one tier ({counts})")
        if len(self.tiers) > len(completions):
            raise ValueError(f"expected at most one tier for each completion; got {len(self.tiers)} tiers")
        rated = [rating.completion for rating in self.ratings]
        if set(rated) - set(completions) or len(rated) != len(set(rated)):
            raise ValueError("a rating is of an unknown completion or repeated")


class DemonstrationForm(SubmissionForm):
    """A written completion. It may be empty if meant so, as the paper's shortest demonstration is."""

    kind: Literal["demonstrate"] = "demonstrate"
    text: _StorableText
    meant_empty: bool = False

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if not self.text.strip() and not self.meant_empty:
            raise ValueError("the demonstration is empty; tick 'meant to be empty' if that is the right answer")
        return self


class PromptForm(SubmissionForm):
    """A written prompt (paper, A.1): plain, few-shot (instruction and examples), or for a use case of users."""

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
            raise ValueError("few-shot prompts need examples; other prompts must have none")
        if self.use_case is not None and self.use_case not in USE_CASES:
            raise ValueError(f"no use case '{self.use_case}'; there are: {', '.join(USE_CASES)}")
        return self


class ReviewForm(SubmissionForm):
    """A description of a prompt."""

    kind: Literal["review"] = "review"
    use_case: str | None = None
    personal_data: bool | None = None
    sensitive: bool | None = None
    labels: dict[str, bool] = {}
    rejected: Literal["personal_data", "not_a_prompt", "other_language", "duplicate", "other"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _merge_sensitive(cls, data: Any) -> Any:
        """Table 7's label `sensitive` and the field are one question: an answer to either fills both."""
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
    """Return (tier, rank) of every completion: tiers from 1 as given, dense ranks over the tiers that are not empty."""
    ranks: dict[str, tuple[int, int]] = {}
    rank = 0
    for tier, completions in enumerate(tiers, start=1):
        rank += bool(completions)
        ranks |= dict.fromkeys(completions, (tier, rank))
    return ranks


def parse_submission_form(kind: TaskKind, body: dict[str, Any]) -> SubmissionForm:
    """Validate a request body as a kind's form; raise SiteError `bad_form` (422) with the first error."""
    try:
        return SUBMISSION_FORMS[kind].model_validate(body)
    except ValidationError as error:
        raise SiteError(422, "bad_form", reason=format_validation_error(error)) from error
