"""Configuration: one frozen pydantic model per command, merged from a preset, a YAML file and flags (later wins).

An option that does not exist, does not parse, or would have no effect is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from instructgpt.errors import InputError, one_line
from instructgpt.option_names import FIXED_OPTIONS, FOREIGN_OPTIONS

TrackerName = Literal["tensorboard", "trackio", "wandb"]


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(annotation) is tuple for annotation in (field.annotation, *get_args(field.annotation)))


class CommandConfig(BaseModel):
    """Base of every command's options. Frozen; unknown options are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, allow_inf_nan=False)
    stage: ClassVar[str]
    excluded_fields: ClassVar[frozenset[str]] = frozenset()
    """Inherited options that this command does not accept."""
    interrupt_message: ClassVar[str] = "interrupted; nothing was written"

    @model_validator(mode="before")
    @classmethod
    def _accept_single_value_for_list(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            name: (value,)
            if name in fields and _is_list(fields[name]) and isinstance(value, str | int | Path)
            else value
            for name, value in values.items()
        }

    def ineffective_options(self) -> Iterator[str]:
        """Yield one message for each option that was set but would have no effect. Commands override it."""
        yield from ()

    def conflicting_options(self) -> Iterator[str]:
        """Yield one message for each set of options that cannot be used together."""
        yield from ()


class SamplingOptions(CommandConfig):
    """Options of commands that sample completions."""

    max_tokens: int = Field(256, ge=1, description="length at which a completion is cut off")
    temperature: float = Field(1.0, ge=0, description="1: the model's own distribution, 0: the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens with this total probability")
    stop: tuple[str, ...] = Field((), description="texts that end a completion, besides the end-of-text token")

    def sampling_arguments(self) -> dict[str, Any]:
        """Return the options as arguments of `sampling.completions.generate`."""
        return {name: getattr(self, name) for name in SamplingOptions.model_fields}

    def sampling_column(self, seed: int) -> dict[str, Any]:
        """Return the column `sampling` of completions; options that change nothing are left out."""
        column: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": seed}
        if self.top_p < 1:
            column["top_p"] = self.top_p
        return column | ({"stop": list(self.stop)} if self.stop else {})

    def ineffective_options(self) -> Iterator[str]:
        """Yield options that have no effect at temperature 0."""
        if self.temperature == 0:
            if getattr(self, "n", 1) > 1:
                yield "--n has no effect at --temperature 0, all completions of a prompt would be the same"
            if self.top_p < 1:
                yield f"--top-p {self.top_p} has no effect at --temperature 0, the likeliest token is always in it"
        if "" in self.stop:
            yield "--stop '' would end every completion at once"


CUDA_GRAPHS_HELP = "on CUDA, capture sampling steps as graphs; --no-cuda-graphs runs them one kernel after the other"
RANK_TIMEOUT_S = 600.0
"""How long ranks wait for one another by default."""
TRAINING_ONLY_FIELDS = frozenset(
    {"lora", "memory", "save_dtype", "checkpoints", "keep_state", "microbatch_tokens", "max_grad_norm"}
)
"""Excluded by stages that train no model."""


class StageConfig(CommandConfig):
    """Options of every stage. Configs are in `configs.py` of each part, which imports no torch."""

    interrupt_message: ClassVar[str] = "interrupted; run the same command to resume from the last checkpoint"
    length_option: ClassVar[str] = ""
    """The option that says how long the stage trains. A run can be extended by a larger value."""
    consists_of_stages: ClassVar[bool] = False
    """Whether the work is that of other stages with records of their own, which have its FLOPs."""

    out: Path = Field(description="output directory")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of all random numbers")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto uses a GPU if there is one")
    track: tuple[TrackerName, ...] = Field((), description="also log metrics to tensorboard, trackio or wandb")
    resume: bool = Field(True, description="resume from the last checkpoint in --out; --no-resume empties it first")
    checkpoints: int = Field(2, ge=1, description="checkpoints to keep; a corrupt one falls back to the previous one")
    checkpoint_minutes: float | None = Field(
        None,
        ge=0,
        description="minutes between checkpoints; default: 1, and more where writing takes over 5 % of the time",
    )
    keep_state: bool = Field(True, description="keep the final checkpoint, so that a finished run can be extended")
    lora: int = Field(0, ge=0, description="rank of LoRA adapters; 0 trains all weights")
    save_dtype: Literal["base", "float32", "bfloat16"] = Field(
        "base", description="type of the saved weights; base: that of the base model's files"
    )
    memory: tuple[Literal["bf16", "checkpointing", "4bit", "adam8bit", "offload"], ...] = Field(
        (), description="memory savings to apply: bf16, checkpointing, 4bit, adam8bit, offload, or several"
    )
    microbatch_tokens: int = Field(
        0,
        ge=0,
        description="tokens computed at once; never changes a result; 0: 2048 on a CPU, 65536 on a GPU, halved when "
        "memory runs out",
    )
    max_grad_norm: float = Field(1.0, ge=0, description="norm to which gradients are clipped; 0: no clipping")

    def conflicting_options(self) -> Iterator[str]:
        """Yield what 4-bit weights, which cannot be trained or sharded, do not go with."""
        if "4bit" not in self.memory:
            return
        if not self.lora:
            yield "--memory 4bit holds frozen weights in 4 bits, and without --lora all weights train; give --lora 16"
        if "offload" in self.memory:
            yield "--memory 4bit does not work with offload; drop one of them"
        if getattr(self, "processes", 1) > 1:
            yield "--memory 4bit works in one process; drop --processes, or 4bit"

    def extension_differences(self, before: int) -> Iterator[str]:  # noqa: ARG002
        """Yield what differs from a run of this length from its start in one extended from the length `before`."""
        yield "the learning rate follows the new length from here on, so the result is not that of one long run"


