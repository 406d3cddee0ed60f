"""The opening of a run's page: what was trained on what, by whom, in how many steps, at what cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from instructgpt.report.cost import LabelCost, RunCost
from instructgpt.report.inputs import RunFiles, Stage
from instructgpt.report.language import format_count, format_duration, join_list, translate
from instructgpt.report.naming import model_name

_TRAINED_STAGES = ("sft", "reward", "ppo", "dpo")
_SHOWN_VERSIONS = ("instructgpt", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class OpeningFact:
    """One line of the opening."""

    name: str
    text: str


def build_opening(run: RunFiles, cost: RunCost | None) -> list[OpeningFact]:
    """Return the facts that the files of a run state; empty without a stage."""
    stages = list(run.stages.values())
    if not stages:
        return []
    labels = _select_labels(stages, cost)
    facts = (
        ("model", _describe_base_model(stages)),
        ("demonstrations", _describe_labels(labels, rankings=False)),
        ("rankings", _describe_labels(labels, rankings=True)),
        ("labelers", _describe_labelers(labels)),
        ("steps", _describe_steps(stages)),
        ("time", _describe_time(cost)),
        ("cost", _describe_cost(cost)),
        ("made", _describe_versions(run, stages)),
    )
    return [OpeningFact(translate(f"opening.{name}"), text) for name, text in facts if text]


def _describe_base_model(stages: Sequence[Stage]) -> str:
    """Name the model that the first trained stage started from, its family and its size."""
    first = next((stage for stage in stages if stage.info.get("stage") in _TRAINED_STAGES), None)
    pretrained = next((stage for stage in stages if stage.info.get("stage") == "pretrain"), None)
    source = first or pretrained
    if source is None:
        return ""
    family = str(_nested(source.info, "execution", "policy", "family") or "")
    parameters = _number(source.info, "parameters")
    size = translate("opening.parameters", count=f"{parameters:,.0f}") if parameters else ""
    config = _mapping(source.info, "config")
    if pretrained is not None:
        tokens = _number(pretrained.info, "tokens")
        origin = translate("opening.pretrained_here", tokens=format_count(tokens)) if tokens else ""
        name = ""
    else:
        name, origin = _short_model_name(str(config.get("base") or config.get("policy") or "")), ""
    rank = config.get("lora")
    adapters = translate("opening.lora", rank=rank) if isinstance(rank, int) and rank else ""
    return join_list(part for part in (name, family, size, adapters, origin) if part)


def _short_model_name(base: str) -> str:
    """Return a hub name as it is, and the last folder of a path."""
    return base if base.count("/") <= 1 and not base.startswith(("/", ".")) else PurePath(base).name


def _select_labels(stages: Sequence[Stage], cost: RunCost | None) -> list[LabelCost]:
    """Return the labels that the stages of the page were trained on; those of a control beside them do not count."""
    if cost is None or not any(label.path for label in cost.labels):
        return cost.labels if cost else []
    paths = {str(Path(parent.path).resolve()) for stage in stages for parent in stage.parents}
    return [label for label in cost.labels if label.path in paths]


def _describe_labels(labels: Sequence[LabelCost], *, rankings: bool) -> str:
    files = [label for label in labels if bool(label.pairs) == rankings]
    if not files:
        return ""
    records = sum(label.records for label in files)
    if not rankings:
        return translate("opening.records", count=f"{records:,}") + _describe_minutes(files)
    pairs = sum(label.pairs for label in files)
    return translate("opening.pairs", count=f"{records:,}", pairs=f"{pairs:,}") + _describe_minutes(files)


def _describe_minutes(files: Sequence[LabelCost]) -> str:
    minutes = [label.active_minutes for label in files if label.active_minutes is not None]
    return translate("opening.active", time=format_duration(60 * sum(minutes))) if minutes else ""


def _describe_labelers(labels: Sequence[LabelCost]) -> str:
    """Count the people behind all files together, each once."""
    if not labels:
        return ""
    names = frozenset[str]().union(*(label.labeler_names for label in labels))
    count = len(names) or max(label.labelers for label in labels)
    return f"{count:,}" if count else translate("opening.unnamed_labelers")


def _describe_steps(stages: Sequence[Stage]) -> str:
    return join_list(text for stage in stages if (text := _describe_stage_steps(stage)))


def _describe_stage_steps(stage: Stage) -> str:
    steps = max((row["step"] for row in stage.metrics if "step" in row), default=_number(stage.info, "step"))
    if not steps:
        return ""
    name, values = model_name(stage.name), {"steps": f"{steps:,.0f}"}
    if episodes := _number(stage.info, "episodes"):
        return translate("opening.updates", name=name, episodes=f"{episodes:,.0f}", **values)
    return translate("opening.stage_steps", name=name, **values)


def _describe_time(cost: RunCost | None) -> str:
    seconds = sum(stage.seconds for stage in cost.stages) if cost else 0
    if cost is None or not seconds:
        return ""
    gpu_hours = sum(stage.gpu_seconds for stage in cost.stages) / 3600
    on_gpus = translate("opening.gpu_hours", hours=f"{gpu_hours:.3g}") if gpu_hours else ""
    unfinished = [stage.name for stage in cost.stages if not stage.finished]
    open_stages = translate("opening.unfinished", stages=join_list(unfinished)) if unfinished else ""
    return join_list(part for part in (format_duration(seconds), on_gpus, open_stages) if part)


def _describe_cost(cost: RunCost | None) -> str:
    if cost is None:
        return ""
    flops = [stage.flops for stage in cost.stages]
    energy = [stage.energy_kwh for stage in cost.stages if stage.energy_kwh is not None]
    money = [stage.money for stage in cost.stages if stage.money is not None]
    pay = [label.money for label in cost.labels if label.money is not None]
    parts = (
        f"{sum(number for number in flops if number):.3g} FLOPs" if any(flops) and None not in flops else "",
        translate("opening.share", share=f"{cost.share_of_pretraining:.1%}") if cost.share_of_pretraining else "",
        f"{sum(energy):.3g} kWh" if energy else "",
        translate("opening.machines", money=_money(sum(money), cost)) if money else "",
        translate("opening.pay", money=_money(sum(pay), cost)) if pay else "",
    )
    return join_list(part for part in parts if part)


def _money(amount: float, cost: RunCost) -> str:
    return f"{amount:,.2f} {cost.currency}".strip()


def _describe_versions(run: RunFiles, stages: Sequence[Stage]) -> str:
    seeds = [run.seed] if run.seed else list_seeds(stages)
    newest = stages[-1].info
    versions = _mapping(newest, "versions")
    parts = [translate("opening.seed", seeds=join_list(seeds))] if seeds else []
    parts += [f"{name} {versions[name]}" for name in _SHOWN_VERSIONS if name in versions]
    return join_list([*parts, str(newest["started"])] if newest.get("started") else parts)


def list_seeds(stages: Iterable[Stage]) -> list[str]:
    return list(dict.fromkeys(str(stage.info["seed"]) for stage in stages if "seed" in stage.info))


def _mapping(info: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = info.get(name)
    return value if isinstance(value, Mapping) else {}


def _nested(info: Mapping[str, Any], *names: str) -> Any:
    value: Any = info
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _number(info: Mapping[str, Any], name: str) -> float | None:
    value = info.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
