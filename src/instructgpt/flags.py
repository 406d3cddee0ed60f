"""Flags generated from a command's config: parser, help grouped by subject, suggestions for unknown flags."""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from instructgpt.commands import Command
from instructgpt.config import CommandConfig, presets_with_section, suggest_option
from instructgpt.errors import InputError

OPTION_GROUPS = {
    "models": """checkpoint base policy reward reward_weights reward_base group_aggregation reference value_init model
        models latest tokenizer""",
    "data": """trl_config trainer gpus data corpus demonstrations rankings pretraining mix prompts
        max_prompt_tokens completions max_prompts max_completions
        validation validation_interval test gold archive requests user_feedback format to source prompt_field questions
        rating_max labeling_config shots subsets keep_empty files transcripts add skip_bad""",
    "filters and splits": """split share forbidden forbidden_share prefix cap group salt personal detectors
        max_characters use_cases use_case
        labeler since until use people""",
    "architecture": "vocabulary width layers heads context copy_init window",
    "optimization": """optimizer muon_lr beta loss tokens epochs batch lr value_lr warmup weight_decay dropout
        learn l2 keep ema folds groups group_shrinkage adam_eps max_grad_norm""",
    "PPO": "episodes minibatch kl_coef clip value_clip lam eos_penalty score_normalization score_clip",
    "alarms": "kl_alarm min_entropy parity_tolerance parity_rms_tolerance",
    "PPO-ptx": "ptx_coef ptx_ratio ptx_reduction",
    "sampling": "n max_tokens temperature top_p stop",
    "evaluation": """names harness include_path limit judge judge_model judge_key judge_reads judge_max_tokens
        judge_temperature judges scorer detector baseline""",
    "small world": """words demonstration_prompts ranking_prompts ppo_prompts refusals labelers labeler_noise
        through_site baselines overoptimization""",
    "rounds": "rounds round_reward round_policy one_round_control",
    "site": """site database public_url host port key second_factor end_second_factor endpoint endpoint_models
        retention_days""",
    "hub": "directory repo license base_model results private",
    "serving": """action url system upstream keys store guard approved_by rate max_rows max_waiting timeout metrics
        owner allow_store days""",
    "labeling": """name kind purpose cohort screening priority overlap cohort_share cohort_overlap gold_share
        repeat_share heldout_share k_least k_most hourly currency open""",
    "cost": "labels prices watts",
    "sweep": """recipe vary seeds fresh_seeds select plot paper_figure jobs attempts stale_minutes retry
        dry_run""",
    "simulation": "tasks double_clicks walk_aways noise",
    "integrations": "allow_networks smtp mail_from openid_issuer openid_client openid_name openid_domains",
    "workload": "prompt_tokens completion_tokens records",
    "hardware": "ranks matmul bandwidth link network capacity",
    "memory and processes": "device memory auto_bf16 lora save_dtype microbatch_tokens cuda_graphs processes patience",
    "run": """run every once out seed resume checkpoints checkpoint_minutes keep_state save_every save_limit
        track language preset config shell""",
}
"""Options by subject, in the order of the help. A name has the same subject in every command."""
_OTHER_OPTIONS = "other options"
_GROUP_TITLES = {name: title for title, names in OPTION_GROUPS.items() for name in names.split()}