_ConfigT = TypeVar("_ConfigT", bound=CommandConfig)

_PRESET_FOLDER = resources.files("instructgpt") / "presets"


def preset_names() -> list[str]:
    names = [entry.name for entry in _PRESET_FOLDER.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


class _UniqueKeyLoader(yaml.SafeLoader):
    """Reject duplicate keys. PyYAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", node.start_mark)
        return super().construct_mapping(node, deep)


_YAML_TYPES = {list: "a list", str: "text", int: "a number", float: "a number", bool: "a yes or no"}


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the YAML of a configuration. Raise InputError if it is no valid YAML, repeats a key, or is no mapping."""
    try:
        values = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not valid YAML ({one_line(error)})") from error
    return _as_mapping(values, source)


def _as_mapping(values: Any, source: str) -> dict[str, Any]:
    """Return options by field name (`weight-decay` becomes `weight_decay`); an empty section is an empty mapping."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"{source}: expected 'option: value' lines, found {_YAML_TYPES.get(type(values), 'something else')}"
        )
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def read_preset(name: str, suitable: Sequence[str] = ()) -> str:
    """Return the YAML text of a preset. Raise InputError, naming the suitable ones, if there is no such preset."""
    if name not in preset_names():
        raise InputError(f"no preset '{name}'; available: {', '.join(suitable or preset_names())}")
    return (_PRESET_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def section_for(config_class: type[CommandConfig], text: str, source: str) -> dict[str, Any]:
    """Return the options of one stage from the YAML of a preset or a configuration file.

    The file holds either the options of one stage, or one section per stage. `run` reads all sections: its own one as
    its options, the others as the field `stages`.

    Raises:
        InputError: the text is not valid YAML, or has no section for this stage.
    """
    values = parse_yaml(text, source)
    if not any(isinstance(value, dict) for value in values.values()):
        return values
    sections = {name: _as_mapping(section, f"{source}, section {name}") for name, section in values.items()}
    if "stages" in config_class.model_fields:
        return sections.pop(config_class.stage, {}) | {"stages": sections}
    if config_class.stage not in sections:
        raise InputError(f"{source}: no section {config_class.stage}; sections found: {', '.join(sections)}")
    return sections[config_class.stage]


def presets_with_section(config_class: type[CommandConfig]) -> list[str]:
    """Return the presets that a command takes. A preset of a sweep is no recipe: it changes that of another."""
    sections = {name: parse_yaml(read_preset(name), f"preset {name}") for name in preset_names()}
    stage = config_class.stage
    return [name for name, parts in sections.items() if stage in parts and ("sweep" not in parts or stage == "sweep")]


def _deep_merge(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge option by option, also inside sections; later layers win."""
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            base = values.get(name)
            values[name] = _deep_merge((base, value)) if isinstance(value, dict) and isinstance(base, dict) else value
    return values


def make_config(
    config_class: type[_ConfigT], *layers: Mapping[str, Any], preset: Mapping[str, Any] | None = None, source: str = ""
) -> _ConfigT:
    """Build a config from layers of options; later layers win.

    Args:
        preset: lowest layer. A preset serves many commands, so its options may be ineffective here without an error.
        source: prefix of error messages, by default the stage.

    Raises:
        InputError: an option is unknown, missing, invalid, or has no effect.
    """
    settings, source = _deep_merge(layers), source or config_class.stage
    values = _deep_merge((preset or {}, settings))
    names = config_class.model_fields.keys() - config_class.excluded_fields
    for name in values:
        if name not in names:
            raise InputError(f"{source}: unknown option '{name}'{suggest_option(name, names)}")
    try:
        config = config_class.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {_format_option_error(error)}") from error
    # Only options set outside the preset count as set when looking for ineffective ones.
    explicit = config_class.model_construct(set(settings), **dict(iter(config)))
    for message in (*config.conflicting_options(), *explicit.ineffective_options()):
        raise InputError(f"{source}: {message}")
    return config


def did_you_mean(misspelled: str, valid_names: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the nearest valid name, or an empty string if none is near."""
    normalized = {name.strip("-").replace("-", "_"): name for name in valid_names}
    name = misspelled.strip("-").replace("-", "_")
    matches = difflib.get_close_matches(name, list(normalized), n=1)
    if not matches and len(name) > 1:
        matches = [candidate for candidate in normalized if candidate.startswith(name)]
    return f", did you mean '{normalized[matches[0]]}'?" if matches else ""


def suggest_option(typed_name: str, valid_names: Iterable[str]) -> str:
    """Return ", did you mean '--lr'?" for another library's or a misspelled name, and what differs from there."""
    valid_names = list(valid_names)
    name = typed_name.strip("-").replace("-", "_").lower()
    note = f" ({FIXED_OPTIONS[name]})" if name in FIXED_OPTIONS else ""
    normalized = {valid.strip("-").replace("-", "_"): valid for valid in valid_names}
    for candidate in FOREIGN_OPTIONS.get(name, "").split():
        if candidate in normalized:
            return f", did you mean '{normalized[candidate]}'?{note}"
    return note or did_you_mean(typed_name, valid_names)


def _format_option_error(error: ValidationError) -> str:
    """Format the first error of pydantic with the option's flag."""
    first = error.errors(include_url=False)[0]
    flag = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else ""
    if first["type"] == "missing":
        return f"{flag} is required"
    message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    return f"{flag} {_format_value(first['input'])}: {message}" if flag else message


def _format_value(value: Any) -> str:
    """Return a value of a flag or of YAML as a user would write it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_format_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return " ".join(map(_format_value, value))
    return "null" if value is None else str(value)
