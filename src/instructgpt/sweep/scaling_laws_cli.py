"""`scaling-laws`: fit the laws of reward-model over-optimization to what a sweep measured.

instructgpt sweep --preset scaling-laws --out runs/laws --jobs 2
instructgpt scaling-laws runs/laws --out runs/laws/fits

OUT/measurements.jsonl   a line a cell, which this command reads again beside new ones
OUT/laws.json, laws.md, laws.svg
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from instructgpt.formatting import format_si
from instructgpt.io import check_writable, format_json_line, write_text_atomic
from instructgpt.run.directory import console
from instructgpt.statistics.intervals import Estimate
from instructgpt.statistics.overoptimization import FORMS
from instructgpt.sweep.configs import ScalingLawsConfig
from instructgpt.sweep.scaling_laws import COEFFICIENTS, SettingFit, fit_settings, read_measurements
from instructgpt.sweep.scaling_laws_figure import write_laws_figure

EXPECTED_SIGNS = {"best_of_n": {"alpha": 1, "beta": -1}, "ppo": {"beta": -1}, "ppo_ptx": {"beta": -1}}
"""Sign of each coefficient's change with the reward model's size, as Gao et al. found; for RL alpha is constant."""
_SETTING_NAMES = {
    "labeler_noise": "noise {:g}",
    "labelers": "{} labelers a prompt",
    "reward_max_completions": "K = {}",
    "kl_coef": "KL coefficient {:g}",
    "ptx_coef": "ptx {:g}",
    "episodes": "{} episodes",
    "samples": "{} samples",
    "prompts": "{} prompts",
}


def main(config: ScalingLawsConfig) -> Path:
    """Fit, and write everything. Return the directory.

    Raises:
        InputError: a source has no measurement, or a damaged one.
    """
    cells = read_measurements(config.run)
    check_writable(config.out)
    fits = fit_settings(cells)
    write_text_atomic(config.out / "measurements.jsonl", (format_json_line(dict(cell.row)) for cell in cells))
    report = [_to_json(fit) for fit in fits]
    write_text_atomic(config.out / "laws.json", json.dumps(report, indent=1) + "\n")
    text = "\n".join(line for fit in fits for line in format_setting(fit))
    write_text_atomic(config.out / "laws.md", text)
    write_laws_figure(config.out / "laws.svg", cells)
    console.print(escape(text), highlight=False, soft_wrap=True)
    console.print(f"[bold]scaling-laws[/] {len(cells)} cells in {len(fits)} settings: {config.out}", soft_wrap=True)
    return config.out


def _to_json(fit: SettingFit) -> dict[str, Any]:
    """Return a fit as JSON: numbers that are not finite become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return {name: clean(entry) for name, entry in value.items()}
        return [clean(entry) for entry in value] if isinstance(value, list | tuple) else value

    return {**clean(asdict(fit)), "verdicts": list(judge_setting(fit))}


def describe_setting(setting: Mapping[str, Any]) -> str:
    """Return a setting in a few words."""
    parts = [str(setting["method"]).replace("_", " ")]
    for name, text in _SETTING_NAMES.items():
        value = setting.get(name)
        if name == "reward_max_completions" and not value:
            parts.append("K as ranked")
        elif value is not None:
            parts.append(text.format(value))
    return ", ".join(parts)


