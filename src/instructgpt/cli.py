"""The `instructgpt` command: one sub-command a stage. Help is made from the configs; errors are one line.

Exit codes: 0 done, 1 failed or stopped, 2 bad input or usage. Nothing heavy is imported before a command is known to exist.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgpt import __version__
from instructgpt.config import (
    CommandConfig,
    StageConfig,
    did_you_mean,
    make_config,
    presets_with_section,
    read_preset,
    section_for,
)
from instructgpt.errors import InputError, RunError, is_out_of_memory, one_line
from instructgpt.flags import CommandParser, add_flags


@dataclass(frozen=True, slots=True)
class Command:
    """One sub-command: where its config and its function live, and what it is for."""

    name: str
    module: str
    config: str
    function: str
    purpose: str
    positional: str | None = None
    wraps: tuple[str, ...] = ()
    """Commands whose whole command line may follow this one's name; they are not run, their config is told to it as `planned`."""


COMMANDS = (
    Command("run", "instructgpt.pipeline", "RunConfig", "main", "the whole paper with simulated labelers"),
    Command("pretrain", "instructgpt.train.pretrain", "PretrainConfig", "main", "a small base model from scratch"),
    Command("sft", "instructgpt.train.sft", "SFTConfig", "main", "supervised fine-tuning on demonstrations"),
    Command("reward", "instructgpt.train.reward", "RewardConfig", "main", "a reward model from rankings"),
    Command(
        "ppo", "instructgpt.train.ppo", "PPOConfig", "main", "PPO against the reward model; PPO-ptx with --pretraining"
    ),
    Command("sample", "instructgpt.sampling.cli", "SampleConfig", "sample_completions", "completions of prompts"),
    Command(
        "score",
        "instructgpt.sampling.cli",
        "ScoreConfig",
        "score_completions",
        "adds the reward model's score to completions",
    ),
    Command("report", "instructgpt.report.cli", "ReportConfig", "main", "draw the report of a run directory", "run"),
    Command(
        "evaluate",
        "instructgpt.evaluate.cli",
        "EvaluateConfig",
        "main",
        "the paper's evaluations of any models",
        "names",
    ),
    Command(
        "judge toxicity",
        "instructgpt.evaluate.toxicity.classifier",
        "ToxicityConfig",
        "main",
        "a toxicity scorer from scored texts",
    ),
    Command(
        "plan",
        "instructgpt.plan.cli",
        "PlanConfig",
        "main",
        "memory and time of a stage, before it starts or of one that ran",
        "run",
        wraps=("pretrain", "sft", "reward", "ppo"),
    ),
    Command(
        "judge truth",
        "instructgpt.evaluate.judges.truthfulqa_judge",
        "JudgeConfig",
        "train_truth",
        "a judge of whether answers are true",
    ),
    Command(
        "judge info",
        "instructgpt.evaluate.judges.truthfulqa_judge",
        "JudgeConfig",
        "train_info",
        "a judge of whether answers say anything",
    ),
    Command(
        "doctor", "instructgpt.doctor.cli", "DoctorConfig", "main", "what is wrong with a run, and what to do", "run"
    ),
    Command(
        "watch",
        "instructgpt.watch",
        "WatchConfig",
        "main",
        "a run while it goes: progress, curves, samples, alarms",
        "run",
    ),
    Command(
        "data import", "instructgpt.data.cli", "ImportConfig", "import_datasets", "other formats into ours and back"
    ),
    Command(
        "data clean",
        "instructgpt.data.cli",
        "CleanConfig",
        "clean_datasets",
        "drop duplicates, cap users, filter personal data",
    ),
    Command(
        "data split", "instructgpt.data.cli", "SplitConfig", "split_datasets", "train, validation and test by user"
    ),
    Command(
        "data stats",
        "instructgpt.data.cli",
        "StatsConfig",
        "print_dataset_stats",
        "what a file holds, in the paper's tables",
    ),
    Command(
        "label init",
        "instructgpt.label.cli.serve",
        "InitConfig",
        "init",
        "make a labelers' site; prints the link to set it up",
    ),
    Command("label serve", "instructgpt.label.cli.serve", "ServeConfig", "serve", "serve a labelers' site"),
    Command(
        "label import",
        "instructgpt.label.cli.data",
        "LabelImportConfig",
        "import_into_site",
        "what others wrote into a site",
    ),
    Command(
        "label export",
        "instructgpt.label.cli.data",
        "LabelExportConfig",
        "export_from_site",
        "labelers' work out of a site",
    ),
    Command(
        "label backup",
        "instructgpt.label.cli.data",
        "LabelBackupConfig",
        "backup_site",
        "copy a site's database while it runs",
    ),
    Command(
        "label simulate",
        "instructgpt.label.simulation.labelers",
        "SimulateConfig",
        "main",
        "simulated labelers at work on a running site",
    ),
    Command(
        "label batch",
        "instructgpt.label.cli.batch",
        "BatchConfig",
        "main",
        "a batch on a site from files, or from models",
    ),
)


