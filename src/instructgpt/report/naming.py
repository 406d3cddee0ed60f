"""Display names of models, metrics and numbers in the report."""

from __future__ import annotations

import re
from collections.abc import Iterable

from instructgpt.formatting import escape_control_chars, format_short_number
from instructgpt.report.language import find_message, join_list, translate
from instructgpt.results import ResultRow

MODEL_NAMES = (
    "base",
    "prompted",
    "public_tasks",
    "sft",
    "dpo",
    "expert_iteration",
    "best_of_n",
    "ppo",
    "ppo_ptx",
)
"""Policies in the order of the paper's figures."""

_STAGE_ORDER = (*MODEL_NAMES, "start", "reward")

_GROUPED_MODEL_PATTERN = re.compile(r"(\w+)( \(.+\))", re.DOTALL)
"""A model of one of several groups of runs: `ppo_ptx (lr4)`."""

MODEL_COLORS = {
    "base": "#8b919c",
    "prompted": "#b58a2c",
    "public_tasks": "#a0522d",
    "sft": "#3f88c5",
    "dpo": "#4f6db8",
    "expert_iteration": "#c79a3b",
    "best_of_n": "#5f9ea0",
    "ppo": "#d9652e",
    "ppo_ptx": "#2a9d6f",
    "start": "#7b6fc4",
    "reward": "#b9508a",
}
"""One color a model everywhere; readable on white, on black, and for color-blind readers."""

_LIGHT_COLORS = {
    "page": "#fdfdfb",
    "ink": "#1f2328",
    "muted": "#6a7079",
    "line": "#d9dce0",
    "soft": "#f3f4f1",
    "link": "#2a6496",
    "good": "#2a9d6f",
    "some": "#b58a2c",
    "none": "#8b919c",
    "bad": "#c2452d",
}
_DARK_COLORS = {
    "page": "#16181b",
    "ink": "#e2e4e6",
    "muted": "#9aa1aa",
    "line": "#363b41",
    "soft": "#1e2125",
    "link": "#7db5e0",
    "none": "#80868f",
    "bad": "#e0705a",
    "good": "#43b98a",
    "some": "#d0a848",
    "sft": "#5aa0da",
    "ppo": "#e97f4c",
    "ppo_ptx": "#3fb488",
    "start": "#978ce0",
    "reward": "#cf6ea3",
}
"""Colors of the dark theme."""

_SIZED_MODEL_PATTERN = re.compile(r"(.+?)[-_ ]?(?:(\d+(?:\.\d+)?)([mMbB])|([xX][lL]))")
"""A model name that ends with a number of parameters."""
_PAPER_XL_PARAMETERS = 1.3e9
"""Parameters of the paper's smallest model, named XL in its samples."""

_FALLBACK_COLORS = ("#5f9ea0", "#a0522d", "#6b8e23", "#c06c84", "#4f6db8", "#c79a3b", "#8a5aa8", "#3d8b7d")

NON_PERCENT_METRICS = {
    "rating",
    "mean_toxicity",
    "expected_maximum_toxicity",
    "entropy_bits",
    "mean_logp_difference",
    "heldout_loss",
    "kendall_tau",
    "pair_loss",
    "length_difference",
    "score_length_difference",
    "calibration_error",
    "chance_calibration_error",
    "bleu",
    "word_perplexity",
    "byte_perplexity",
    "perplexity",
    "bits_per_byte",
    "kendall_tau_by_length",
    "temperature",
    "brier",
    "bradley_terry",
}

_TASK_NAMES = {
    "winogender": "Winogender",
    "crows_pairs": "CrowS-Pairs",
    "bbq": "BBQ",
    "real_toxicity": "RealToxicityPrompts",
    "truthfulqa": "TruthfulQA",
    "hellaswag": "HellaSwag",
    "wsc": "WSC",
    "rte": "RTE",
    "sst2": "SST-2",
    "quac": "QuAC",
    "squad": "SQuADv2",
    "drop": "DROP",
    "wmt15": "WMT15 Fr→En",
    "cnn_dm": "CNN/DM",
    "tldr": "TL;DR",
    "arc_easy": "ARC, easy",
    "piqa": "PIQA",
    "winogrande": "WinoGrande",
    "gsm8k": "GSM8K",
    "refusal": "refusals",
}
"""Names of public evaluations as their authors write them."""

_WORD_CASING = {"qa": "QA", "f1": "F1", "kl": "KL", "sft": "SFT", "ppo": "PPO"}
"""Words that are not lower-case."""


def humanize(name: str) -> str:
    """Turn a file's name into words."""
    if message := find_message(f"words.{name}"):
        return message
    return " ".join(_WORD_CASING.get(word, word) for word in escape_control_chars(name).replace("_", " ").split())


def model_name(model: str) -> str:
    """Return the display name of a model, also of one in a group of runs: `ppo_ptx (lr4)` reads "PPO-ptx (lr4)"."""
    if match := _GROUPED_MODEL_PATTERN.fullmatch(model):
        return model_name(match[1]) + escape_control_chars(match[2])
    return find_message(f"model.{model}") or escape_control_chars(model)


