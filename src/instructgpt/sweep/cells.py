"""The cells of a sweep: every combination of values and seeds, each named by the hash of its configuration."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgpt.config import did_you_mean, make_config, preset_names, read_preset, section_for
from instructgpt.errors import InputError
from instructgpt.run.configs import STAGE_SECTIONS, RunConfig
from instructgpt.run.directory import RESUMABLE_OPTIONS
from instructgpt.stage_configs import build_stage_configs, get_world_files
from instructgpt.sweep.configs import SweepConfig

PLACEHOLDER = Path("cell")
"""Run directory of the configurations that are hashed, so that a hash does not depend on where a cell is."""
HASH_LENGTH = 12
_PTX_OPTIONS = ("ptx_coef", "ptx_ratio", "ptx_reduction")
_POLICY_SECTIONS = ("ppo", "ppo_ptx")


@dataclass(frozen=True, slots=True)
class Axis:
    """One --vary: an option of one or several stages, and the values to try, as text."""

    sections: tuple[str, ...]
    option: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{'+'.join(self.sections)}.{self.option}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep."""

    values: Mapping[str, str]  # of each axis, by its name
    config: RunConfig
    key: str
    is_fresh: bool = False  # measures the chosen combination again

    @property
    def seed(self) -> int:
        return self.config.seed


def parse_axis(text: str) -> Axis:
    """Parse `STAGE.OPTION=VALUE,VALUE,…`.

    Raises:
        InputError: the text has another form, or names a stage that does not exist, or a value twice.
    """
    name, equals, values_text = text.partition("=")
    stages, dot, option = name.strip().rpartition(".")
    values = tuple(value.strip() for value in values_text.split(","))
    if not (equals and dot and option and all(values)):
        raise InputError(f"--vary {text}: expected STAGE.OPTION=VALUE,VALUE,…, as ppo.kl_coef=0.01,0.02")
    sections, names = tuple(stages.split("+")), ("run", *STAGE_SECTIONS)
    for section in sections:
        if section not in names:
            hint = did_you_mean(section, names) or f"; stages: {', '.join(names)}"
            raise InputError(f"--vary {text}: no stage '{section}'{hint}")
    option = option.replace("-", "_")
    if "run" in sections and option in ("seed", "out", "stages"):
        raise InputError(f"--vary {text}: {'use --seeds' if option == 'seed' else 'every cell has its own'}")
    if len({_to_number(value) for value in values}) < len(values):
        raise InputError(f"--vary {text}: names a value twice")
    return Axis(sections, option, values)


def _to_number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def read_recipe(config: SweepConfig) -> dict[str, Any]:
    """Return the options of `run`, with the field `stages`, that all cells start from.

    Raises:
        InputError: no preset and no readable file of that name.
    """
    if not config.recipe:
        if "run" not in config.stages:
            raise InputError("sweep: name a recipe: a preset of 'run' (demo, smoke) or a configuration file")
        stages = dict(config.stages)
        return stages.pop("run") | {"stages": stages}
    if config.recipe in preset_names():
        recipe = section_for(RunConfig, read_preset(config.recipe), f"preset {config.recipe}")
    else:
        try:
            recipe = section_for(RunConfig, Path(config.recipe).read_text(encoding="utf-8"), config.recipe)
        except (OSError, UnicodeDecodeError) as error:
            problem = getattr(error, "strerror", None) or error
            raise InputError(
                f"{config.recipe}: no preset ({', '.join(preset_names())}) and no readable file ({problem})"
            ) from error
    stages = {name: dict(section) for name, section in recipe["stages"].items()}
    sections = dict(config.stages)
    changes = sections.pop("run", {})
    for name, section in sections.items():
        stages[name] = stages.get(name, {}) | section
    return recipe | changes | {"stages": stages}


def build_cells(recipe: Mapping[str, Any], axes: Sequence[Axis], seeds: Iterable[int], **flags: bool) -> list[Cell]:
    """Return a cell for every combination of values and every seed; check all of them before the first one starts.

    Raises:
        InputError: an option does not exist, has a wrong value, or has no effect on any result.
    """
    cells: list[Cell] = []
    for values in itertools.product(*(axis.values for axis in axes)):
        named = dict(zip((axis.name for axis in axes), values, strict=True))
        for seed in seeds:
            settings = apply_values(recipe, axes, values) | {"seed": seed}
            try:
                config = build_cell_config(settings, PLACEHOLDER)
                key = hash_config(config)
            except InputError as error:
                combination = ", ".join(f"{name}={value}" for name, value in named.items())
                raise InputError(f"cell {combination}: {error}") from error
            cells.append(Cell(named, config, key, **flags))
    _check_cells_differ(cells)
    return cells


