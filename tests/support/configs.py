"""The configuration class of every command."""

from __future__ import annotations

import importlib
import pkgutil

from pydantic import BaseModel

import instructgpt
from instructgpt.config import StageConfig


def configs() -> list[tuple[str, type[BaseModel]]]:
    """Return (name of the docs page, config) of every stage and command. Imports all modules to find the stages."""
    for module in pkgutil.walk_packages(instructgpt.__path__, "instructgpt."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: dict[type[BaseModel], str] = {}
    waiting = list(StageConfig.__subclasses__())
    while waiting:
        config = waiting.pop()
        waiting += config.__subclasses__()
        if config.__module__.startswith("instructgpt.") and hasattr(config, "stage"):  # not those they share options by
            found[config] = config.stage
    for command in importlib.import_module("instructgpt.cli").COMMANDS:
        found[command.config_class] = command.name.split()[0]
    return sorted(((page, config) for config, page in found.items()), key=lambda both: (both[0], both[1].__name__))
