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
from instructgpt.report.captions import has_means
from instructgpt.report.comparison import RunGroup, combine_rows, describe_groups, read_groups
from instructgpt.report.cost import RunCost, read_report_cost
from instructgpt.report.findings import VERDICTS, Finding, check_findings
from instructgpt.report.inputs import RunFiles, read_run
from instructgpt.report.language import current_language, join_list, translate
from instructgpt.report.naming import format_estimate, model_name, palette_css
from instructgpt.report.opening import build_opening
from instructgpt.report.results import Results
from instructgpt.report.section import Section
from instructgpt.report.sections.comparison import build_comparison_sections
from instructgpt.report.sections.cost import cost_section
from instructgpt.report.sections.evaluation import best_model_row, build_evaluation_sections
from instructgpt.report.sections.frontier import compared_frontier_sections, frontier_section
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
    groups = read_groups(sources)
    run = RunFiles(
        directory=sources[0].parent, rows=tuple(combine_rows(groups)), name=", ".join(group.name for group in groups)
    )
    write_text_atomic(out, _render_page(run, groups))
    return out


def _render_page(run: RunFiles, groups: Sequence[RunGroup] = ()) -> str:
    """Render the page; equal files give an equal page. `groups` are the sources of a comparison."""
    results = Results.from_rows([*run.rows, *map_to_paper_metrics(run.rows)])
    findings = [finding for finding in check_findings(results) if finding.verdict != "not measured"]
    cost = None if run.name else read_report_cost(run.directory)
    sections = _build_sections(run, results, findings, cost, groups)
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
        t=translate,
        language=current_language(),
        name=run.name or run.directory.resolve().name,
        lead=_summarize(results, findings, groups),
        facts=build_opening(run, cost),
        findings=findings,
        verdict_names={verdict: translate(f"verdict.{verdict.replace(' ', '_')}") for verdict in VERDICTS},
        sections=sections,
        titles={section.id: section.title for section in sections},
        findings_note="" if has_means(results) else translate("findings.by_chance"),
        missing=missing_evaluations(results) if run.name else missing_files(run),
        whole=not run.name,
        unread=run.unreadable_lines,
        palette=palette_css(),
    )


def _build_sections(
    run: RunFiles,
    results: Results,
    findings: Sequence[Finding],
    cost: RunCost | None,
    groups: Sequence[RunGroup],
) -> list[Section]:
    rounds = rounds_section(results, run.round_curves)
    frontiers = compared_frontier_sections(groups) if groups else [*_present(frontier_section(run.frontier, run.rows))]
    return [
        *build_comparison_sections(groups),
        *_present(samples_section(run)),
        *_present(rounds),
        *build_evaluation_sections(results, findings),
        *_present(whose_preferences_section(results, run.rankings, run.stages)),
        *_present(refusal_section(results)),
        *build_public_sections(results),
        *frontiers,
        *build_training_sections(run),
        *cost_section(cost),
    ]


def _present(section: Section | None) -> list[Section]:
    return [section] if section else []


def _summarize(results: Results, findings: Sequence[Finding], groups: Sequence[RunGroup]) -> str:
    """Summarize the page in a few sentences."""
    verdict_counts = Counter(finding.verdict for finding in findings)
    sentences = [describe_groups(groups)] if any(run.stages for group in groups for run in group.runs) else []
    row = best_model_row(results, "preference", "win_rate_vs_sft", "training")
    if row is not None and row.model != "sft":
        sentences.append(translate("lead.preferred", model=model_name(row.model), share=format_estimate(row)))
    if len(findings) > 1:
        parts = [
            translate(
                "lead.verdict_count",
                count=verdict_counts[verdict],
                verdict=translate(f"verdict.{verdict.replace(' ', '_')}"),
            )
            for verdict in VERDICTS
            if verdict_counts[verdict]
        ]
        sentences.append(translate("lead.findings", count=len(findings), parts=join_list(parts)))
    elif findings:
        verdict = findings[0].verdict.replace(" ", "_")
        sentences.append(translate("lead.one_finding", verdict=translate(f"verdict.{verdict}")))
    return " ".join(sentences) or translate("lead.measured" if _has_results(results) else "lead.not_evaluated")


def _has_results(results: Results) -> bool:
    return any(row.value is not None for row in results.rows_by_key.values())


def _finalize_value(value: Any) -> Any:
    """Finalize a template value: SVG stays, text loses characters that a page cannot hold."""
    return escape_control_chars(value) if isinstance(value, str) and not isinstance(value, Markup) else value
