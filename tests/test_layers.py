"""Imports point one way, and what is meant to start without torch does."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "instructgpt"
LAYERS = [
    "records",
    "functional",
    "data",
    "models",
    "generate",
    "train",
    "plan",
    "evaluate",
    "report",
    "doctor",
    "watch",
    "pipeline_config",
    "pipeline",
    "flags",
    "cli",
    "__main__",
]
OPEN = {"config", "run", "ranks", "errors", "files", "__init__"}
"""Importable by all; among themselves they may use records."""
MAY_IMPORT = {layer: OPEN | {"world", "label"} | set(LAYERS[: LAYERS.index(layer) + 1]) for layer in LAYERS}
MAY_IMPORT |= {layer: MAY_IMPORT[layer] - {"world", "label"} for layer in LAYERS[: LAYERS.index("evaluate")]}  # they work on anyone's files
MAY_IMPORT |= {part: OPEN | {"records"} for part in OPEN}
MAY_IMPORT |= {part: {part, "records", "errors", "files"} for part in ("world", "label", "statistics")}
MAY_IMPORT["label"] |= {
    "config",
    "statistics",
    "world",
    "__init__",
}  # its commands have options, its numbers a place, its simulation a world
MAY_IMPORT = {part: may | {"statistics"} if part in LAYERS[2:] or part == "world" else may for part, may in MAY_IMPORT.items()}
WITHOUT_TORCH = [part for part in ("records", "world", "label", "config", "errors", "cli", "statistics") if list(SRC.glob(f"{part}*"))]


def part_of(module: str) -> str | None:
    """`instructgpt.data.batches` -> `data`; None for other packages."""
    top, *rest = module.split(".")
    return (rest or ["__init__"])[0] if top == "instructgpt" else None


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, part of this package) of every import, those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "instructgpt" else [base]
        for part in filter(None, map(part_of, names)):
            # `from instructgpt import __version__`: a name of the package itself, not a module
            yield getattr(node, "lineno", 0), part if part in MAY_IMPORT or list(SRC.glob(f"{part}*")) else "__init__"


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_one_way(path):
    own = path.relative_to(SRC).parts[0].removesuffix(".py")
    package = ".".join(("instructgpt", *path.relative_to(SRC).parent.parts))
    assert own in MAY_IMPORT, f"{own} has no layer yet: give it one in {Path(__file__).name}"
    wrong = [
        f"line {line}: {own} may not import {part}" for line, part in imports(path.read_text(), package) if part not in MAY_IMPORT[own]
    ]
    assert not wrong


def test_every_way_to_import_is_seen():
    source = (
        "import instructgpt.cli, os\nfrom instructgpt import run, __version__\ndef f():\n    from ..train.ppo import x\n    from . import y"
    )
    assert list(imports(source, "instructgpt.data")) == [(1, "cli"), (2, "run"), (2, "__init__"), (4, "train"), (5, "data")]


STARTED = """
import importlib, pkgutil, sys
part = importlib.import_module("instructgpt." + sys.argv[1])
for found in pkgutil.walk_packages(getattr(part, "__path__", []), part.__name__ + "."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
if sys.argv[1] == "cli":
    sys.argv = ["instructgpt", "--help"]
    try:
        part.main()
    except SystemExit:
        pass
numbers = "scipy.stats" if sys.argv[1] == "statistics" else "scipy"  # half a second and more to load
loaded = {"torch", "transformers", "datasets", "matplotlib", numbers} & set(sys.modules)
sys.exit(f"loads {loaded}" if loaded else 0)
"""


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_starts_without_torch(part):
    environment = {**os.environ, "PYTHONPATH": str(SRC.parent)}
    done = subprocess.run([sys.executable, "-c", STARTED, part], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
