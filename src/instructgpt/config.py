"""What can be set: one frozen object a stage, filled from a preset, a YAML file and flags, the later winning.

An option that does not exist, does not parse or would have no effect is an error, never a silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from instructgpt.errors import InputError, one_line

TrackerName = Literal["tensorboard", "trackio", "wandb"]


class CommandConfig(BaseModel):
    """What a command can be told. Frozen; what does not exist is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, allow_inf_nan=False)
    stage: ClassVar[str]
    excluded_fields: ClassVar[frozenset[str]] = frozenset()
    """Options of all stages that this one has no use for, and so does not know."""

    def ineffective_options(self) -> Iterator[str]:
        """One line for each option that was set but would do nothing. Commands override it."""
        yield from ()


TRAINING_ONLY_FIELDS = frozenset({"lora", "memory", "checkpoints"})
"""Options of all stages that one has no use for which trains no model."""


class StageConfig(CommandConfig):
    """What every stage can be told. The stages' own configs sit beside their code, defaults are the paper's."""

    out: Path = Field(description="the directory this stage makes")
    seed: int = Field(0, ge=0, lt=2**32, description="everything random follows from it")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")
    track: tuple[TrackerName, ...] = Field((), description="show the metrics in tensorboard, trackio or wandb too")
    resume: bool = Field(True, description="go on where the directory stands; --no-resume starts it afresh")
    checkpoints: int = Field(
        2,
        ge=1,
        description="how many checkpoints are kept while the stage runs; of a damaged one the one before it serves",
    )
    lora: int = Field(
        0, ge=0, description="rank of low-rank adapters, trained instead of the weights; 0 trains all weights"
    )
    memory: tuple[Literal["bf16", "checkpointing", "adam8bit", "offload"], ...] = Field(
        (), description="what is done to need less memory: bf16, checkpointing, adam8bit, offload, or several"
    )


_ConfigT = TypeVar("_ConfigT", bound=CommandConfig)

_PRESET_FOLDER = resources.files("instructgpt") / "presets"


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in _PRESET_FOLDER.iterdir() if entry.name.endswith(".yaml")
    )


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which nothing is said twice: of two equal keys, plain YAML would drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping with every key once."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        BadInput: it is not YAML, or not a mapping, or says something twice.
    """
    try:
        values = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML ({one_line(error)})") from error
    return _as_mapping(values, source)


def _as_mapping(values: Any, source: str) -> dict[str, Any]:
    """Options by name, with underscores; nothing is an empty mapping.

    Raises:
        BadInput: it is something else.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected 'option: value' lines, found {type(values).__name__}")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def read_preset(name: str) -> str:
    """The YAML of a preset.

    Raises:
        BadInput: there is no such preset.
    """
    if name not in preset_names():
        raise InputError(f"no preset '{name}'; there are: {', '.join(preset_names())}")
    return (_PRESET_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def section_for(config_class: type[CommandConfig], text: str, source: str) -> dict[str, Any]:
    """What a preset or a configuration file says to one stage.

    A file is either the options of one stage, or has a section for each of several. The `run` command reads all of it:
    its own section, and the others as what it tells the stages.

    Raises:
        BadInput: it is not YAML, or says nothing to this stage.
    """
    values = _parse_yaml(text, source)
    if not any(isinstance(value, dict) for value in values.values()):
        return values
    sections = {name: _as_mapping(section, f"{source}, section {name}") for name, section in values.items()}
    if "stages" in config_class.model_fields:
        return sections.pop(config_class.stage, {}) | {"stages": sections}
    if config_class.stage not in sections:
        raise InputError(f"{source}: has no section {config_class.stage}; its sections are {', '.join(sections)}")
    return sections[config_class.stage]


def presets_with_section(config_class: type[CommandConfig]) -> list[str]:
    """Names of the presets that say something to a stage."""
    return [name for name in preset_names() if config_class.stage in _parse_yaml(read_preset(name), f"preset {name}")]


def _deep_merge(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Options from layers of them, the later winning: option by option, in each section too."""
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            base = values.get(name)
            values[name] = _deep_merge((base, value)) if isinstance(value, dict) and isinstance(base, dict) else value
    return values


def make_config(
    config_class: type[_ConfigT], *layers: Mapping[str, Any], preset: Mapping[str, Any] | None = None, source: str = ""
) -> _ConfigT:
    """A config from layers of options, the later winning.

    Args:
        kind: what is made; layers: what somebody said.
        preset: lies below them. It speaks to many commands, so some of it may be without effect on this one.
        where: whose options they are, for complaints.

    Raises:
        BadInput: an option is unknown, missing, of the wrong kind, or inert.
    """
    settings, source = _deep_merge(layers), source or config_class.stage
    values = _deep_merge((preset or {}, settings))
    for name in values:
        if name not in config_class.model_fields or name in config_class.excluded_fields:
            raise InputError(
                f"{source}: unknown option '{name}'{did_you_mean(name, config_class.model_fields.keys() - config_class.excluded_fields)}"
            )
    try:
        config = config_class.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {_format_option_error(error)}") from error
    for message in config_class.model_construct(set(settings), **dict(config)).ineffective_options():
        raise InputError(f"{source}: {message}")
    return config


def did_you_mean(misspelled: str, valid_names: Iterable[str]) -> str:
    """The end of a complaint about a word that does not exist: the nearest that does, where one is near."""
    normalized = {name.strip("-").replace("-", "_"): name for name in valid_names}
    matches = difflib.get_close_matches(misspelled.strip("-").replace("-", "_"), list(normalized), n=1)
    return f", did you mean '{normalized[matches[0]]}'?" if matches else ""


def _format_option_error(error: ValidationError) -> str:
    """The first complaint about a set of options, in the words of the command line."""
    first = error.errors(include_url=False)[0]
    flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
    if first["type"] == "missing":
        return f"{flag} is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{flag} {first['input']}: {message}" if flag else message
