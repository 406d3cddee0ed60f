"""Imports point one way, and what is meant to start without torch does."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "instructgpt"
LAYERS = """
errors extras console io records results formatting option_names config network __init__
distributed.comm distributed.restart
run
functional statistics world
data models sampling
distributed.failures distributed.launch distributed
train baselines plan
label
evaluate report doctor watch serve
stage_configs pipeline_plan pipeline_baselines pipeline_file_baselines pipeline_overoptimization pipeline sweep trl hub
commands flags completion cli __main__
"""
"""From the lowest to the highest: a part may import itself,
the parts before it and those on its own line that stand before it.
"""
CORE = ("functional", "data", "models", "sampling", "distributed", "train", "baselines", "plan")
"""They work on anyone's files: neither the small world nor the labelers' site is known to them."""
ONLY = {
    "functional": "",
    "statistics": "records errors io",
    "world": "records errors io statistics",
    "label": (
        "records errors io results formatting config network statistics world __init__ data.pii data.dedup data.use_cases"
        " data.background_requests"
    ),
}
"""Parts that may import less than their layer allows."""

SITE_LAYERS = """
errors i18n safe_text mathematics markdown vocabulary outgoing mail_server openid language
db
report_cache
context
auth
integrations
tasks
people
analysis
playground
exchange
listing bulk
site_folder background
configs
web.charts web.public_address web.rendering web.params web.pages web.api web
client
simulation
cli
"""
"""The same inside `label/`. Pages and API do not know each other; clients speak HTTP."""
SITE_ONLY = {
    "client": "errors",
    "simulation.labelers": "client simulation tasks.forms configs",
    "simulation.site_labelers": "client simulation",
    "web.api": (
        "errors i18n safe_text mathematics markdown vocabulary outgoing mail_server openid db context auth"
        " integrations tasks people analysis playground exchange web.rendering web.params"
    ),
}

WITHOUT_TORCH = [
    part
    for part in (
        "records",
        "results",
        "formatting",
        "world",
        "label",
        "config",
        "errors",
        "network",
        "commands",
        "cli",
        "statistics",
    )
    if list(SRC.glob(f"{part}*"))
]
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__") for path in SRC.rglob("*.py")
}


def longest(module: str, parts: Iterable[str]) -> str | None:
    """The most specific of the parts that a module belongs to."""
    return max((part for part in parts if f"{module}.".startswith(f"{part}.")), key=len, default=None)


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, module below this package) of every import, those inside functions too;
    a name of the package itself is `__init__`.
    """
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                if node.level
                else node.module or ""
            )
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, module = name.partition(".")
            if top == "instructgpt":
                known = [module, module.rpartition(".")[0]]  # a module, or a name in one
                yield getattr(node, "lineno", 0), next((part for part in known if part in MODULES), "__init__")


def wrong_imports(module: str, source: str, package: str, layers: str, only: dict[str, str]) -> list[str]:
    """What a module imports from above its layer, or outside of what its part may import."""
    order = layers.split()
    own = longest(module, order)
    assert own is not None, f"{module} has no layer yet: give it one in {Path(__file__).name}"
    allowed = order[: order.index(own) + 1]
    restricted = longest(module, only)
    if restricted is not None:
        allowed = [own, restricted, *only[restricted].split()]
    wrong = []
    for line, goal in imports(source, package):
        if layers is SITE_LAYERS:
            if not goal.startswith("label."):
                continue
            goal = goal.removeprefix("label.")
        part = longest(goal, order)
        if (longest(goal, allowed) if restricted is not None else part in allowed or None) is None:
            wrong.append(f"line {line}: {module} may not import {goal}")
        elif module.partition(".")[0] in CORE and goal.partition(".")[0] in ("world", "label"):
            wrong.append(f"line {line}: {module} belongs to the core and may not import {goal}")
    return wrong


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_one_way(path):
    package = ".".join(("instructgpt", *path.relative_to(SRC).parent.parts))
    module = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
    source = path.read_text(encoding="utf-8")
    assert not wrong_imports(module, source, package, LAYERS, ONLY)
    if module.startswith("label.") and "migrations" not in module:
        assert not wrong_imports(module.removeprefix("label."), source, package, SITE_LAYERS, SITE_ONLY)


def test_pages_do_not_import_the_api():
    for path in (SRC / "label" / "web" / "pages").rglob("*.py"):
        assert "label.web.api" not in path.read_text(encoding="utf-8"), path


def test_every_way_to_import_is_seen():
    source = (
        "import instructgpt.cli, os\nfrom instructgpt import run, __version__\ndef f():\n    from ..train.ppo "
        "import x\n    from . import y"
    )
    assert list(imports(source, "instructgpt.data")) == [
        (1, "cli"),
        (2, "run"),
        (2, "__init__"),
        (4, "train.ppo"),
        (5, "data"),
    ]


def test_wrong_imports_are_reported():
    assert wrong_imports("data.packing", "from instructgpt.train import ppo", "instructgpt.data", LAYERS, ONLY)
    assert wrong_imports("data.packing", "from instructgpt.world import world", "instructgpt.data", LAYERS, ONLY)
    assert wrong_imports(
        "statistics.agreement", "from instructgpt.run import directory", "instructgpt.statistics", LAYERS, ONLY
    )
    assert wrong_imports(
        "db.database", "from instructgpt.label.tasks import queue", "instructgpt.label.db", SITE_LAYERS, SITE_ONLY
    )
    assert wrong_imports(
        "client", "from instructgpt.label.db import database", "instructgpt.label", SITE_LAYERS, SITE_ONLY
    )
    assert not wrong_imports("train.ppo", "from instructgpt import functional", "instructgpt.train", LAYERS, ONLY)


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
