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
from instructgpt.config import Options, StageConfig, did_you_mean, make_config, options_for, preset_text, presets_for
from instructgpt.errors import BadInput, RunFailed, in_one_line, is_out_of_memory
from instructgpt.flags import Parser, add_flags


@dataclass(frozen=True, slots=True)
class Command:
    """One sub-command: where its config and its function live, and what it is for."""

    name: str
    module: str
    config: str
    function: str
    purpose: str
    positional: str | None = None
    before: tuple[str, ...] = ()
    """Commands whose whole command line may follow this one's name; they are not run, their config is told to it as `planned`."""


COMMANDS = (
    Command("run", "instructgpt.pipeline", "RunConfig", "main", "the whole paper with simulated labelers"),
    Command("pretrain", "instructgpt.train.pretrain", "PretrainConfig", "main", "a small base model from scratch"),
    Command("sft", "instructgpt.train.sft", "SFTConfig", "main", "supervised fine-tuning on demonstrations"),
    Command("reward", "instructgpt.train.reward", "RewardConfig", "main", "a reward model from rankings"),
    Command("ppo", "instructgpt.train.ppo", "PPOConfig", "main", "PPO against the reward model; PPO-ptx with --pretraining"),
    Command("sample", "instructgpt.sampling.cli", "SampleConfig", "sample_completions", "completions of prompts"),
    Command("score", "instructgpt.sampling.cli", "ScoreConfig", "score_completions", "adds the reward model's score to completions"),
    Command("report", "instructgpt.report.cli", "ReportConfig", "main", "draw the report of a run directory", "run"),
    Command("evaluate", "instructgpt.evaluate.cli", "EvaluateConfig", "main", "the paper's evaluations of any models", "names"),
    Command("judge toxicity", "instructgpt.evaluate.toxicity.classifier", "ToxicityConfig", "main", "a toxicity scorer from scored texts"),
    Command(
        "plan",
        "instructgpt.plan.cli",
        "PlanConfig",
        "main",
        "memory and time of a stage, before it starts or of one that ran",
        "run",
        before=("pretrain", "sft", "reward", "ppo"),
    ),
    Command(
        "judge truth", "instructgpt.evaluate.judges.truthfulqa_judge", "JudgeConfig", "train_truth", "a judge of whether answers are true"
    ),
    Command(
        "judge info", "instructgpt.evaluate.judges.truthfulqa_judge", "JudgeConfig", "train_info", "a judge of whether answers say anything"
    ),
    Command("doctor", "instructgpt.doctor.cli", "DoctorConfig", "main", "what is wrong with a run, and what to do", "run"),
    Command("watch", "instructgpt.watch", "WatchConfig", "main", "a run while it goes: progress, curves, samples, alarms", "run"),
    Command("data import", "instructgpt.data.cli", "ImportConfig", "import_data", "other formats into ours and back"),
    Command("data clean", "instructgpt.data.cli", "CleanConfig", "clean", "drop duplicates, cap users, filter personal data"),
    Command("data split", "instructgpt.data.cli", "SplitConfig", "split", "train, validation and test by user"),
    Command("data stats", "instructgpt.data.cli", "StatsConfig", "stats", "what a file holds, in the paper's tables"),
    Command("label init", "instructgpt.label.cli.serve", "InitConfig", "init", "make a labelers' site; prints the link to set it up"),
    Command("label serve", "instructgpt.label.cli.serve", "ServeConfig", "serve", "serve a labelers' site"),
    Command("label import", "instructgpt.label.cli.data", "LabelImportConfig", "import_data", "what others wrote into a site"),
    Command("label export", "instructgpt.label.cli.data", "LabelExportConfig", "export_data", "labelers' work out of a site"),
    Command("label backup", "instructgpt.label.cli.data", "LabelBackupConfig", "backup", "copy a site's database while it runs"),
    Command(
        "label simulate", "instructgpt.label.simulation.labelers", "SimulateConfig", "main", "simulated labelers at work on a running site"
    ),
    Command("label batch", "instructgpt.label.cli.batch", "BatchConfig", "main", "a batch on a site from files, or from models"),
)


