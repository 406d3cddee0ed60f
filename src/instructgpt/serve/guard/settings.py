"""The file of `serve --guard`: scorers with thresholds, and the owner's policy of use cases.

guards:
  - name: insults
    scorer: runs/toxicity        # what load_guard_scorer accepts; paths are relative to this file
    reads: prompt                # prompt, completion or both
    at_least: 0.8                # or below: -2.5
    action: block                # or count
policy: {unlisted: allowed, use_cases: {support: allowed}}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from instructgpt.config import did_you_mean, parse_yaml
from instructgpt.errors import InputError, one_line
from instructgpt.run.use_policy import UsePolicy

DEFAULT_REFUSAL = "This request was stopped by a content filter."
_MODEL_CONFIG = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class GuardSettings(BaseModel):
    """A scorer with its threshold."""

    model_config = _MODEL_CONFIG

    name: Annotated[str, Field(min_length=1, max_length=60)]
    scorer: Annotated[str, Field(min_length=1)]
    reads: Literal["prompt", "completion", "both"] = "both"
    at_least: float | None = None
    below: float | None = None
    action: Literal["block", "count"] = "block"

    @model_validator(mode="after")
    def _require_one_threshold(self) -> GuardSettings:
        if self.at_least is not None and self.below is not None:
            raise ValueError("has 'at_least' and 'below'; a guard has one threshold")
        if self.at_least is None and self.below is None and not self.scorer.startswith("words:"):
            raise ValueError("has no threshold: 'at_least: NUMBER' or 'below: NUMBER'")
        return self

    def is_flagged(self, score: float) -> bool:
        """Return whether a score is on the flagged side. A word list without a threshold flags one word."""
        return score < self.threshold if self.below is not None else score >= self.threshold

    @property
    def threshold(self) -> float:
        """The threshold, 1 where a word list has none."""
        return self.below if self.below is not None else 1.0 if self.at_least is None else self.at_least

    def format_threshold(self, threshold: float) -> str:
        return f"{'below' if self.below is not None else 'at least'} {threshold:.6g}"

    def describe(self) -> dict[str, Any]:
        """Return what clients may know: not the scorer's path or address."""
        threshold = self.format_threshold(self.threshold)
        return {"name": self.name, "reads": self.reads, "threshold": threshold, "action": self.action}


class _GuardFile(BaseModel):
    model_config = _MODEL_CONFIG

    guards: list[GuardSettings] = []
    policy: dict[str, Any] | None = None
    message: Annotated[str, Field(min_length=1, max_length=2_000)] = DEFAULT_REFUSAL
    on_error: Literal["refuse", "pass"] = "refuse"
    check_every: Annotated[int, Field(ge=0)] = 200
    timeout: Annotated[float, Field(gt=0)] = 10.0
    counts: str | None = None


@dataclass(frozen=True, slots=True)
class GuardFileSettings:
    """The whole file.

    Attributes:
        message: what a blocked answer says in `refusal`.
        refuses_on_error: whether a request fails when a scorer does; otherwise it passes and is counted.
        check_every: characters of a stream after which it is checked again; 0: a stream is checked whole, then sent.
        timeout_s: limit of one request to a service.
        counts_path: where the counts of each day are kept.
    """

    path: Path
    guards: tuple[GuardSettings, ...]
    policy: UsePolicy
    message: str
    refuses_on_error: bool
    check_every: int
    timeout_s: float
    counts_path: Path


def read_guard_file(path: Path) -> GuardFileSettings:
    """Read a guard file.

    Raises:
        InputError: it is missing, no YAML, or has an option that does not exist.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--guard {path}: cannot be read ({one_line(error, 150)})") from error
    source = f"--guard {path}"
    try:
        values = _GuardFile.model_validate(parse_yaml(text, source))
    except ValidationError as error:
        raise InputError(f"{source}: {_first_problem(error)}") from error
    names = Counter(guard.name for guard in values.guards)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise InputError(f"{source}: two guards have the name '{repeated[0]}'")
    counts_path = path.parent / values.counts if values.counts else path.with_name(f"{path.stem}.counts.jsonl")
    return GuardFileSettings(
        path=path,
        guards=tuple(values.guards),
        policy=UsePolicy.from_yaml(values.policy, source),
        message=values.message,
        refuses_on_error=values.on_error == "refuse",
        check_every=values.check_every,
        timeout_s=values.timeout,
        counts_path=counts_path,
    )


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part + 1) if isinstance(part, int) else str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        options = _GuardFile.model_fields if len(first["loc"]) == 1 else GuardSettings.model_fields
        return f"{place}: no such option{did_you_mean(str(first['loc'][-1]), options)}; options: {_comma(options)}"
    message = "is required" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return f"{place}: {one_line(message)}"


def _comma(names: Iterable[str]) -> str:
    return ", ".join(names)