def format_setting(fit: SettingFit) -> Iterator[str]:
    """Yield the lines of a setting's part of laws.md."""
    yield f"## {describe_setting(fit.setting)}"
    yield f"y = {FORMS[fit.law].formula}, y and d as in the guide; {fit.cells} cells"
    yield ""
    titles = ("parameters", "ranked prompts", "seeds", "right pairs, labelers", "right pairs, truth", *COEFFICIENTS)
    yield f"| {' | '.join((*titles, 'peak: d', 'y'))} |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for entry in fit.combinations:
        peak = ("–", "–") if entry.peak is None else tuple(f"{value:.2f}" for value in entry.peak)
        shares = (f"{100 * share:.0f} %" for share in (entry.reward_accuracy, entry.truth_accuracy))
        head = (format_si(entry.size, "").strip(), f"{entry.prompts}", f"{entry.seeds}", *shares)
        yield f"| {' | '.join((*head, *map(format_coefficient, entry.coefficients), *peak))} |"
    yield ""
    yield from (f"- {line}" for line in judge_setting(fit))
    yield ""
    if fit.heldout:
        yield "| left out | error of the curve predicted from the others | of the nearest cells' | of a fit to itself |"
        yield "|---|---|---|---|"
        for row in fit.heldout:
            label = f"{row.value} {'parameters' if row.axis == 'size' else 'ranked prompts'}"
            yield f"| {label} | {row.predicted:.3f} | {row.nearest:.3f} | {row.fitted:.3f} |"
        yield ""
    yield "| form | error of the fit | error at larger d | cells it predicts best | AICc above the best |"
    yield "|---|---|---|---|---|"
    for name, numbers in fit.forms.items():
        error, beyond, aicc = (numbers[key] for key in ("error", "error_beyond", "aicc_above_best"))
        yield (
            f"| {FORMS[name].formula} | {error:.3f} | {_or_dash(beyond, '.3f')} | {numbers['best_beyond']:.0f} | "
            f"{_or_dash(aicc, '.1f')} |"
        )
    yield ""


def _or_dash(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def format_coefficient(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–" if estimate.value is None else f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def judge_setting(fit: SettingFit) -> Iterator[str]:
    """Yield what holds of the laws in a setting, and what does not."""
    yield (
        f"Over-optimization: in {fit.falling} of {fit.cells} cells the truth ends below its highest point, by an "
        "interval over prompts that is clear of 0."
    )
    _, beta = fit.mean_coefficients
    is_positive = beta.low is not None and beta.low > 0
    verdict = "above 0" if is_positive else "not shown to be above 0"
    yield f"beta is {verdict}: {format_coefficient(beta)}, mean of all cells."
    yield from _judge_form(fit)
    for axis, label in (("size", "parameters"), ("prompts", "ranked prompts")):
        for name, estimate in zip(COEFFICIENTS, fit.trends.get(axis, ()), strict=False):
            sign = EXPECTED_SIGNS[str(fit.setting["method"])].get(name) if axis == "size" else None
            change = format_coefficient(estimate)
            yield f"{name} changes by {change} with ten times the {label}{_judge_sign(estimate, sign)}."
    for row in fit.heldout:
        verdict = "predicted" if row.predicted < row.nearest else "not predicted"
        kind = "parameters" if row.axis == "size" else "ranked prompts"
        yield f"Cells of {row.value} {kind} are {verdict} better than by their nearest neighbors."


def _judge_form(fit: SettingFit) -> Iterator[str]:
    beyond = {name: row["error_beyond"] for name, row in fit.forms.items() if math.isfinite(row["error_beyond"])}
    if fit.law not in beyond:
        yield "The form was not tested: a cell needs four points or more."
        return
    best = min(beyond, key=beyond.__getitem__)
    if best == fit.law:
        yield f"The form holds: of all it predicts larger d best (error {beyond[best]:.3f})."
    else:
        yield (
            f"THE FORM FAILS: {FORMS[best].formula} predicts larger d better "
            f"(error {beyond[best]:.3f} against {beyond[fit.law]:.3f})."
        )


def _judge_sign(estimate: Estimate, sign: int | None) -> str:
    """Return how a change compares with that of Gao et al.; empty where they have none."""
    if sign is None or estimate.low is None or estimate.high is None:
        return ""
    direction = "up" if sign > 0 else "down"
    if estimate.low * estimate.high <= 0:
        return f" (Gao et al.: {direction}; not shown)"
    holds = (estimate.low > 0) == (sign > 0)
    return f" (Gao et al.: {direction}; {'holds' if holds else 'THE OPPOSITE'})"
