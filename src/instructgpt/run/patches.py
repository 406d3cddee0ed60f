"""Functions that a script replaces for a run, recorded in run.json with their source.

    with patch_function(functional, "whiten", center):
        train_ppo(config)

A run that was started with a replacement resumes with the same one only.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from instructgpt.errors import InputError

_PATCHES: dict[str, dict[str, str]] = {}
"""The replacements of this process, by `MODULE.FUNCTION`."""


@contextmanager
def patch_function(module: ModuleType, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of a module; stages that run meanwhile record it.

    Raises:
        InputError: the module has no such function, or it is replaced already.
    """
    original = getattr(module, name, None)
    key = f"{module.__name__}.{name}"
    if not callable(original):
        raise InputError(f"{key}: there is no such function")
    if key in _PATCHES:
        raise InputError(f"{key}: is replaced already")
    _PATCHES[key] = describe_function(replacement)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)
        del _PATCHES[key]


def describe_function(function: Callable[..., Any]) -> dict[str, str]:
    """Return name, source and hash of a function. Without a source, the hash is of its compiled code."""
    code = getattr(function, "__code__", None)
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):  # written at a prompt, or not in Python
        source = ""
    content = source.encode() or (repr((code.co_code, code.co_consts)).encode() if code else repr(function).encode())
    name = getattr(function, "__qualname__", repr(function))
    return {"function": name, "sha256": hashlib.sha256(content).hexdigest()} | ({"source": source} if source else {})


def active_patches() -> dict[str, dict[str, str]]:
    """Return the replacements of this process by `MODULE.FUNCTION`."""
    return dict(_PATCHES)


def check_patches(record: Mapping[str, Any], directory: object) -> None:
    """Refuse to resume a run with other replacements than those of its record.

    Raises:
        InputError: they differ.
    """
    before = {key: patch["sha256"] for key, patch in record.get("patches", {}).items()}
    now = {key: patch["sha256"] for key, patch in _PATCHES.items()}
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            then = "replaced by another function" if key in before and key in now else "replaced"
            state = then if key in before else "not replaced"
            raise InputError(
                f"{directory}: {key} was {state} when the run started; choose another "
                "--out, or restart with --no-resume"
            )


def check_no_patches() -> None:
    """Refuse worker processes, which would not have the replacements.

    Raises:
        InputError: a function is replaced.
    """
    if _PATCHES:
        raise InputError(
            f"{', '.join(sorted(_PATCHES))}: replaced in this process, not in worker processes; use --processes 1"
        )
