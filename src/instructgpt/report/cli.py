"""`report`: the table and the page of a run directory, drawn from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import Options
from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import read_rows
from instructgpt.report.page import write_report, write_results_page
from instructgpt.report.terminal import show
from instructgpt.run.directory import console


class ReportConfig(Options):
    """What to report on."""

    stage: ClassVar[str] = "report"

    run: tuple[Path, ...] = Field(min_length=1, description="a run directory, or files of results (and run directories) for one page")
    out: Path | None = Field(
        None, description="the page; report.html in the run directory, or beside the first file of results, where not given"
    )


def main(config: ReportConfig) -> Path:
    """Print the table where there are results, and write the page. Returns the page.

    Raises:
        BadInput: there is no such directory or file, or it is damaged.
    """
    first = config.run[0]
    for source in config.run:
        if not source.exists():
            raise BadInput(f"{source}: no such run directory or file of results")
    if len(config.run) == 1 and first.is_dir():
        if (first / "results.json").exists():
            show(read_rows(first / "results.json"))
        page = write_report(first, config.out)
    else:
        beside = first / "report.html" if first.is_dir() else first.with_name(f"{first.stem}.html")
        page = write_results_page(config.run, config.out or beside)
    console.print(f"report: {page}", soft_wrap=True)
    return page
