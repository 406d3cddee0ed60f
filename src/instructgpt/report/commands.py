"""`report`: the table and the page of a run directory, drawn from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import Options
from instructgpt.errors import BadInput
from instructgpt.evaluate.rows import read_rows
from instructgpt.report.page import write_report
from instructgpt.report.table import show
from instructgpt.run import console


class ReportConfig(Options):
    """Which run to report on."""

    stage: ClassVar[str] = "report"

    run: Path = Field(description="a run directory")


def main(config: ReportConfig) -> Path:
    """Print the table where there are results, and write report.html. Returns the page.

    Raises:
        BadInput: there is no such directory.
    """
    if not config.run.is_dir():
        raise BadInput(f"{config.run}: no such run directory")
    if (config.run / "results.json").exists():
        show(read_rows(config.run / "results.json"))
    page = write_report(config.run)
    console.print(f"report: {page}")
    return page