_MODEL_OPTIONS = ("base", "policy", "reward", "reference", "model", "models")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Show a list option as `--data FILE ...`; argparse repeats the placeholder, which may be long."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "+":
            return f"{action.metavar or default_metavar} ..."
        return super()._format_args(action, default_metavar)


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises one-line errors, suggests the nearest flag, and accepts no abbreviated flags."""

    def __init__(self, command: str, purpose: str, *, add_help: bool = True) -> None:
        description = f"{purpose[0].upper()}{purpose[1:]}."
        super().__init__(
            prog=f"instructgpt {command}",
            description=description,
            allow_abbrev=False,
            add_help=add_help,
            formatter_class=_HelpFormatter,
        )
        self.command = command
        self.required_usage: list[str] = []
        """Required options as the usage line shows them."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.command}: {message}; see '{self.prog} --help'")

    def format_usage(self) -> str:
        return f"usage: {' '.join([self.prog, *self.required_usage, '[options]'])}\n"

    def format_help(self) -> str:
        _, _, after_usage = super().format_help().partition("\n\n")  # argparse lists all flags in its usage
        return f"{self.format_usage()}\n{after_usage}"

    def parse_partial(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the known options, wherever they stand, and the remaining arguments."""
        namespace, remaining = self.parse_known_args(argv)
        return vars(namespace), remaining

    def flag_names(self) -> str:
        return ", ".join(name for name in self._option_string_actions if name.startswith("--"))

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments. Raise InputError, with the nearest flag, for an unknown one."""
        namespace, unknown_arguments = self.parse_known_args(argv)
        for argument in unknown_arguments:
            name = argument.partition("=")[0]
            if name.startswith("-"):
                self.error(f"unknown option '{name}'{suggest_option(name, self._option_string_actions)}")
            self.error(f"unexpected argument '{argument}'")
        return namespace


def build_parser(command: Command) -> CommandParser:
    """Return the parser of a command, with --preset and --config."""
    parser = CommandParser(command.name, command.purpose)
    add_flags(parser, command.config_class, command.positional)
    return parser


def add_flags(
    parser: CommandParser,
    config: type[CommandConfig],
    positional: str | None = None,
    exclude: str | None = None,
    *,
    layers: bool = True,
) -> None:
    """Add one flag per config field, grouped by subject, required ones first; with `layers` --preset and --config too.

    Values stay text; the config parses them, as for YAML and presets.
    """
    excluded = {exclude, *config.excluded_fields}
    fields = {name: field for name, field in config.model_fields.items() if name not in excluded and has_flag(field)}
    titles = [*OPTION_GROUPS, _OTHER_OPTIONS]
    groups: dict[str, argparse._ArgumentGroup] = {}
    order = sorted(
        fields,
        key=lambda name: (titles.index(group_title(name)), not fields[name].is_required(), list(fields).index(name)),
    )
    for name in order:
        field, title = fields[name], group_title(name)
        options: dict[str, Any] = {"help": _help_text(field), "default": argparse.SUPPRESS}
        annotation = _unwrap_optional(field.annotation)
        if annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = metavar(name, field)
        if get_origin(annotation) is tuple:
            options["nargs"] = "+"
            if name != positional:
                options["action"] = "extend"  # a repeated flag adds to the list
        if name == positional:
            repeated, single = ("+", None) if field.is_required() else ("*", "?")
            options |= {"nargs": repeated if "nargs" in options else single, "metavar": name.upper()}
            action = parser.add_argument(name, **options)
        else:
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            short_flags = [f"-{name}"] if len(name) == 1 else []
            action = groups[title].add_argument(*short_flags, _flag(name), dest=name, **options)
        if field.is_required():
            parser.required_usage.append(_usage_text(action))
    if layers:
        _add_layer_flags(groups.get("run") or parser.add_argument_group("run"), config)


def _add_layer_flags(group: argparse._ArgumentGroup, config: type[CommandConfig]) -> None:
    if presets := presets_with_section(config):
        group.add_argument(
            "--preset", metavar="|".join(presets), default=argparse.SUPPRESS, help="options from a preset"
        )
    group.add_argument(
        "--config",
        metavar="FILE.yaml",
        type=Path,
        default=argparse.SUPPRESS,
        help="options from a file; flags override it",
    )


def group_title(name: str) -> str:
    """Return the subject of an option, as the help shows it."""
    return _GROUP_TITLES.get(name, _OTHER_OPTIONS)


def has_flag(field: FieldInfo) -> bool:
    """Return whether a field has a flag; sections can only be set in a file."""
    annotation = _unwrap_optional(field.annotation)
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return not is_section and get_origin(annotation) is not dict


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the values that a field (or each of its values) may have, or () if there are many."""
    annotation = _unwrap_optional(field.annotation)
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def metavar(name: str, field: FieldInfo) -> str:
    """Return the placeholder of a flag's value: its choices, its type, or what the path or the text names."""
    if values := choices(field):
        return "|".join(values)
    if isinstance(field.json_schema_extra, dict) and "metavar" in field.json_schema_extra:
        return str(field.json_schema_extra["metavar"])
    if named := re.search(r"\bNAME=([A-Z]{3,})\b", field.description or ""):
        return f"[NAME=]{named[1]}"
    annotation = _unwrap_optional(field.annotation)
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    if annotation in (int, float):
        return "N" if annotation is int else "X"
    if name in _MODEL_OPTIONS:
        return "MODEL"
    if annotation is Path:
        place = re.search(r"\b(directory|folder|reward model|site)\b|\bfile\b|JSON|\.jsonl", field.description or "")
        return "DIR" if place and place[1] else "FILE"
    return "TEXT"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _usage_text(action: argparse.Action) -> str:
    value = "" if action.metavar is None else str(action.metavar)
    value = f"{value} ..." if action.nargs == "+" else value
    return f"{action.option_strings[-1]} {value}" if action.option_strings else value


def _unwrap_optional(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _help_text(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    if field.is_required():
        return f"{text} (required)"
    default = field.get_default()
    return text if default is None or default == () or isinstance(default, bool) else f"{text} (default {default})"
