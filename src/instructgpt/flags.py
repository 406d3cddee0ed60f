"""Flags made from configs: every option of a stage is one flag, its help is the option's description.

Values are read and checked by the config itself, so that a flag, a YAML line and a preset mean the same.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from instructgpt.config import did_you_mean
from instructgpt.errors import InputError


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, with the nearest flag that exists. A flag is its whole name."""

    def __init__(self, command: str, purpose: str, *, add_help: bool = True) -> None:
        description = f"{purpose[0].upper()}{purpose[1:]}."
        super().__init__(prog=f"instructgpt {command}", description=description, allow_abbrev=False, add_help=add_help)
        self.command = command

    def error(self, message: str) -> NoReturn:
        """Raise the complaint instead of printing a page of usage."""
        raise InputError(f"{self.command}: {message}; see '{self.prog} --help'")

    def parse_partial(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The options this parser knows, wherever they stand, and the other words. Help is left to who reads those."""
        namespace, remaining = self.parse_known_args(argv)
        return vars(namespace), remaining

    def flag_names(self) -> str:
        """Its flags, one after the other."""
        return ", ".join(name for name in self._option_string_actions if name.startswith("--"))

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; an unknown flag is answered with the nearest known one.

        Raises:
            BadInput: something does not parse.
        """
        namespace, unknown_arguments = self.parse_known_args(argv)
        for argument in unknown_arguments:
            name = argument.partition("=")[0]
            if name.startswith("-"):
                suggestion = did_you_mean(name, self._option_string_actions)
                self.error(f"unknown option '{name}'{suggestion}")
            self.error(f"'{argument}' belongs to no option")
        return namespace


def add_flags(
    parser: argparse.ArgumentParser, config: type[BaseModel], positional: str | None = None, exclude: str | None = None
) -> None:
    """One flag for each option of a config, in its order; `positional` needs no flag, `leave_out` gets none."""
    for name, field in config.model_fields.items():
        annotation = _unwrap_optional(field.annotation)
        is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if (
            is_section
            or get_origin(annotation) is dict
            or name == exclude
            or name in getattr(config, "excluded_fields", ())
        ):
            continue  # whole sections, which only files can say; what this command does not know
        options: dict[str, Any] = {"help": _help_text(field), "default": argparse.SUPPRESS}
        flag = "--" + name.replace("_", "-")
        if annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(annotation) is tuple:
            item_type = get_args(annotation)[0]
            choices = get_args(item_type)  # of a literal
            options |= {"nargs": "+", "metavar": "|".join(choices) if choices else "N" if item_type is int else "FILE"}
            if name != positional:
                options["action"] = "extend"  # said again, it is more of the same: no file is lost
        elif get_origin(annotation) is Literal:
            options["metavar"] = "|".join(map(str, get_args(annotation)))
        else:
            options["metavar"] = {int: "N", float: "X"}.get(
                annotation, "DIR" if name in ("out", "reward") else "TEXT" if annotation is str else "PATH"
            )
        if name == positional:
            repeated_nargs, single_nargs = ("+", None) if field.is_required() else ("*", "?")
            nargs = repeated_nargs if "nargs" in options else single_nargs
            parser.add_argument(
                name, metavar=name.upper(), help=options["help"], nargs=nargs, default=argparse.SUPPRESS
            )
        else:
            parser.add_argument(*(["-" + name] if len(name) == 1 else []), flag, dest=name, **options)


def _unwrap_optional(annotation: Any) -> Any:
    """The type behind `X | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _help_text(field: FieldInfo) -> str:
    """Description and default of an option."""
    text = (field.description or "").replace("%", "%%")
    if field.is_required():
        return f"{text} (required)"
    default = field.get_default()
    return text if default is None or default == () or isinstance(default, bool) else f"{text} (default {default})"
