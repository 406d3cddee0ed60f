"""The `instructgpt` command: one sub-command per stage, flags generated from the stage's config, one-line errors.

Exit codes: 0 success, 1 failure or interruption, 2 bad input or usage.
Options are read before the command's module is imported, so that help and mistakes never load torch.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from instructgpt import __version__
from instructgpt.commands import COMMANDS, Command
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

_DISTRIBUTED_COMMANDS = ("pretrain", "sft", "reward", "ppo")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit. SIGTERM is handled as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal encoding without a character must not end the command
    exit_code = run_command(sys.argv[1:] if argv is None else argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does; the interpreter flushes again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)


def run_command(argv: Sequence[str]) -> int:
    """Run one command line and return the exit code. Every failure is printed as one line on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    interrupt_message = "interrupted; nothing was written"
    command = None
    try:
        command, config = parse([argument for argument in argv if argument != "--debug"])
        if "TORCHELASTIC_RUN_ID" in os.environ and command.name not in _DISTRIBUTED_COMMANDS:
            raise InputError(f"{command.name}: run without torchrun, which is for {', '.join(_DISTRIBUTED_COMMANDS)}")
        if isinstance(config, StageConfig):
            interrupt_message = "interrupted; run the same command to resume from the last checkpoint"
        _print_loading(command)
        command.resolve_function()(config)
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
            return 2  # under torchrun all ranks parse the same command line; only local rank 0 prints its error
        print(f"instructgpt: {_format_error(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _print_loading(command: Command) -> None:
    """Print a line before the imports that take seconds; one rank of a machine does so."""
    if command.loads_torch and "torch" not in sys.modules and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{command.name}: loading PyTorch", flush=True)


def _format_error(error: Exception) -> str:
    message = one_line(error)
    if isinstance(error, InputError | RunError):
        return message
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[0].lower() + error.strerror[1:]
        return f"{error.filename or 'a file'}: {reason}; fix this and run the same command again"
    if is_out_of_memory(error):
        return "out of memory; try a smaller model, shorter sequences or fewer --processes"
    return f"failed unexpectedly, {type(error).__name__}: {message} (--debug prints the traceback)"


def parse(argv: Sequence[str]) -> tuple[Command, Any]:
    """Return the command and its config without running it.

    Raises:
        InputError: the command line is wrong.
        SystemExit: help or the version was printed.
    """
    for argument in argv:
        if argument != argument.encode("utf-8", "replace").decode("utf-8"):
            raise InputError(f"{argument!a} is not UTF-8; rename the file")
    command, remaining = _resolve_command(argv)
    if remaining and remaining[0] in command.wraps:
        return command, _parse_wrapped_command(command, remaining)
    config_class = command.config_class
    parser = CommandParser(command.name, command.purpose)
    add_flags(parser, config_class, command.positional)
    return command, _build_config(parser, config_class, remaining)


def _parse_wrapped_command(command: Command, argv: Sequence[str]) -> Any:
    """Parse `plan ppo --lr 1e-5 ...`: options of both commands may stand in any order."""
    wrapped, remaining = _resolve_command(argv)
    config_class, wrapped_class = (entry.config_class for entry in (command, wrapped))
    name = f"{command.name} {wrapped.name}"
    parser = CommandParser(name, command.purpose, add_help=False)  # --help is left to the wrapped command's parser
    add_flags(parser, config_class, exclude=command.positional)
    options, remaining = parser.parse_partial(remaining)
    parser = CommandParser(name, f"{command.purpose}; options of '{command.name}': {parser.flag_names()}")
    add_flags(parser, wrapped_class)
    # The wrapped command does not run, so any --out will do.
    config = _build_config(parser, wrapped_class, remaining, {"out": Path(wrapped.name)})
    return make_config(config_class, options, {"planned": config})


def _build_config(
    parser: CommandParser,
    config_class: type[CommandConfig],
    argv: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Merge the layers of a command line: `defaults`, then --preset, then --config, then the flags."""
    if presets := presets_with_section(config_class):
        parser.add_argument("--preset", metavar="NAME", help=f"options from a preset: {', '.join(presets)}")
    parser.add_argument("--config", metavar="FILE.yaml", type=Path, help="options from a file; flags override it")
    flags = vars(parser.parse(argv))
    preset, file = flags.pop("preset", None), flags.pop("config", None)
    preset_options = section_for(config_class, read_preset(preset), f"preset {preset}") if preset else {}
    file_options = section_for(config_class, _read_config_file(file), f"--config {file}") if file else {}
    return make_config(config_class, file_options, flags, preset={**(defaults or {}), **preset_options})


def _read_config_file(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _resolve_command(argv: Sequence[str]) -> tuple[Command, list[str]]:
    """Return the command that a line starts with and the remaining arguments; print help or the version and exit."""
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
    raise InputError(f"no command '{name}'" + (did_you_mean(name, names) or f"; available: {', '.join(names)}"))


def _usage() -> str:
    width = max(len(command.name) for command in COMMANDS)
    lines = "\n".join(f"  {command.name:<{width}}  {command.purpose}" for command in COMMANDS)
    return f"""The InstructGPT pipeline: demonstrations and rankings in, an aligned model and its evaluation out.

usage: instructgpt COMMAND [--preset NAME] [--config FILE.yaml] [options]

{lines}

instructgpt COMMAND --help"""


# --- flags -----------------------------------------------------------------------------------------------------------


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises one-line errors, suggests the nearest flag, and accepts no abbreviated flags."""

    def __init__(self, command: str, purpose: str, *, add_help: bool = True) -> None:
        description = f"{purpose[0].upper()}{purpose[1:]}."
        super().__init__(prog=f"instructgpt {command}", description=description, allow_abbrev=False, add_help=add_help)
        self.command = command

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.command}: {message}; see '{self.prog} --help'")

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
                self.error(f"unknown option '{name}'{did_you_mean(name, self._option_string_actions)}")
            self.error(f"unexpected argument '{argument}'")
        return namespace


def add_flags(
    parser: argparse.ArgumentParser, config: type[BaseModel], positional: str | None = None, exclude: str | None = None
) -> None:
    """Add one flag per config field. Values stay text; the config parses them, as for YAML and presets."""
    excluded = {exclude, *getattr(config, "excluded_fields", ())}
    for name, field in config.model_fields.items():
        annotation = _unwrap_optional(field.annotation)
        is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if is_section or get_origin(annotation) is dict or name in excluded:
            continue  # sections can only be set in a file
        options: dict[str, Any] = {"help": _help_text(field), "default": argparse.SUPPRESS}
        if annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(annotation) is tuple:
            item_type = get_args(annotation)[0]
            choices = get_args(item_type)  # of a Literal
            options["nargs"] = "+"
            options["metavar"] = "|".join(choices) if choices else "N" if item_type is int else "FILE"
            if name != positional:
                options["action"] = "extend"  # a repeated flag adds to the list
        elif get_origin(annotation) is Literal:
            options["metavar"] = "|".join(map(str, get_args(annotation)))
        else:
            text_metavar = "DIR" if name in ("out", "reward") else "TEXT" if annotation is str else "PATH"
            options["metavar"] = {int: "N", float: "X"}.get(annotation, text_metavar)
        if name == positional:
            repeated, single = ("+", None) if field.is_required() else ("*", "?")
            options |= {"nargs": repeated if "nargs" in options else single, "metavar": name.upper()}
            parser.add_argument(name, **options)
        else:
            short_flags = [f"-{name}"] if len(name) == 1 else []
            parser.add_argument(*short_flags, "--" + name.replace("_", "-"), dest=name, **options)


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


if __name__ == "__main__":
    main()
