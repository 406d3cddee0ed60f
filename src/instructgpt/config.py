"""What can be set: one frozen object a stage, filled from a preset, a YAML file and flags, the later winning.

An option that does not exist, does not parse or would have no effect is an error, never a silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from instructgpt.errors import BadInput


class Options(BaseModel):
    """What a command can be told. Frozen; what does not exist is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)
    stage: ClassVar[str]

    def inert(self) -> Iterator[str]:
        """One line for each option that was set but would do nothing. Commands override it."""
        yield from ()


class StageConfig(Options):
    """What every stage can be told. The stages' own configs sit beside their code, defaults are the paper's."""

    out: Path = Field(description="the directory this stage makes")
    seed: int = Field(0, ge=0, lt=2**32, description="everything random follows from it")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto takes a GPU when there is one")
    resume: bool = Field(True, description="go on where the directory stands; --no-resume starts it afresh")


C = TypeVar("C", bound=Options)

PRESET_FOLDER = resources.files("instructgpt") / "presets"


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESET_FOLDER.iterdir() if entry.name.endswith(".yaml"))


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        BadInput: it is not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    return mapping_of(values, where)


def mapping_of(values: Any, where: str) -> dict[str, Any]:
    """Options by name, with underscores; nothing is an empty mapping.

    Raises:
        BadInput: it is something else.
    """
    if not isinstance(values or {}, dict):
        raise BadInput(f"{where}: expected 'option: value' lines, found {type(values).__name__}")
    return {str(key).replace("-", "_"): value for key, value in (values or {}).items()}


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
        BadInput: it is not YAML, or not a mapping.
    """
    values = read_yaml(text, where)
    sections = {
        name: mapping_of(section, f"{where}, section {name}") for name, section in values.items() if isinstance(section, dict | None)
    }
    if not sections:
        return values
    own = sections.pop(kind.stage, {})
    return own | ({"stages": sections} if "stages" in kind.model_fields else {})


def make_config(kind: type[C], *layers: Mapping[str, Any]) -> C:
    """A config from layers of options, the later winning.

    Raises:
        BadInput: an option is unknown, missing, of the wrong kind, or inert.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values.update(layer)
    for name in values:
        if name not in kind.model_fields:
            near = difflib.get_close_matches(name, list(kind.model_fields), n=1)
            raise BadInput(f"{kind.stage}: unknown option '{name}'" + (f", did you mean '{near[0]}'?" if near else ""))
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{kind.stage}: {explain_option(error)}") from error
    for complaint in config.inert():
        raise BadInput(f"{kind.stage}: {complaint}")
    return config


def explain_option(error: ValidationError) -> str:
    """The first complaint about a set of options, in the words of the command line."""
    first = error.errors(include_url=False)[0]
    flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
    if first["type"] == "missing":
        return f"{flag} is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{flag} {first['input']}: {message}" if flag else message
