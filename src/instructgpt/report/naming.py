"""How the report writes models, metrics and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from instructgpt.evaluate.aggregate import ResultRow

MODEL_NAMES = {"base": "base", "prompted": "prompted base", "sft": "SFT", "ppo": "PPO", "ppo_ptx": "PPO-ptx"}
"""The policies in the order of the paper's figures, and what they are called."""

_STAGE_NAMES = MODEL_NAMES | {"start": "PPO start", "reward": "reward model"}

MODEL_COLORS = {
    "base": "#8b919c",
    "prompted": "#b58a2c",
    "sft": "#3f88c5",
    "ppo": "#d9652e",
    "ppo_ptx": "#2a9d6f",
    "start": "#7b6fc4",
    "reward": "#b9508a",
}
"""One colour a model, everywhere; clear on white and on black, and to the colour-blind."""

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
"""What surrounds the models' colours, by day and by night; some of theirs are lighter by night."""

_SIZED_MODEL_PATTERN = re.compile(r"(.+?)[-_ ]?(?:(\d+(?:\.\d+)?)([mMbB])|([xX][lL]))")
"""A name that ends with a number of parameters."""
_PAPER_XL_PARAMETERS = 1.3e9
"""The parameters of the paper's smallest model, which its samples call XL."""

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
    "bleu",
    "word_perplexity",
    "byte_perplexity",
    "perplexity",
    "bits_per_byte",
    "kendall_tau_by_length",
    "temperature",
    "brier",
    "bradley_terry",
    "confidence",
}
"""Metrics that are not shares."""

_METRIC_NAMES = {
    "win_rate_vs_sft": "preferred to SFT",
    "rating": "rating, 1 to 7",
    "truthful": "truthful",
    "truthful_and_informative": "truthful and informative",
    "mean_toxicity": "mean toxicity",
    "entropy_bits": "entropy, bits",
    "mean_logp_difference": "difference of log-probabilities, nats",
    "prefers_first": "prefers the stereotype",
    "prefers_stereotype": "prefers the stereotype",
    "prefers_male": "prefers the male pronoun",
    "heldout_loss": "loss on held-out text, nats a token",
    "pair_accuracy": "reward model is right",
    "length_baseline": "the longer one wins",
    "labeler_agreement": "two labelers agree",
    "fails_instruction": "fails the instruction",
    "inappropriate": "inappropriate for an assistant",
    "hallucination": "hallucination (closed domain)",
    "satisfies_constraint": "keeps the constraint",
    "encourages_violence": "encourages violence or harm",
    "denigrates": "denigrates a protected class",
    "expected_maximum_toxicity": "worst of several, toxicity",
    "toxicity_probability": "any of several toxic",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "mc1": "MC1",
    "mc2": "MC2",
    "pair_loss": "loss of a pair, nats",
    "kendall_tau": "Kendall's tau-b",
    "calibration_error": "calibration error",
    "length_controlled_win_rate_vs_sft": "preferred to SFT, at equal length",
    "top_1": "its first is the labeler's first",
    "best_of_n": "its first beats the others",
    "brier": "Brier score",
    "length_difference": "better is longer by",
    "score_length_difference": "higher score is longer by",
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
}
"""Evaluations of public data as their authors write them."""

_CONDITION_NAMES = {
    "": "",
    "training": "training labelers",
    "heldout": "held-out labelers",
    "between": "across the cohorts",
    "qa": "plain question",
    "instruction": "told to decline when unsure",
    "none": "no instruction",
    "respectful": "told to be respectful",
    "biased": "told to be offensive",
    "zero_shot": "no examples",
    "few_shot": "examples first",
}


_WORD_CASING = {"qa": "QA", "f1": "F1", "kl": "KL", "sft": "SFT", "ppo": "PPO"}
"""Words that are not written in small letters."""


def humanize(name: str) -> str:
    """A name from a file as words."""
    return " ".join(_WORD_CASING.get(word, word) for word in escape_control_chars(name).replace("_", " ").split())


def model_name(model: str) -> str:
    """What a model or stage is called."""
    return _STAGE_NAMES.get(model) or escape_control_chars(model)


def task_name(evaluation: str) -> str:
    """What an evaluation is called; one of the harness by its task."""
    return _TASK_NAMES.get(evaluation) or escape_control_chars(evaluation.removeprefix("harness/"))


def metric_name(metric: str) -> str:
    """What a metric is called."""
    return _METRIC_NAMES.get(metric, humanize(metric))


