"""One self-contained page, report.html, drawn from the files of a run directory alone: no script, nothing fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from instructgpt.records import write_text
from instructgpt.report.findings import Finding, judge
from instructgpt.report.inputs import RunFiles, read_results, read_run
from instructgpt.report.naming import measured, model_name, palette, printable
from instructgpt.report.results import Results
from instructgpt.report.section import Section
from instructgpt.report.sections.evaluation import best, evaluation_sections
from instructgpt.report.sections.public import not_measured, public_sections, with_figures_of_the_paper
from instructgpt.report.sections.training import missing, side_by_side, training_sections


def write_report(run_directory: Path, out: Path | None = None) -> Path:
    """Draw `report.html` into a run directory, from whichever of its files are there (docs/report.md lists them).

    Returns:
        The path of the page.

    Raises:
        BadInput: the directory holds nothing to report on, a file in it is damaged, or the page cannot be written.
    """
    run = read_run(run_directory)
    path = out or run_directory / "report.html"
    write_text(path, render(run))
    return path


def write_results_page(sources: Sequence[Path], out: Path) -> Path:
    """Draw a page of results alone, of any models: files of results, or run directories whose results stand side by side.

    Raises:
        BadInput: a file is missing or damaged, or the page cannot be written.
    """
    write_text(out, render(read_results(sources)))
    return out


def render(run: RunFiles) -> str:
    """The page as text. The same files give the same page."""
    results = Results.of([*run.rows, *with_figures_of_the_paper(run.rows)])
    findings = judge(results)
    sections = sections_of(run, results, findings)
    environment = Environment(
        loader=PackageLoader("instructgpt.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["drawn"] = Markup
    return environment.get_template("page.html.j2").render(
        name=run.name or run.directory.resolve().name,
        lead=lead(results, findings),
        findings=[finding for finding in findings if finding.verdict != "not measured"],
        sections=sections,
        titles={section.id: section.title for section in sections},
        missing=not_measured(results) if run.name else missing(run),
        whole=not run.name,
        unread=run.unread,
        palette=palette(),
    )


def sections_of(run: RunFiles, results: Results, findings: Sequence[Finding]) -> list[Section]:
    """Every section that the files can fill: what the models do, samples, how they came about."""
    samples = side_by_side(run)
    return [*evaluation_sections(results, findings), *public_sections(results), *([samples] if samples else []), *training_sections(run)]


def lead(results: Results, findings: Sequence[Finding]) -> str:
    """The run in two sentences."""
    count = Counter(finding.verdict for finding in findings if finding.verdict != "not measured")
    told = []
    row = best(results, "preference", "win_rate_vs_sft", "training")
    if row is not None and row.model != "sft":
        told.append(f"Labelers prefer {model_name(row.model)} to SFT {measured(row)} of the time.")
    if count:
        parts = [f"{count[verdict]} {verdict}" for verdict in ("shown", "partly", "not shown", "opposite") if count[verdict]]
        several = f"Of {sum(count.values())} findings of the paper that this run can speak to: {', '.join(parts)}."
        told.append(several if sum(count.values()) > 1 else f"This run can speak to one finding of the paper: {next(iter(count))}.")
    return " ".join(told) or (
        "What was measured of these models." if run_has_rows(results) else "Stages of a run that has not been evaluated yet."
    )


def run_has_rows(results: Results) -> bool:
    """Whether anything was measured."""
    return any(row.value is not None for row in results.by_name.values())


def _shown(value: Any) -> Any:
    """What the template writes: drawings as they are, texts without what a page cannot hold."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
