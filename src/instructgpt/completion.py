"""`completion`: a script that completes commands, options, their choices and files in bash, zsh or fish.

    source <(instructgpt completion bash)                                   in ~/.bashrc
    instructgpt completion zsh > ~/.zfunc/_instructgpt                      in a directory of $fpath
    instructgpt completion fish > ~/.config/fish/completions/instructgpt.fish

The script holds all options, so that a Tab starts no Python; print it again after an update.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from instructgpt.commands import COMMANDS, Command
from instructgpt.flags import build_parser
from instructgpt.run.configs import CompletionConfig

_FILE_METAVARS = {"FILE", "DIR", "MODEL", "[NAME=]MODEL", "FILE.yaml"}
_VALUE_KINDS = Literal["none", "choices", "files", "text"]


@dataclass(frozen=True, slots=True)
class CompletedOption:
    """An option, or a positional argument without flags, and what its value can be."""

    flags: tuple[str, ...]
    help: str
    value: _VALUE_KINDS
    choices: tuple[str, ...] = ()
    repeated: bool = False


def main(config: CompletionConfig) -> None:
    """Print the script of one shell."""
    writers = {"bash": format_bash, "zsh": format_zsh, "fish": format_fish}
    print(writers[config.shell](COMMANDS), end="")


def list_options(commands: Sequence[Command]) -> dict[str, list[CompletedOption]]:
    """Return the options of each command by name; of `plan ppo` those of both."""
    by_name = {
        command.name: [_to_option(action, command) for action in build_parser(command)._actions] for command in commands
    }
    for command in commands:
        wrapping = [option for option in by_name[command.name] if option.flags]
        by_name |= {f"{command.name} {wrapped}": wrapping + by_name[wrapped] for wrapped in command.wraps}
    return by_name


def _to_option(action: argparse.Action, command: Command) -> CompletedOption:
    metavar = str(action.metavar or "")
    choices = tuple(metavar.split("|")) if "|" in metavar or action.dest == "preset" else ()
    value: _VALUE_KINDS = "choices" if choices else "files" if metavar in _FILE_METAVARS else "text"
    if not action.option_strings:
        field = command.config_class.model_fields[action.dest]
        choices = _positional_choices(command, action.dest)
        value = "files" if "director" in (field.description or "") else "choices" if choices else "text"
    elif action.nargs == 0:
        value = "none"
    text = (action.help or "").replace("%%", "%")
    return CompletedOption(tuple(action.option_strings), text, value, choices, action.nargs in ("+", "*"))


def _positional_choices(command: Command, name: str) -> tuple[str, ...]:
    from instructgpt.evaluate.configs import EVAL_TASK_NAMES, WHOLE_FILE_EVALUATIONS
    from instructgpt.flags import choices

    if name == "names":
        return (*EVAL_TASK_NAMES, *WHOLE_FILE_EVALUATIONS, "all")
    return command.wraps or choices(command.config_class.model_fields[name])


def _first_words(commands: Sequence[Command]) -> dict[str, list[Command]]:
    """Return the commands by their first word; a group has several. Subcommands of a command are left out."""
    names = {command.name for command in commands}
    groups: dict[str, list[Command]] = {}
    for command in commands:
        word, _, rest = command.name.partition(" ")
        if not (rest and word in names):
            groups.setdefault(word, []).append(command)
    return groups


def _subcommands(commands: Sequence[Command]) -> dict[str, list[Command]]:
    """Return the commands that begin with another's name, by that name: {"serve": [serve keys, serve log]}."""
    names = {command.name for command in commands}
    nested: dict[str, list[Command]] = {}
    for command in commands:
        word, _, rest = command.name.partition(" ")
        if rest and word in names:
            nested.setdefault(word, []).append(command)
    return nested


def _second_word(command: Command) -> str:
    return command.name.partition(" ")[2]


def _two_word_patterns(commands: Sequence[Command]) -> str:
    """Return the commands whose second word is not an option, as a pattern of bash and zsh: "plan ppo"|"serve keys"."""
    wrapped = [f"{command.name} {name}" for command in commands for name in command.wraps]
    nested = [command.name for group in _subcommands(commands).values() for command in group]
    return "|".join(f'"{name}"' for name in [*wrapped, *nested])


