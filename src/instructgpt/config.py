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

from instructgpt.errors import BadInput, in_one_line

TrackerName = Literal["tensorboard", "trackio", "wandb"]


class Options(BaseModel):
    """What a command can be told. Frozen; what does not exist is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, allow_inf_nan=False)
    stage: ClassVar[str]
    lacks: ClassVar[frozenset[str]] = frozenset()
    """Options of all stages that this one has no use for, and so does not know."""

    def inert(self) -> Iterator[str]:
        """One line for each option that was set but would do nothing. Commands override it."""
        yield from ()


WITHOUT_TRAINING = frozenset({"lora", "memory", "checkpoints"})
"""Options of all stages that one has no use for which trains no model."""


class StageConfig(Options):
    """What every stage can be told. The stages' own configs sit beside their code, defaults are the paper's."""

    out: Path = Field(description="the directory this stage makes")
    seed: int = Field(0, ge=0, lt=2**32, description="everything random follows from it")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")
    track: tuple[TrackerName, ...] = Field((), description="show the metrics in tensorboard, trackio or wandb too")
    resume: bool = Field(True, description="go on where the directory stands; --no-resume starts it afresh")
    checkpoints: int = Field(
        2, ge=1, description="how many checkpoints are kept while the stage runs; of a damaged one the one before it serves"
    )
    lora: int = Field(0, ge=0, description="rank of low-rank adapters, trained instead of the weights; 0 trains all weights")
    memory: tuple[Literal["bf16", "checkpointing", "adam8bit", "offload"], ...] = Field(
        (), description="what is done to need less memory: bf16, checkpointing, adam8bit, offload, or several"
    )


C = TypeVar("C", bound=Options)

PRESET_FOLDER = resources.files("instructgpt") / "presets"


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESET_FOLDER.iterdir() if entry.name.endswith(".yaml"))


class Loader(yaml.SafeLoader):
    """YAML in which nothing is said twice: of two equal keys, plain YAML would drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping with every key once."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        BadInput: it is not YAML, or not a mapping, or says something twice.
    """
    try:
        values = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise BadInput(f"{where}: not valid YAML ({in_one_line(error)})") from error
    return mapping_of(values, where)


def mapping_of(values: Any, where: str) -> dict[str, Any]:
    """Options by name, with underscores; nothing is an empty mapping.

    Raises:
        BadInput: it is something else.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadInput(f"{where}: expected 'option: value' lines, found {type(values).__name__}")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def preset_text(name: str) -> str:
    """The YAML of a preset.

    Raises:
        BadInput: there is no such preset.
    """
    if name not in presets():
        raise BadInput(f"no preset '{name}'; there are: {', '.join(presets())}")
    return (PRESET_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def options_for(kind: type[Options], text: str, where: str) -> dict[str, Any]:
    """What a preset or a configuration file says to one stage.

    A file is either the options of one stage, or has a section for each of several. The `run` command reads all of it:
    its own section, and the others as what it tells the stages.

    Raises:
        BadInput: it is not YAML, or says nothing to this stage.
    """
    values = read_yaml(text, where)
    if not any(isinstance(value, dict) for value in values.values()):
        return values
    sections = {name: mapping_of(section, f"{where}, section {name}") for name, section in values.items()}
    if "stages" in kind.model_fields:
        return sections.pop(kind.stage, {}) | {"stages": sections}
    if kind.stage not in sections:
        raise BadInput(f"{where}: has no section {kind.stage}; its sections are {', '.join(sections)}")
    return sections[kind.stage]


def presets_for(kind: type[Options]) -> list[str]:
    """Names of the presets that say something to a stage."""
    return [name for name in presets() if kind.stage in read_yaml(preset_text(name), f"preset {name}")]


def layered(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Options from layers of them, the later winning: option by option, in each section too."""
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            below = values.get(name)
            values[name] = layered((below, value)) if isinstance(value, dict) and isinstance(below, dict) else value
    return values


def make_config(kind: type[C], *layers: Mapping[str, Any], preset: Mapping[str, Any] | None = None, where: str = "") -> C:
    """A config from layers of options, the later winning.

    Args:
        kind: what is made; layers: what somebody said.
        preset: lies below them. It speaks to many commands, so some of it may be without effect on this one.
        where: whose options they are, for complaints.

    Raises:
        BadInput: an option is unknown, missing, of the wrong kind, or inert.
    """
    said, where = layered(layers), where or kind.stage
    values = layered((preset or {}, said))
    for name in values:
        if name not in kind.model_fields or name in kind.lacks:
            raise BadInput(f"{where}: unknown option '{name}'{did_you_mean(name, kind.model_fields.keys() - kind.lacks)}")
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{where}: {explain_option(error)}") from error
    for complaint in kind.model_construct(set(said), **dict(config)).inert():
        raise BadInput(f"{where}: {complaint}")
    return config


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a complaint about a word that does not exist: the nearest that does, where one is near."""
    bare = {name.strip("-").replace("-", "_"): name for name in known}
    near = difflib.get_close_matches(word.strip("-").replace("-", "_"), list(bare), n=1)
    return f", did you mean '{bare[near[0]]}'?" if near else ""


def explain_option(error: ValidationError) -> str:
    """The first complaint about a set of options, in the words of the command line."""
    first = error.errors(include_url=False)[0]
    flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
    if first["type"] == "missing":
        return f"{flag} is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{flag} {first['input']}: {message}" if flag else message
