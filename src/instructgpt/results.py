"""Rows of results.json, as written by `evaluate` and by the labelers' site. Imports neither torch nor scipy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.io import write_text_atomic


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One number. `low` and `high` bound its 95 % interval, `n` counts observations; None means not available.

    `judge` names the judge or scorer model with version and hash, `caution` what the interval cannot speak about
    (`statistics.clustered.Caution`). Their keys are written only if they are set.
    """

    evaluation: str
    metric: str
    model: str
    condition: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    judge: str = ""
    caution: str = ""


_OPTIONAL_COLUMNS = ("judge", "caution")
_REQUIRED_COLUMNS = tuple(field.name for field in fields(ResultRow) if field.name not in _OPTIONAL_COLUMNS)


def result_row_to_dict(row: ResultRow) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name not in _OPTIONAL_COLUMNS or value}


def with_judge(rows: Iterable[ResultRow], judge: str) -> list[ResultRow]:
    return [replace(row, judge=judge) for row in rows]


DIFFERENCE = "difference"
"""The evaluation name of paired differences: metric `toxicity/mean_toxicity/respectful`,
condition the subtracted model.
"""


def merge_result_rows(earlier_rows: Iterable[ResultRow], rows: Iterable[ResultRow]) -> list[ResultRow]:
    """Return the rows of both, where new rows replace all earlier ones of their evaluation, model and judge.

    Rows of equal evaluation, metric, model and condition are replaced whoever judged them.
    """
    new_rows = list(rows)
    keys, sources = set(map(_result_key, new_rows)), set(map(_result_source, new_rows))
    kept_rows = [row for row in earlier_rows if _result_key(row) not in keys and _result_source(row) not in sources]
    return kept_rows + new_rows


def _result_key(row: ResultRow) -> tuple[str, str, str, str]:
    return row.evaluation, row.metric, row.model, row.condition


def _result_source(row: ResultRow) -> tuple[str, str, str]:
    """Return the measured evaluation, the model and the judge, which one command measures together."""
    evaluation = row.metric.partition("/")[0] if row.evaluation == DIFFERENCE else row.evaluation
    return evaluation, row.model, row.judge


def write_result_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write results.json, one row per line. Raise InputError if it cannot be written."""
    lines = [json.dumps(result_row_to_dict(row), ensure_ascii=False, allow_nan=False) for row in rows]
    write_text_atomic(path, "[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]\n")


def read_result_rows(path: Path) -> list[ResultRow]:
    """Return the rows of a results.json.

    Raises:
        InputError: the file is missing or not a JSON list of rows, or a row lacks a column.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); write it again with 'instructgpt evaluate'") from error
    if not isinstance(items, list):
        raise InputError(f"{path}: expected a JSON list of rows, found {type(items).__name__}")
    return [_parse_result_row(f"{path}: row {number}", item) for number, item in enumerate(items, 1)]


def _parse_result_row(location: str, values: Any) -> ResultRow:
    missing = [name for name in _REQUIRED_COLUMNS if not isinstance(values, dict) or name not in values]
    if missing:
        columns = ", ".join(_REQUIRED_COLUMNS)
        raise InputError(f"{location}: a row needs the columns {columns}; missing: {', '.join(missing)}")
    text_columns = ("evaluation", "metric", "model", "condition", *_OPTIONAL_COLUMNS)
    texts = {name: str(values.get(name) or "") for name in text_columns}
    try:
        value, low, high = (None if values[name] is None else float(values[name]) for name in ("value", "low", "high"))
        n = int(values["n"] or 0)
    except (TypeError, ValueError) as error:
        raise InputError(f"{location}: value, low, high and n must be numbers or null ({error})") from error
    if any(number is not None and not math.isfinite(number) for number in (value, low, high)):
        raise InputError(f"{location}: a number is not finite; use null for a value that is not available")
    return ResultRow(**texts, value=value, low=low, high=high, n=n)