# --- bash ------------------------------------------------------------------------------------------------------------

_BASH = """# bash completion of instructgpt; use: source <(instructgpt completion bash)
_instructgpt() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" command="" option="" options="" positional="" words="" count=0 i
    COMPREPLY=()
    [[ $cur == "=" ]] && cur=""
    case "${{COMP_WORDS[1]}}" in
        {groups}) command="${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}"; i=3 ;;
        *) command="${{COMP_WORDS[1]}}"; i=2 ;;
    esac
    if ((COMP_CWORD > 2)); then
        case "$command ${{COMP_WORDS[2]}}" in
            {wrapped}) command="$command ${{COMP_WORDS[2]}}"; i=3 ;;
        esac
    fi
    if ((COMP_CWORD < i)); then
        case "$COMP_CWORD ${{COMP_WORDS[1]}}" in
            1*) words="{first_words}" ;;
{second_words}
        esac
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        return
    fi
    for ((; i < COMP_CWORD; i++)); do
        case "${{COMP_WORDS[i]}}" in
            -*) option="${{COMP_WORDS[i]}}"; count=0 ;;
            =) ;;
            *) ((count++)) ;;
        esac
    done
    case "$command" in
{commands}
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
        return
    fi
    case "$command $option $count" in
{values}
        *) words="${{positional:-$options}}" ;;
    esac
    if [[ $words == files* ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -W "${{words#files}}" -- "$cur"; compgen -f -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    fi
}}
complete -F _instructgpt instructgpt
"""


def format_bash(commands: Sequence[Command]) -> str:
    """Return the script for bash 4 and later."""
    groups = _first_words(commands)
    subcommands = {word: [_second_word(c) for c in group] for word, group in groups.items() if len(group) > 1}
    option_lines: list[str] = []
    value_lines = [
        f'        "{word}  0") words="{" ".join(map(_second_word, group))} $options" ;;'
        for word, group in _subcommands(commands).items()
    ]
    for name, options in list_options(commands).items():
        flags = " ".join(dict.fromkeys(flag for option in options for flag in option.flags))
        positional = next((_bash_words(option) for option in options if not option.flags), "")
        option_lines.append(f'        "{name}") options="{flags}" positional="{positional}" ;;')
        for option in options:
            if option.flags and option.value != "none":
                count = ' "*' if option.repeated else ' 0"'
                patterns = "|".join(f'"{name} {flag}{count}' for flag in option.flags)
                value_lines.append(f'        {patterns}) words="{_bash_words(option)}" ;;')
    return _BASH.format(
        groups="|".join(subcommands),
        wrapped=_two_word_patterns(commands),
        first_words=" ".join(groups),
        second_words="\n".join(f'            "2 {word}") words="{" ".join(w)}" ;;' for word, w in subcommands.items()),
        commands="\n".join(option_lines),
        values="\n".join(value_lines),
    )


def _bash_words(option: CompletedOption) -> str:
    return " ".join(["files"] * (option.value == "files") + list(option.choices))


# --- zsh -------------------------------------------------------------------------------------------------------------

_ZSH = """#compdef instructgpt
# zsh completion of instructgpt; write it to _instructgpt in a directory of $fpath
_instructgpt() {{
    local command="${{words[2]}}"
    local -a entries
    if ((CURRENT == 2)); then
        entries=(
{first_words}
        )
        _describe -t commands command entries
        return
    fi
    case "$command" in
{groups}
    esac
    if ((CURRENT > 3)); then
        case "$command ${{words[3]}}" in
            {wrapped})
                command="$command ${{words[3]}}"
                shift words; ((CURRENT--))
                ;;
        esac
    fi
    case "$command" in
{commands}
    esac
}}
if [[ ${{funcstack[1]}} == _instructgpt ]]; then
    _instructgpt "$@"
else
    compdef _instructgpt instructgpt
fi
"""
_ZSH_GROUP = """        {word})
            if ((CURRENT == 3)); then
                entries=(
{entries}
                )
                _describe -t commands command entries
                return
            fi
            command="${{words[2]}} ${{words[3]}}"
            shift words; ((CURRENT--))
            ;;"""


