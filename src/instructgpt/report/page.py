"""One self-contained page, report.html: no script, nothing fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from instructgpt.formatting import escape_control_chars
from instructgpt.records import write_text_atomic
from instructgpt.report.cost import read_report_cost
from instructgpt.report.findings import FALSE_FINDINGS_NOTE, Finding, check_findings
from instructgpt.report.inputs import RunFiles, read_results, read_run
from instructgpt.report.naming import format_estimate, model_name, palette_css
from instructgpt.report.results import Results
from instructgpt.report.section import Section
from instructgpt.report.sections.cost import cost_section
from instructgpt.report.sections.evaluation import best_model_row, build_evaluation_sections
from instructgpt.report.sections.frontier import frontier_section
from instructgpt.report.sections.public import build_public_sections, map_to_paper_metrics, missing_evaluations
from instructgpt.report.sections.refusal import refusal_section
from instructgpt.report.sections.rounds import rounds_section
from instructgpt.report.sections.training import build_training_sections, missing_files, samples_section
from instructgpt.report.sections.whose_preferences import whose_preferences_section


def write_report(run_directory: Path, out: Path | None = None) -> Path:
    """Write `report.html` into a run directory from its files (docs/reference/report.md lists them); return its path.

    Raises:
        InputError: nothing to report on, a damaged file, or the page cannot be written.
    """
    run = read_run(run_directory)
    path = out or run_directory / "report.html"
    write_text_atomic(path, _render_page(run))
    return path


def write_results_page(sources: Sequence[Path], out: Path) -> Path:
    """Write a page of results alone, from results files or run directories side by side.

    Raises:
        InputError: a file is missing or damaged, or the page cannot be written.
    """
    write_text_atomic(out, _render_page(read_results(sources)))
    return out


def _render_page(run: RunFiles) -> str:
    """Render the page; equal files give an equal page."""
    results = Results.from_rows([*run.rows, *map_to_paper_metrics(run.rows)])
    findings = check_findings(results)
    sections = _build_sections(run, results, findings)
    environment = Environment(
        loader=PackageLoader("instructgpt.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize_value,
    )
    environment.filters["drawn"] = Markup
    return environment.get_template("page.html.j2").render(
        name=run.name or run.directory.resolve().name,
        lead=_summarize(results, findings),
        findings=[finding for finding in findings if finding.verdict != "not measured"],
        sections=sections,
        titles={section.id: section.title for section in sections},
        findings_note=FALSE_FINDINGS_NOTE,
        missing=missing_evaluations(results) if run.name else missing_files(run),
        whole=not run.name,
        unread=run.unreadable_lines,
        palette=palette_css(),
    )


def _build_sections(run: RunFiles, results: Results, findings: Sequence[Finding]) -> list[Section]:
    sample_section, rounds = samples_section(run), rounds_section(results, run.round_curves)
    frontier = frontier_section(run.frontier)
    refusals = refusal_section(results)
    whose_preferences = whose_preferences_section(results, run.rankings)
    return [
        *([rounds] if rounds else []),
        *build_evaluation_sections(results, findings),
        *([whose_preferences] if whose_preferences else []),
        *([refusals] if refusals else []),
        *build_public_sections(results),
        *([frontier] if frontier else []),
        *([sample_section] if sample_section else []),
        *build_training_sections(run),
        *cost_section(None if run.name else read_report_cost(run.directory)),
    ]


def _summarize(results: Results, findings: Sequence[Finding]) -> str:
    """Summarize the run in two sentences."""
    verdict_counts = Counter(finding.verdict for finding in findings if finding.verdict != "not measured")
    sentences = []
    row = best_model_row(results, "preference", "win_rate_vs_sft", "training")
    if row is not None and row.model != "sft":
        sentences.append(f"Labelers prefer {model_name(row.model)} to SFT {format_estimate(row)} of the time.")
    if verdict_counts:
        parts = [
            f"{verdict_counts[verdict]} {verdict}"
            for verdict in ("shown", "partly", "not shown", "opposite")
            if verdict_counts[verdict]
        ]
        findings_sentence = (
            f"Of {sum(verdict_counts.values())} findings of the paper that this run can speak to: {', '.join(parts)}."
        )
        sentences.append(
            findings_sentence
            if sum(verdict_counts.values()) > 1
            else f"This run can speak to one finding of the paper: {next(iter(verdict_counts))}."
        )
    return " ".join(sentences) or (
        "What was measured of these models."
        if _has_results(results)
        else "Stages of a run that has not been evaluated yet."
    )


def _has_results(results: Results) -> bool:
    return any(row.value is not None for row in results.rows_by_key.values())


def _finalize_value(value: Any) -> Any:
    """Finalize a template value: SVG stays, text loses characters that a page cannot hold."""
    return escape_control_chars(value) if isinstance(value, str) and not isinstance(value, Markup) else value