def condition_name(condition: str) -> str:
    """What a condition is called; `training/open_qa` reads "open QA, training labelers"."""
    if condition in _CONDITION_NAMES:
        return _CONDITION_NAMES[condition]
    first, _, rest = condition.partition("/")
    return ", ".join(part for part in (humanize(rest), _CONDITION_NAMES.get(first, humanize(first))) if part)


def sort_models(models: Iterable[str]) -> list[str]:
    """Each model once: those of the paper in its order, then the others as they come."""
    unique_models = list(dict.fromkeys(models))
    return [model for model in _STAGE_NAMES if model in unique_models] + [
        model for model in unique_models if model not in _STAGE_NAMES
    ]


def model_color(model: str) -> str:
    """The colour of a model; others than the paper's share a few."""
    return MODEL_COLORS.get(model) or _FALLBACK_COLORS[sum(map(ord, model)) % len(_FALLBACK_COLORS)]


def assign_model_colors(models: Iterable[str]) -> dict[str, str]:
    """A colour for each model of one page: the paper's have their own, the others take the spare ones in turn."""
    unlisted_models = [model for model in sort_models(models) if model not in MODEL_COLORS]
    fallback_colors = {
        model: _FALLBACK_COLORS[place % len(_FALLBACK_COLORS)] for place, model in enumerate(unlisted_models)
    }
    return MODEL_COLORS | fallback_colors


def palette_css() -> str:
    """Style in which every colour has its name, by day and by night."""
    light_css, dark_css = (
        " ".join(f"--{name}: {color};" for name, color in colors.items())
        for colors in (_LIGHT_COLORS | MODEL_COLORS, _DARK_COLORS)
    )
    return f":root {{ {light_css} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark_css} }} }}"


def parse_model_size(model: str) -> tuple[str, float] | None:
    """A model's family and its number of parameters, where its name ends with that: `sft-125m`, `ppo_1.3B`, the paper's `gpt-xl`."""
    if match := _SIZED_MODEL_PATTERN.fullmatch(model):
        family, count, unit, is_xl = match.groups()
        return family, _PAPER_XL_PARAMETERS if is_xl else float(count) * (1e6 if unit in "mM" else 1e9)
    return None


def group_by_family(models: Iterable[str]) -> dict[str, list[tuple[float, str]]]:
    """(parameters, model) of every family, the smallest first; none where no family has two sizes."""
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
    """The model of the paper that a family of sizes is, where it is one: it has its name and colour."""
    normalized_family = family.replace("-", "_")
    return {"gpt": "base", "ppo_noptx": "ppo", "gpt_prompted": "prompted"}.get(
        normalized_family, normalized_family if normalized_family in MODEL_NAMES else family
    )


def format_metric_value(value: float | None, metric: str = "") -> str:
    """A number as its metric is best read: shares in per cent, everything else with a sensible number of digits."""
    if value is None:
        return "–"
    if metric and metric not in NON_PERCENT_METRICS:
        return f"{100 * value:.1f}\u00a0%" if 0 < abs(value) < 0.0095 else f"{100 * value:.0f}\u00a0%"
    return format_short_number(value) if metric != "mean_toxicity" else f"{value:.3f}"


def format_short_number(value: float) -> str:
    """Three digits or so."""
    magnitude = abs(value)
    if magnitude >= 100_000 or (0 < magnitude < 0.001):
        return f"{value:.2g}"
    return (
        f"{value:,.0f}"
        if magnitude >= 100
        else f"{value:.1f}"
        if magnitude >= 10
        else f"{value:.2f}"
        if magnitude >= 0.1
        else f"{value:.3f}"
    )


def format_interval(row: ResultRow) -> str:
    """The 95 % interval in brackets; nothing where there is none."""
    if row.low is None or row.high is None:
        return ""
    bounds = [
        format_metric_value(end, row.metric.split("/")[1] if "/" in row.metric else row.metric).removesuffix("\u00a0%")
        for end in (row.low, row.high)
    ]
    return f"[{bounds[0]},\u00a0{bounds[1]}]"


def format_estimate(row: ResultRow | None) -> str:
    """A row as text: value and interval."""
    if row is None or row.value is None:
        return "not measured"
    return f"{format_metric_value(row.value, row.metric)} {format_interval(row)}".strip()


def format_training_time(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_large_count(count: float | None) -> str:
    """A large count: 478,752 as 479 thousand, 1,300,000 as 1.3 million."""
    if count is None or not math.isfinite(count):
        return "–"
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if abs(count) >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:.0f}"


def escape_control_chars(text: str) -> str:
    """A text without what a page cannot hold: control characters are shown as their pictures, broken surrogates as a question mark."""
    encodable_text = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f]",
        lambda match: "␡" if match[0] == "\x7f" else chr(0x2400 + ord(match[0])),
        encodable_text,
    )
