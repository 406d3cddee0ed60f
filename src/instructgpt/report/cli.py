"""`report`: the table and the page of a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.errors import InputError
from instructgpt.report.language import use_language
from instructgpt.report.page import write_report, write_results_page
from instructgpt.report.terminal import print_report_tables
from instructgpt.results import read_result_rows
from instructgpt.run.configs import ReportConfig
from instructgpt.run.directory import console


def main(config: ReportConfig) -> Path:
    """Print the table if there are results, write the page, and return its path.

    Raises:
        InputError: a directory or file is missing or damaged.
    """
    for source in config.run:
        if not source.exists():
            raise InputError(f"{source}: no such run directory or file of results")
    with use_language(config.language):
        page_path = _write_page(config)
    console.print(f"report: {page_path}", soft_wrap=True)
    return page_path


def _write_page(config: ReportConfig) -> Path:
    first_source = config.run[0]
    if len(config.run) == 1 and first_source.is_dir():
        if (first_source / "results.json").exists():
            print_report_tables(read_result_rows(first_source / "results.json"))
        return write_report(first_source, config.out)
    return write_results_page(config.run, config.out or _default_page(config.run))


def _default_page(sources: Sequence[Path]) -> Path:
    """Return a page beside the first of several sources, so that it does not replace the report of a run."""
    first_source = sources[0]
    if not first_source.is_dir():
        return first_source.with_name(f"{first_source.stem}.html")
    return first_source / "report.html" if len(sources) == 1 else first_source.resolve().parent / "comparison.html"
