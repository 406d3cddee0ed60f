"""The `instructgpt` command: one sub-command per stage, flags generated from the stage's config, one-line errors.

Exit codes: 0 success, 1 failure or interruption, 2 bad input or usage.
Options are read before the command's module is imported, so that help and mistakes never load torch.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructgpt import __version__
from instructgpt.commands import COMMANDS, Command
from instructgpt.config import (
    CommandConfig,
    did_you_mean,
    make_config,
    presets_with_section,
    read_preset,
    section_for,
)
from instructgpt.errors import InputError, RunError, is_out_of_memory, one_line
from instructgpt.extras import describe_missing_packages, is_missing_package
from instructgpt.flags import CommandParser, add_flags, build_parser
from instructgpt.option_names import FOREIGN_COMMANDS

_DISTRIBUTED_COMMANDS = ("pretrain", "sft", "reward", "ppo", "dpo")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit. SIGTERM is handled as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal encoding without a character must not end the command
    exit_code = run_command(sys.argv[1:] if argv is None else argv)
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `head` does
            print(f"instructgpt: standard output cannot be written ({error.strerror})", file=sys.stderr)
            exit_code = exit_code or 1
        # the interpreter flushes again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)


def _open_closed_streams() -> None:
    """Open /dev/null for standard streams that the caller has closed (`>&-`).

    Otherwise the next file that is opened would become standard output, and prints would go into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def run_command(argv: Sequence[str]) -> int:
    """Run one command line and return the exit code. Every failure is printed as one line on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    interrupt_message = CommandConfig.interrupt_message
    command = None
    try:
        command, config = parse([argument for argument in argv if argument != "--debug"])
        if "TORCHELASTIC_RUN_ID" in os.environ and command.name not in _DISTRIBUTED_COMMANDS:
            raise InputError(f"{command.name}: run without torchrun, which is for {', '.join(_DISTRIBUTED_COMMANDS)}")
        if command.needs_torch and (problem := describe_missing_packages()):
            raise InputError(f"{command.name} {problem}")
        interrupt_message = config.interrupt_message
        _print_loading(command)
        command.resolve_function()(config)
    except SystemExit as system_exit:  # --help and --version
        return int(system_exit.code or 0)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        note = " (torchrun prints a traceback of its own)" if "TORCHELASTIC_RUN_ID" in os.environ else ""
        print(f"instructgpt: {interrupt_message}{note}", file=sys.stderr)
        return 1
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        if command is None and os.environ.get("LOCAL_RANK", "0") != "0":
            return 2  # under torchrun all ranks parse the same command line; only local rank 0 prints its error
        if command is not None and is_missing_package(error) and (problem := describe_missing_packages()):
            error = InputError(f"{command.name} {problem}")  # an option needs what the command itself does not
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
    return command, _build_config(build_parser(command), command.config_class, remaining)


def _parse_wrapped_command(command: Command, argv: Sequence[str]) -> Any:
    """Parse `plan ppo --lr 1e-5 ...`: options of both commands may stand in any order."""
    wrapped, remaining = _resolve_command(argv)
    config_class, wrapped_class = (entry.config_class for entry in (command, wrapped))
    name = f"{command.name} {wrapped.name}"
    parser = CommandParser(name, command.purpose, add_help=False)  # --help is left to the wrapped command's parser
    add_flags(parser, config_class, exclude=command.positional, layers=False)
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
    flags = vars(parser.parse(argv))
    preset, file = flags.pop("preset", None), flags.pop("config", None)
    preset_options = {}
    if preset:
        text = read_preset(preset, presets_with_section(config_class))
        preset_options = section_for(config_class, text, f"preset {preset}")
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
    subcommands = [command for command in COMMANDS if command.name.startswith(f"{argv[0]} ")]
    if subcommands and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        group = f"instructgpt {argv[0]} COMMAND"
        print(f"usage: {group} [options]\n\n{_list_commands(subcommands)}\n\n{group} --help")
        raise SystemExit(0)
    name = " ".join(argv[: 2 if subcommands else 1])
    raise InputError(f"no command '{name}'{_suggest_command(name, subcommands)}")


def _suggest_command(name: str, subcommands: Sequence[Command]) -> str:
    """Return the end of the error for an unknown command; `subcommands` are those of a group, or empty."""
    if not subcommands and (namesakes := [command for command in COMMANDS if command.name.endswith(f" {name}")]):
        return "; there is " + ", ".join(f"'{command.name}': {command.purpose}" for command in namesakes)
    names = [command.name for command in subcommands or COMMANDS]
    candidates = names if subcommands else dict.fromkeys(name.partition(" ")[0] for name in names)
    if ours := FOREIGN_COMMANDS.get(name):
        return f", did you mean '{ours}'?"
    return did_you_mean(name, candidates) or f"; available: {', '.join(names)}"


def _list_commands(commands: Sequence[Command]) -> str:
    width = max(len(command.name) for command in commands)
    return "\n".join(f"  {command.name:<{width}}  {command.purpose}" for command in commands)


def _usage() -> str:
    return f"""The InstructGPT pipeline: demonstrations and rankings in, an aligned model and its evaluation out.

usage: instructgpt COMMAND [--preset NAME] [--config FILE.yaml] [options]

{_list_commands(COMMANDS)}

instructgpt COMMAND --help
instructgpt completion bash|zsh|fish"""


if __name__ == "__main__":
    main()
