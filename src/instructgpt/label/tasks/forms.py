"""What people hand in: one form for each kind of task, the same in the browser, over the API and in a draft.

A form is complete or refused, never mended: a completion that was forgotten is not given a rank of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.errors import Problem
from instructgpt.records import LABELS, USE_CASES, explain

MAX_TEXT = 200_000
"""Characters; nobody types more, and one paste must not fill the disk."""

CONDITIONAL = ("inappropriate", "hallucination", "satisfies_constraint")
"""Labels that can be not applicable: no customer assistant, not closed domain, no constraint in the prompt (paper, Table 3)."""

BY_HAND = ("satisfies_constraint",)
"""Labels whose No is a reproach and not the harmless answer: no key answers them together with others."""

PROMPT_LABELS = (
    "ambiguous", "sensitive", "identity_dependent", "closed_domain", "continuation", "asks_opinion", "asks_advice",
    "asks_moral_judgment", "safety_constraint", "other_constraint", "intent_unclear",
)  # fmt: skip
"""The yes/no questions about a prompt (paper, Table 7)."""


def storable(text: str) -> str:
    """The text as it is. Raises ValueError for what no database keeps: a NUL character, half of a surrogate pair."""
    if "\x00" in text:
        raise ValueError("the text holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} of the text is not a whole one") from error
    return text


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(storable)]
Note = Annotated[str, Field(max_length=10_000), AfterValidator(storable)]


class Form(BaseModel):
    """What all forms have: a note, and how long the person was at it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    note: Note = ""
    active_ms: int = Field(0, ge=0, lt=2**40)
    """Time with the page in use, idle time left out."""
    pasted: float | None = Field(None, ge=0, le=1)


class Rated(BaseModel):
    """One completion's rating and labels. A label left out was not answered; None is not applicable."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    completion: str
    rating: int | None = Field(None, ge=1, le=7)
    labels: dict[str, bool | None] = {}
    note: Note = ""

    @model_validator(mode="after")
    def _known_labels(self) -> Self:
        for name, answer in self.labels.items():
            if name not in LABELS:
                raise ValueError(f"no label '{name}'; there are: {', '.join(LABELS)}")
            if answer is None and name not in CONDITIONAL:
                raise ValueError(f"label '{name}' is yes or no; only {', '.join(CONDITIONAL)} can be not applicable")
        return self


class RankForm(Form):
    """Every completion rated, then all of them put into tiers, best first; those of one tier tie, a tier may be empty."""

    kind: Literal["rank"] = "rank"
    ratings: tuple[Rated, ...]
    tiers: tuple[tuple[str, ...], ...]
    none_acceptable: bool = False
    confidence: int | None = Field(None, ge=1, le=9)

    def check(self, completions: Sequence[str]) -> None:
        """Raises ValueError unless every completion of the task (ids) is rated at most once and stands in exactly one tier."""
        placed = [each for tier in self.tiers for each in tier]
        missing, unknown = set(completions) - set(placed), set(placed) - set(completions)
        if missing or unknown or len(placed) != len(set(placed)):
            raise ValueError(
                f"every completion must stand in exactly one tier ({len(missing)} missing, {len(unknown)} unknown, "
                f"{len(placed) - len(set(placed))} twice)"
            )
        if len(self.tiers) > len(completions):
            raise ValueError(f"{len(completions)} completions have at most as many tiers, found {len(self.tiers)}")
        rated = [each.completion for each in self.ratings]
        if set(rated) - set(completions) or len(rated) != len(set(rated)):
            raise ValueError("a rating is of an unknown completion, or given twice")


class DemonstrateForm(Form):
    """The completion a labeler wrote. The paper's shortest demonstration is empty, so empty is allowed where it is meant."""

    kind: Literal["demonstrate"] = "demonstrate"
    text: Text
    meant_empty: bool = False

    @model_validator(mode="after")
    def _not_by_accident(self) -> Self:
        if not self.text.strip() and not self.meant_empty:
            raise ValueError("the demonstration is empty; tick 'meant to be empty' if nothing is the right answer")
        return self


class WriteForm(Form):
    """A prompt a labeler wrote (paper, A.1): plain, few-shot (an instruction with examples), or for a use case users asked for."""

    kind: Literal["write"] = "write"
    form: Literal["plain", "few_shot", "user_based"] = "plain"
    text: Annotated[Text, Field(min_length=1)]
    examples: tuple[tuple[Text, Text], ...] = ()
    use_case: str | None = None
    sensitive: bool = False

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.text.strip():
            raise ValueError("the prompt is empty")
        if (self.form == "few_shot") != bool(self.examples):
            raise ValueError("a few-shot prompt has examples, another one has none")
        if self.use_case is not None and self.use_case not in USE_CASES:
            raise ValueError(f"no use case '{self.use_case}'; there are: {', '.join(USE_CASES)}")
        return self


class ReviewForm(Form):
    """How a labeler describes a prompt."""

    kind: Literal["review"] = "review"
    use_case: str | None = None
    personal_data: bool | None = None
    sensitive: bool | None = None
    labels: dict[str, bool] = {}
    rejected: Literal["personal_data", "not_a_prompt", "other_language", "duplicate", "other"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _sensitive_once(cls, given: Any) -> Any:
        """Table 7's `sensitive` and the field of that name are one question: whoever answers one answers both."""
        if not isinstance(given, dict) or not isinstance(labels := given.get("labels") or {}, dict):
            return given
        answer = labels.get("sensitive") if given.get("sensitive") is None else given["sensitive"]
        return given if answer is None else given | {"sensitive": answer, "labels": {**labels, "sensitive": answer}}

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.use_case is not None and self.use_case not in USE_CASES:
            raise ValueError(f"no use case '{self.use_case}'; there are: {', '.join(USE_CASES)}")
        for name in self.labels:
            if name not in PROMPT_LABELS:
                raise ValueError(f"no prompt label '{name}'; there are: {', '.join(PROMPT_LABELS)}")
        return self


FORMS: dict[Kind, type[Form]] = {"rank": RankForm, "demonstrate": DemonstrateForm, "write": WriteForm, "review": ReviewForm}


def dense_ranks(tiers: Sequence[Sequence[str]]) -> dict[str, tuple[int, int]]:
    """(tier, rank) of every completion: tiers count from 1 as they stand, ranks from 1 without gaps over the tiers that are not empty."""
    placed: dict[str, tuple[int, int]] = {}
    rank = 0
    for tier, completions in enumerate(tiers, start=1):
        rank += bool(completions)
        placed |= dict.fromkeys(completions, (tier, rank))
    return placed


def as_form(kind: Kind, body: dict[str, Any]) -> Form:
    """A request's body as the form of a kind of task. Raises Problem `bad_form` (422) with the first thing that is wrong."""
    try:
        return FORMS[kind].model_validate(body)
    except ValidationError as error:
        raise Problem(422, "bad_form", reason=explain(error)) from error