def _check_cells_differ(cells: Sequence[Cell]) -> None:
    """Raise InputError where two combinations have one configuration: what they vary has no effect."""
    by_key: dict[str, Cell] = {}
    for cell in cells:
        twin = by_key.setdefault(cell.key, cell)
        if twin is not cell:
            name = next(name for name, value in cell.values.items() if twin.values[name] != value)
            raise InputError(
                f"--vary {name}: has no effect on any result, {twin.values[name]} and {cell.values[name]} give one run"
            )


def apply_values(recipe: Mapping[str, Any], axes: Sequence[Axis], values: Sequence[str]) -> dict[str, Any]:
    """Return the recipe with one value of each axis."""
    settings = {**recipe, "stages": {name: dict(section) for name, section in recipe["stages"].items()}}
    for axis, value in zip(axes, values, strict=True):
        for section in axis.sections:
            target = settings if section == "run" else settings["stages"].setdefault(section, {})
            target[axis.option] = value
    _drop_pretraining_at_zero(settings["stages"])
    return settings


def _drop_pretraining_at_zero(stages: dict[str, dict[str, Any]]) -> None:
    """Turn a share of pretraining text of 0 into training without such text, which the stages want to be said."""
    for name, option, inert in (("start", "mix", ()), ("ppo_ptx", "ptx_coef", _PTX_OPTIONS)):
        section = stages.get(name, {})
        if option in section and _to_number(str(section[option])) == 0:
            dropped = {option, *inert}
            stages[name] = {key: value for key, value in section.items() if key not in dropped} | {"pretraining": []}


def build_cell_config(settings: Mapping[str, Any], out: Path) -> RunConfig:
    """Return the configuration of a cell in the directory `out`. In the small world, PPO is validated.

    A cell is one process: several cells at once use a machine better than several processes in each.
    """
    stages = {name: dict(section) for name, section in settings["stages"].items()}
    config = make_config(RunConfig, {**settings, "stages": stages}, {"out": out, "processes": 1})
    if not config.has_files and not config.overoptimization:
        for name in _POLICY_SECTIONS:
            section = stages.setdefault(name, {})
            section.setdefault("validation", [str(get_world_files(out / "world")["validation"])])
        config = make_config(RunConfig, {**settings, "stages": stages}, {"out": out, "processes": 1})
    return config


def move_config(config: RunConfig, out: Path) -> RunConfig:
    """Return the configuration of a cell with another run directory."""
    old, new = str(config.out), str(out)
    stages = {name: _move_paths(section, old, new) for name, section in config.stages.items()}
    return config.model_copy(update={"out": out, "stages": stages})


def _move_paths(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {name: _move_paths(entry, old, new) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_move_paths(entry, old, new) for entry in value]
    is_inside = isinstance(value, str) and value.startswith(f"{old}/")
    return new + value[len(old) :] if is_inside else value


def resolve_stages(config: RunConfig) -> dict[str, Any]:
    """Return the settings of every stage that can change a result, defaults included, and those of the run itself.

    Raises:
        InputError: an option does not exist or has no effect.
    """
    stages = build_stage_configs(config)
    resolved: dict[str, Any] = {"run": _settings(config, {"stages"})}
    for name, stage in stages.items():
        if name == "rounds":
            for round_ in stage:
                prefix = f"{round_.name}/" if round_.name else ""
                parts = {"candidates": round_.candidates, "reward": round_.reward, **round_.policies}
                resolved |= {f"{prefix}{part}": _settings(part_config) for part, part_config in parts.items()}
        elif name == "baselines":
            resolved |= {method: _settings(method_config) for method, method_config in stage.items()}
        else:
            resolved[name] = _settings(stage)
    return resolved


def _settings(config: Any, excluded: Iterable[str] = ()) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(config.model_dump_json())
    excluded = RESUMABLE_OPTIONS | set(excluded)
    return {name: value for name, value in sorted(settings.items()) if name not in excluded}


def hash_settings(settings: Any) -> str:
    """Return the name of something that these settings make."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]


def hash_config(config: RunConfig) -> str:
    return hash_settings(resolve_stages(config))
