"""The filters of lists as they stand in a URL, so that a view can be shared and repeated."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from instructgpt.label.db.models.people import PersonRole, PersonStatus
from instructgpt.label.errors import SiteError
from instructgpt.label.vocabulary import TaskKind
from instructgpt.records import Cohort, format_validation_error

ROWS_PER_PAGE = 50
MAX_SEARCH_TERMS = 8
_Text = Annotated[str, Field(max_length=200)]
_Name = Annotated[str, Field(max_length=200)]
_LabelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
_MAX_PAGE = 1_000_000
_FilterT = TypeVar("_FilterT", bound="ListFilter")

TaskSort = Literal["position", "-position", "prompt", "-prompt", "submissions", "-submissions", "skips", "-skips"]
SubmissionSort = Literal["-time", "time", "labeler", "-labeler", "active", "-active", "rating", "-rating"]
PersonSort = Literal["name", "-name", "since", "-since", "submissions", "-submissions", "latest", "-latest"]
"""Sort keys; a minus is descending. The first one is the default."""


class ListFilter(BaseModel):
    """The fields of a list's form. Empty fields do not filter."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    text: _Text | None = None
    page: Annotated[int, Field(ge=1, le=_MAX_PAGE)] = 1

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        # PostgreSQL refuses NUL in a text.
        fields = {name: field.replace("\0", "") if isinstance(field, str) else field for name, field in value.items()}
        return {name: field for name, field in fields.items() if field is not None and str(field).strip()}

    def url_fields(self, **changes: Any) -> str:
        """Return the URL's part behind the question mark, without defaults; a change to None removes a field."""
        defaults = {name: info.default for name, info in type(self).model_fields.items()}
        fields = self.model_dump(mode="json") | changes
        return urlencode({name: value for name, value in fields.items() if value not in (None, defaults.get(name))})

    @property
    def is_empty(self) -> bool:
        """Return whether every row matches."""
        return not set(self.model_dump(exclude_defaults=True)) - {"page", "sort"}


def count_pages(total: int) -> int:
    return max(1, -(-total // ROWS_PER_PAGE))


def parse_filter(filter_class: type[_FilterT], url_fields: str) -> _FilterT:
    """Parse `ListFilter.url_fields`. Raises SiteError `bad_field` (422)."""
    try:
        return filter_class.model_validate(dict(parse_qsl(url_fields)))
    except ValidationError as error:
        raise SiteError(422, "bad_field", field="filter", wrong=format_validation_error(error)[:300]) from error


class TaskFilter(ListFilter):
    """A filter of tasks.

    `labeler`, `batch`: ids. `label`: a question that somebody answered with yes. `scope`: where the text is searched.
    """

    scope: Literal["prompt", "completions"] = "prompt"
    batch: _Name | None = None
    kind: TaskKind | None = None
    state: Literal["open", "done", "review", "withdrawn"] | None = None
    labeler: _Name | None = None
    label: _LabelName | None = None
    source: _Name | None = None
    use_case: _Name | None = None
    language: _Name | None = None
    sort: TaskSort = "position"


class SubmissionFilter(ListFilter):
    """A filter of submissions. Without `state`, current versions. `since`, `until`: days in UTC, inclusive."""

    labeler: _Name | None = None
    batch: _Name | None = None
    kind: TaskKind | None = None
    state: Literal["counted", "returned", "excluded", "surplus", "replaced"] | None = None
    label: _LabelName | None = None
    source: _Name | None = None
    use_case: _Name | None = None
    language: _Name | None = None
    since: date | None = None
    until: date | None = None
    sort: SubmissionSort = "-time"


class PersonFilter(ListFilter):
    """A filter of accounts; `text` is part of the name or of the pseudonym."""

    role: PersonRole | None = None
    status: PersonStatus | None = None
    cohort: Cohort | None = None
    sort: PersonSort = "name"