_DISTRIBUTED_COMMANDS = ("pretrain", "sft", "reward", "ppo")
"""Commands that several ranks can do together."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: run, and turn every failure into one line and an exit code. Being asked to end is like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    exit_code = run_command(sys.argv[1:] if argv is None else argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read along has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)


def run_command(argv: Sequence[str]) -> int:
    """Run one command line. Returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    interrupt_message = "stopped; nothing was written"
    command = None
    try:
        command, config = parse([argument for argument in argv if argument != "--debug"])
        if "TORCHELASTIC_RUN_ID" in os.environ and command.name not in _DISTRIBUTED_COMMANDS:
            raise InputError(
                f"{command.name}: torchrun starts {', '.join(_DISTRIBUTED_COMMANDS)}; start this command by itself"
            )
        if isinstance(config, StageConfig):
            interrupt_message = "stopped; the same command goes on from the last checkpoint"
        getattr(importlib.import_module(command.module), command.function)(config)
    except SystemExit as system_exit:  # --help and --version
        return int(system_exit.code or 0)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print(f"instructgpt: {interrupt_message}", file=sys.stderr)
        return 1
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if command is None and os.environ.get("LOCAL_RANK", "0") != "0":
            return 2  # all ranks read the same command line: one of them says what is wrong with it
        print(f"instructgpt: {_format_error(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _format_error(error: Exception) -> str:
    """What went wrong, in one line."""
    message = one_line(error)
    if isinstance(error, InputError | RunError):
        return message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror[0].lower()}{error.strerror[1:]}; mend that and give the same command again"
    if is_out_of_memory(error):
        return "out of memory; a smaller model, shorter texts or fewer --processes need less"
    return f"failed unexpectedly, {type(error).__name__}: {message} (--debug shows where)"


def parse(argv: Sequence[str]) -> tuple[Command, Any]:
    """The command and its config, without running it.

    Raises:
        BadInput: the command line is wrong.
        SystemExit: help or the version was asked for and has been printed.
    """
    for argument in argv:
        if argument != argument.encode("utf-8", "replace").decode("utf-8"):
            raise InputError(f"{argument!a} is not UTF-8; rename the file")
    command, remaining = _resolve_command(argv)
    if remaining and remaining[0] in command.wraps:
        return command, _parse_wrapped_command(command, remaining)
    config_class = getattr(importlib.import_module(command.module), command.config)
    parser = CommandParser(command.name, command.purpose)
    add_flags(parser, config_class, command.positional)
    return command, _build_config(parser, config_class, remaining)


def _parse_wrapped_command(command: Command, argv: Sequence[str]) -> Any:
    """The config of a command that stands before another's command line, with the other's config in it.

    Raises:
        BadInput: the command line is wrong.
        SystemExit: help was asked for and has been printed.
    """
    wrapped, remaining = _resolve_command(argv)
    config_class, wrapped_config_class = (
        getattr(importlib.import_module(entry.module), entry.config) for entry in (command, wrapped)
    )
    parser = CommandParser(f"{command.name} {wrapped.name}", command.purpose, add_help=False)
    add_flags(parser, config_class, exclude=command.positional)
    options, remaining = parser.parse_partial(remaining)
    parser = CommandParser(
        f"{command.name} {wrapped.name}", f"{command.purpose}; options of '{command.name}': {parser.flag_names()}"
    )
    add_flags(parser, wrapped_config_class)
    config = _build_config(
        parser, wrapped_config_class, remaining, {"out": Path(wrapped.name)}
    )  # where it would go changes nothing
    return make_config(config_class, options, {"planned": config})


def _build_config(
    parser: CommandParser,
    config_class: type[CommandConfig],
    argv: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """The config that a command line, its --preset and its --config make. `below`: what holds where none of them says anything."""
    if presets := presets_with_section(config_class):
        parser.add_argument("--preset", metavar="NAME", help=f"options from a preset: {', '.join(presets)}")
    parser.add_argument("--config", metavar="FILE.yaml", type=Path, help="options from a file; flags win over it")
    flags = vars(parser.parse(argv))
    preset, config_file = flags.pop("preset", None), flags.pop("config", None)
    preset_options = section_for(config_class, read_preset(preset), f"preset {preset}") if preset else {}
    file_options = (
        section_for(config_class, _read_config_file(config_file), f"--config {config_file}") if config_file else {}
    )
    return make_config(config_class, file_options, flags, preset={**(defaults or {}), **preset_options})


def _read_config_file(file: Path) -> str:
    """The text of a configuration file. Raises BadInput where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _resolve_command(argv: Sequence[str]) -> tuple[Command, list[str]]:
    """The command a line begins with, and what follows it.

    Raises:
        BadInput: there is no such command.
        SystemExit: help or the version was asked for and has been printed.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        raise SystemExit(0)
    if argv[0] == "--version":
        print(f"instructgpt {__version__}")
        raise SystemExit(0)
    for word_count in (2, 1):
        for command in COMMANDS:
            if command.name == " ".join(argv[:word_count]):
                return command, list(argv[word_count:])
    subcommands = [command.name for command in COMMANDS if command.name.startswith(f"{argv[0]} ")]
    names = subcommands or [command.name for command in COMMANDS]
    name = " ".join(argv[: 2 if subcommands else 1])
    raise InputError(f"no command '{name}'" + (did_you_mean(name, names) or f"; there are: {', '.join(names)}"))


def _usage() -> str:
    """All commands, a line each."""
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.purpose}" for command in COMMANDS]
    title = "The InstructGPT pipeline: demonstrations and rankings in, an aligned model and its evaluation out."
    return "\n".join(
        [
            title,
            "",
            "usage: instructgpt COMMAND [--preset NAME] [--config FILE.yaml] [options]",
            "",
            *lines,
            "",
            "instructgpt COMMAND --help",
        ]
    )


if __name__ == "__main__":
    main()