DIVIDED = ("pretrain", "sft", "reward", "ppo")
"""Commands that several ranks can do together."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: run, and turn every failure into one line and an exit code. Being asked to end is like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter stops nothing
    code = run(sys.argv[1:] if argv is None else argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read along has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run one command line. Returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stopped = "stopped; nothing was written"
    command = None
    try:
        command, config = parse([word for word in argv if word != "--debug"])
        if "TORCHELASTIC_RUN_ID" in os.environ and command.name not in DIVIDED:
            raise BadInput(f"{command.name}: torchrun starts {', '.join(DIVIDED)}; start this command by itself")
        if isinstance(config, StageConfig):
            stopped = "stopped; the same command goes on from the last checkpoint"
        getattr(importlib.import_module(command.module), command.function)(config)
    except SystemExit as ended:  # --help and --version
        return int(ended.code or 0)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print(f"instructgpt: {stopped}", file=sys.stderr)
        return 1
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if command is None and os.environ.get("LOCAL_RANK", "0") != "0":
            return 2  # all ranks read the same command line: one of them says what is wrong with it
        print(f"instructgpt: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    return 0


def one_line(error: Exception) -> str:
    """What went wrong, in one line."""
    said = in_one_line(error)
    if isinstance(error, BadInput | RunFailed):
        return said
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror[0].lower()}{error.strerror[1:]}; mend that and give the same command again"
    if is_out_of_memory(error):
        return "out of memory; a smaller model, shorter texts or fewer --processes need less"
    return f"failed unexpectedly, {type(error).__name__}: {said} (--debug shows where)"


def parse(argv: Sequence[str]) -> tuple[Command, Any]:
    """The command and its config, without running it.

    Raises:
        BadInput: the command line is wrong.
        SystemExit: help or the version was asked for and has been printed.
    """
    for word in argv:
        if word != word.encode("utf-8", "replace").decode("utf-8"):
            raise BadInput(f"{word!a} is not UTF-8; rename the file")
    command, rest = find(argv)
    if rest and rest[0] in command.before:
        return command, parse_before(command, rest)
    kind = getattr(importlib.import_module(command.module), command.config)
    parser = Parser(command.name, command.purpose)
    add_flags(parser, kind, command.positional)
    return command, config_from(parser, kind, rest)


def parse_before(command: Command, argv: Sequence[str]) -> Any:
    """The config of a command that stands before another's command line, with the other's config in it.

    Raises:
        BadInput: the command line is wrong.
        SystemExit: help was asked for and has been printed.
    """
    planned, rest = find(argv)
    own, other = (getattr(importlib.import_module(one.module), one.config) for one in (command, planned))
    parser = Parser(f"{command.name} {planned.name}", command.purpose, add_help=False)
    add_flags(parser, own, leave_out=command.positional)
    words, rest = parser.parse_known(rest)
    parser = Parser(f"{command.name} {planned.name}", f"{command.purpose}; options of '{command.name}': {parser.flags()}")
    add_flags(parser, other)
    config = config_from(parser, other, rest, {"out": Path(planned.name)})  # where it would go changes nothing
    return make_config(own, words, {"planned": config})


def config_from(parser: Parser, kind: type[Options], argv: Sequence[str], below: Mapping[str, Any] | None = None) -> Any:
    """The config that a command line, its --preset and its --config make. `below`: what holds where none of them says anything."""
    if names := presets_for(kind):
        parser.add_argument("--preset", metavar="NAME", help=f"options from a preset: {', '.join(names)}")
    parser.add_argument("--config", metavar="FILE.yaml", type=Path, help="options from a file; flags win over it")
    given = vars(parser.parse_all(argv))
    preset, file = given.pop("preset", None), given.pop("config", None)
    named = options_for(kind, preset_text(preset), f"preset {preset}") if preset else {}
    said = options_for(kind, read_config(file), f"--config {file}") if file else {}
    return make_config(kind, said, given, preset={**(below or {}), **named})


def read_config(file: Path) -> str:
    """The text of a configuration file. Raises BadInput where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def find(argv: Sequence[str]) -> tuple[Command, list[str]]:
    """The command a line begins with, and what follows it.

    Raises:
        BadInput: there is no such command.
        SystemExit: help or the version was asked for and has been printed.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        raise SystemExit(0)
    if argv[0] == "--version":
        print(f"instructgpt {__version__}")
        raise SystemExit(0)
    for words in (2, 1):
        for command in COMMANDS:
            if command.name == " ".join(argv[:words]):
                return command, list(argv[words:])
    below = [command.name for command in COMMANDS if command.name.startswith(f"{argv[0]} ")]
    names = below or [command.name for command in COMMANDS]
    said = " ".join(argv[: 2 if below else 1])
    raise BadInput(f"no command '{said}'" + (did_you_mean(said, names) or f"; there are: {', '.join(names)}"))


def overview() -> str:
    """All commands, a line each."""
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.purpose}" for command in COMMANDS]
    head = "The InstructGPT pipeline: demonstrations and rankings in, an aligned model and its evaluation out."
    return "\n".join(
        [
            head,
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
