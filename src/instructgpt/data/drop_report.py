"""Drop reports: what a step read, wrote, dropped and why, changed or noticed.

Nothing a person wrote is dropped silently: every step of `data import | clean | mix | split` prints a `DropReport` and
writes it as JSON beside its output.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from instructgpt.io import SkippedLines, write_text_atomic

_T = TypeVar("_T")
LocatedItem = tuple[str, _T]
"""An item with its location (`file:line`)."""

_MAX_EXAMPLES = 3
_MAX_BAD_LINES, _MAX_PRINTED_BAD_LINES = 1000, 10
"""Bad lines that are named in the JSON, and on the terminal."""

_BAD_LINE = "bad line (--skip-bad)"


@dataclass
class CountedExamples:
    """A count with the first locations; no texts, which may be what must not be shown."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, location: str, max_examples: int = _MAX_EXAMPLES) -> None:
        self.count += 1
        if len(self.examples) < max_examples:
            self.examples.append(location)


@dataclass
class DropReport:
    """The report of one step: read + expanded - merged = written + dropped."""

    step: str
    formats: dict[str, str] = field(default_factory=dict)  # what format each file was read as
    read: int = 0  # rows, bad lines included
    expanded: int = 0  # records beyond the first of a row
    merged: int = 0  # rows that became a part of another row's record
    written: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, CountedExamples] = field(default_factory=dict)
    noticed: dict[str, CountedExamples] = field(default_factory=dict)

    def drop(self, reason: str, location: str) -> None:
        self.dropped.setdefault(reason, CountedExamples()).add(location)

    def notice(self, message: str, location: str) -> None:
        """Count a kept item that the owner of the data should check."""
        self.noticed.setdefault(message, CountedExamples()).add(location)

    def count_records(self, rows: int, records: int) -> None:
        """Count records that several rows gave together."""
        self.expanded += max(records - rows, 0)
        self.merged += max(rows - records, 0)

    def filter(self, items: Sequence[LocatedItem[_T]], reasons: Iterable[str | None]) -> list[LocatedItem[_T]]:
        """Return the items without a drop reason and count the others. `reasons` holds one reason or None an item."""
        remaining = []
        for item, reason in zip(items, reasons, strict=True):
            if reason is None:
                remaining.append(item)
            else:
                self.drop(reason, item[0])
        return remaining

    def add_skipped_lines(self, skipped: SkippedLines) -> None:
        """Count and name the lines skipped by --skip-bad."""
        self.read += len(skipped.reasons)
        for reason in skipped.reasons:
            self.dropped.setdefault(_BAD_LINE, CountedExamples()).add(reason, _MAX_BAD_LINES)

    def save(self, path: Path) -> None:
        """Write the report as JSON. Raises InputError if that fails."""
        write_text_atomic(path, json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n")

    def print(self, console: Console) -> None:
        for path, name in self.formats.items():
            console.print(f"{escape(path)}: read as {name}", highlight=False, soft_wrap=True)
        console.print(f"[bold]data {self.step}[/bold]: {self.read} read", highlight=False)
        for count, description in (
            (self.expanded, "more records than rows, from rows that hold several"),
            (self.merged, "rows joined to the record of another row"),
        ):
            if count:
                console.print(f"{count} {description}", highlight=False)
        for path, count in self.written.items():
            console.print(f"{count} written to {escape(path)}", highlight=False, soft_wrap=True)
        for title, group in (("dropped", self.dropped), ("noticed", self.noticed)):
            if group:
                table = Table("count", title, box=None, pad_edge=False)
                table.add_column("for example", overflow="fold")  # a line number that is cut off helps nobody
                for reason, cases in sorted(group.items(), key=lambda item: -item[1].count):
                    example = "below" if reason == _BAD_LINE else cases.examples[0]
                    table.add_row(str(cases.count), escape(reason), escape(example))
                console.print(table)
        bad_lines = self.dropped.get(_BAD_LINE, CountedExamples()).examples
        for reason in bad_lines[:_MAX_PRINTED_BAD_LINES]:
            console.print(escape(reason), highlight=False, soft_wrap=True)
        if len(bad_lines) > _MAX_PRINTED_BAD_LINES:
            num_more = self.dropped[_BAD_LINE].count - _MAX_PRINTED_BAD_LINES
            console.print(f"… and {num_more} more bad lines", style="dim")


def drop_report_path(out: Path) -> Path:
    """Return the report's path: `prompts.report.json` beside `prompts.jsonl.gz`."""
    name = out.name.removesuffix(".gz")
    return out.with_name(f"{Path(name).stem}.report.json")
