"""`report`: the table and the page of a run directory."""

from __future__ import annotations

from pathlib import Path

from instructgpt.errors import InputError
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
    first_source = config.run[0]
    for source in config.run:
        if not source.exists():
            raise InputError(f"{source}: no such run directory or file of results")
    if len(config.run) == 1 and first_source.is_dir():
        if (first_source / "results.json").exists():
            print_report_tables(read_result_rows(first_source / "results.json"))
        page_path = write_report(first_source, config.out)
    else:
        default_out = (
            first_source / "report.html"
            if first_source.is_dir()
            else first_source.with_name(f"{first_source.stem}.html")
        )
        page_path = write_results_page(config.run, config.out or default_out)
    console.print(f"report: {page_path}", soft_wrap=True)
    return page_path