def task_name(evaluation: str) -> str:
    return _TASK_NAMES.get(evaluation) or escape_control_chars(evaluation.removeprefix("harness/"))


def metric_name(metric: str) -> str:
    return find_message(f"metric.{metric}") or humanize(metric)


def condition_name(condition: str) -> str:
    """Return a condition's display name; `training/open_qa` reads "open QA, training labelers"."""
    if not condition:
        return ""
    if message := find_message(f"condition.{condition}"):
        return message
    first, _, rest = condition.partition("/")
    return join_list(part for part in (humanize(rest), find_message(f"condition.{first}") or humanize(first)) if part)


def truthfulqa_prompt_name(condition: str) -> str:
    return find_message(f"truthfulqa_prompt.{condition}") or condition_name(condition)


def sort_models(models: Iterable[str]) -> list[str]:
    """Return unique models: the paper's in its order, groups of runs side by side, then others as they appear."""

    def place(model: str) -> int:
        name = _base_name(model)
        return _STAGE_ORDER.index(name) if name in _STAGE_ORDER else len(_STAGE_ORDER)

    return sorted(dict.fromkeys(models), key=place)


def _base_name(model: str) -> str:
    """Return `ppo_ptx` for the model `ppo_ptx (lr4)` of a group of runs."""
    match = _GROUPED_MODEL_PATTERN.fullmatch(model)
    return match[1] if match else model


def model_color(model: str) -> str:
    return MODEL_COLORS.get(model) or _FALLBACK_COLORS[sum(map(ord, model)) % len(_FALLBACK_COLORS)]


def assign_model_colors(models: Iterable[str]) -> dict[str, str]:
    """Return a color for each model of a page: the paper's keep theirs, others take fallback colors in turn."""
    ordered = sort_models(models)
    grouped_colors = {model: MODEL_COLORS[name] for model in ordered if (name := _base_name(model)) in MODEL_COLORS}
    unlisted_models = [model for model in ordered if model not in grouped_colors]
    fallback_colors = {
        model: _FALLBACK_COLORS[place % len(_FALLBACK_COLORS)] for place, model in enumerate(unlisted_models)
    }
    return MODEL_COLORS | grouped_colors | fallback_colors


def palette_css() -> str:
    """Return the CSS variables of every color for light and dark theme."""
    light_css, dark_css = (
        " ".join(f"--{name}: {color};" for name, color in colors.items())
        for colors in (_LIGHT_COLORS | MODEL_COLORS, _DARK_COLORS)
    )
    return f":root {{ {light_css} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark_css} }} }}"


def parse_model_size(model: str) -> tuple[str, float] | None:
    """Return family and parameter count of a name that ends with a size: `sft-125m`, `ppo_1.3B`,
    the paper's `gpt-xl`.
    """
    if match := _SIZED_MODEL_PATTERN.fullmatch(model):
        family, count, unit, is_xl = match.groups()
        return family, _PAPER_XL_PARAMETERS if is_xl else float(count) * (1e6 if unit in "mM" else 1e9)
    return None


def group_by_family(models: Iterable[str]) -> dict[str, list[tuple[float, str]]]:
    """Return (parameters, model) of every family, smallest first; empty if no family has two sizes."""
    sizes_by_family: dict[str, dict[float, str]] = {}
    for model in models:
        if model_size := parse_model_size(model):
            sizes_by_family.setdefault(model_size[0], {})[model_size[1]] = model
    return (
        {family: sorted(sizes.items()) for family, sizes in sizes_by_family.items()}
        if any(len(sizes) > 1 for sizes in sizes_by_family.values())
        else {}
    )


def paper_model_of_family(family: str) -> str:
    """Return the paper's model that a size family corresponds to, for its name and color."""
    normalized_family = family.replace("-", "_")
    return {"gpt": "base", "ppo_noptx": "ppo", "gpt_prompted": "prompted"}.get(
        normalized_family, normalized_family if normalized_family in MODEL_NAMES else family
    )


def format_metric_value(value: float | None, metric: str = "") -> str:
    """Format a value as its metric reads best: shares in percent."""
    if value is None:
        return "–"
    if metric and metric not in NON_PERCENT_METRICS:
        return f"{100 * value:.1f}\u00a0%" if 0 < abs(value) < 0.0095 else f"{100 * value:.0f}\u00a0%"
    return format_short_number(value) if metric != "mean_toxicity" else f"{value:.3f}"


def format_interval(row: ResultRow) -> str:
    """Format the 95 % interval in brackets, ∞ for an open end; empty without one."""
    if row.low is None and row.high is None:
        return ""
    metric = row.metric.split("/")[1] if "/" in row.metric else row.metric
    bounds = [
        infinity if end is None else format_metric_value(end, metric).removesuffix("\u00a0%")
        for end, infinity in ((row.low, "−∞"), (row.high, "∞"))
    ]
    return f"[{bounds[0]},\u00a0{bounds[1]}]"


def format_estimate(row: ResultRow | None) -> str:
    if row is None or row.value is None:
        return translate("findings.not_measured")
    return f"{format_metric_value(row.value, row.metric)} {format_interval(row)}".strip()