def format_zsh(commands: Sequence[Command]) -> str:
    """Return the script for zsh."""
    groups = _first_words(commands)
    first_words = [
        _zsh_entry(word, group[0].purpose if len(group) == 1 else f"{len(group)} commands")
        for word, group in groups.items()
    ]
    group_blocks = [
        _ZSH_GROUP.format(word=word, entries="\n".join(_zsh_entry(_second_word(c), c.purpose, 20) for c in group))
        for word, group in groups.items()
        if len(group) > 1
    ]
    blocks, nested = [], _subcommands(commands)
    for name, options in list_options(commands).items():
        specs = dict.fromkeys(spec for option in options for spec in _zsh_specs(option))
        if name in nested:
            specs |= {f"1:command:({' '.join(map(_second_word, nested[name]))})": None}
        lines = "".join(f" \\\n                {_single_quoted(spec)}" for spec in specs)
        blocks.append(f'        "{name}")\n            shift words; ((CURRENT--))\n            _arguments -S{lines} ;;')
    return _ZSH.format(
        first_words="\n".join(first_words),
        groups="\n".join(group_blocks),
        wrapped=_two_word_patterns(commands),
        commands="\n".join(blocks),
    )


def _zsh_entry(name: str, purpose: str, indent: int = 12) -> str:
    return " " * indent + _single_quoted(f"{name}:{purpose}")


def _zsh_specs(option: CompletedOption) -> Iterator[str]:
    """Yield the specifications of an option for `_arguments`."""
    action = {"files": "_files", "choices": f"({' '.join(option.choices)})"}.get(option.value, "")
    value = "" if option.value == "none" else f":value:{action}"
    if not option.flags:
        yield f"*:value:{action}"
    text = option.help.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    for flag in option.flags:
        yield f"*{flag}[{text}]{value}"


def _single_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish ------------------------------------------------------------------------------------------------------------

_FISH = """# fish completion of instructgpt; write it to ~/.config/fish/completions/instructgpt.fish
function __instructgpt_at
    set -l tokens (commandline -opc)
    test "$tokens[2..]" = "$argv"
end
function __instructgpt_after
    set -l tokens (commandline -opc)
    set -l count (count $argv)
    test (count $tokens) -gt $count; and test "$tokens[2..$(math $count + 1)]" = "$argv"
end
complete -c instructgpt -f
"""


def format_fish(commands: Sequence[Command]) -> str:
    """Return the script for fish 3.4 and later."""
    lines = []
    for word, group in _first_words(commands).items():
        purpose = group[0].purpose if len(group) == 1 else f"{len(group)} commands"
        lines.append(f"-n __instructgpt_at -a {word} -d {_fish_quoted(purpose)}")
        if len(group) > 1:
            lines += map(_fish_second_word, group)
    nested = _subcommands(commands)
    lines += [_fish_second_word(command) for group in nested.values() for command in group]
    excluded = {word: [f"; and not __instructgpt_after {c.name}" for c in group] for word, group in nested.items()}
    lines += [
        f"-n '__instructgpt_after {name}{''.join(excluded.get(name, ()))}' {_fish_option(option)}"
        for name, options in list_options(commands).items()
        for option in options
    ]
    return _FISH + "".join(f"complete -c instructgpt {line}\n" for line in lines)


def _fish_second_word(command: Command) -> str:
    word, _, name = command.name.partition(" ")
    return f"-n '__instructgpt_at {word}' -a {name} -d {_fish_quoted(command.purpose)}"


def _fish_option(option: CompletedOption) -> str:
    names = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
    choices = ["-a", _fish_quoted(" ".join(option.choices))] if option.choices else []
    takes_value = []
    if option.value == "files":
        takes_value = ["-r", "-F"]
    elif option.value != "none":
        takes_value = ["-x"]
    if not option.flags:
        takes_value = takes_value[1:]  # -r and -x are for flags
    return " ".join([*names, *takes_value, *choices, "-d", _fish_quoted(option.help)])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
