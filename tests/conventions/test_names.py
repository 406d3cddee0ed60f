"""Names: one public name has one meaning, and identifiers are nouns and verbs of the field."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "instructgpt"
MODULES = sorted(SRC.rglob("*.py"))

HOMONYMS = set((Path(__file__).parent / "homonyms.txt").read_text(encoding="utf-8").split())
"""Public names that several modules may define: the protocols of stages, evaluation tasks and routes.

The list may only shrink.
"""

BANNED = set((Path(__file__).parent / "banned_identifiers.txt").read_text(encoding="utf-8").split())
"""Participles, pronouns and prepositions that say nothing as a name.

Allowed in a comprehension or lambda of one line.
"""

CONTRACT_NAMES = {
    "run/configs.py": {"every"},
    "data/drop_report.py": {"written"},
    "evaluate/configs.py": {"least"},
    "evaluate/judges/llm_judge.py": {"said"},
    "evaluate/tasks/base.py": {"said"},
    "evaluate/world_exam.py": {"said"},
    "label/db/models/people.py": {"at", "by"},
    "label/db/models/quality.py": {"at"},
    "label/db/models/submissions.py": {"at", "shown"},
    "label/db/models/tasks.py": {"written"},
    "label/exchange/export_jobs.py": {"by"},
    "label/tasks/batch_requests.py": {"written"},
    "label/tasks/batches.py": {"wanted", "done"},
    "label/tasks/submission_history.py": {"at"},
    "label/tasks/threads.py": {"mine", "at"},
    "label/web/api/stats.py": {"alike"},
}
"""Flags, database columns and JSON keys that files, clients and databases already hold."""


def public_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes and constants that a module defines."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


ONE_LINERS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.Lambda


def bound_names(node: ast.AST, short: bool = False) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that is bound below a node,
    except in comprehensions and lambdas that fit on one line.
    """
    match node:
        case ast.NamedExpr(target=ast.Name(id=name)):
            yield node.lineno, name  # it outlives its comprehension
        case _ if short:
            pass
        case (
            ast.FunctionDef(name=name)
            | ast.AsyncFunctionDef(name=name)
            | ast.ClassDef(name=name)
            | ast.ExceptHandler(name=str(name))
        ):
            yield node.lineno, name
        case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            yield node.lineno, name
    short = short or (isinstance(node, ONE_LINERS) and node.lineno == node.end_lineno)
    for child in ast.iter_child_nodes(node):
        yield from bound_names(child, short)


def banned(source: str) -> list[str]:
    """The banned identifiers of a module, with their lines."""
    return [
        f"{line}: {name}"
        for line, name in sorted(set(bound_names(ast.parse(source))))
        if name.strip("_").lower() in BANNED
    ]


def homonyms() -> dict[str, list[str]]:
    """Public names that several modules define, with the modules."""
    places = defaultdict(list)
    for path in MODULES:
        if "migrations" in path.parts:
            continue  # Alembic prescribes the names of a revision
        for name in public_names(ast.parse(path.read_text(encoding="utf-8"))):
            if not name.startswith("_"):
                places[name].append(path.relative_to(SRC).as_posix())
    return {name: paths for name, paths in places.items() if len(paths) > 1}


def test_public_names_are_unique():
    assert {name: paths for name, paths in homonyms().items() if name not in HOMONYMS} == {}


def test_the_list_of_homonyms_only_shrinks():
    assert sorted(HOMONYMS - set(homonyms())) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_no_banned_identifier(path):
    allowed = CONTRACT_NAMES.get(path.relative_to(SRC).as_posix(), set())
    assert [name for name in banned(path.read_text(encoding="utf-8")) if name.split()[-1] not in allowed] == []


def test_contract_names_are_still_there():
    for name, allowed in CONTRACT_NAMES.items():
        found = {item.split()[-1] for item in banned((SRC / name).read_text(encoding="utf-8"))}
        assert allowed == found, name


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(given): told = 1", ["1: given", "1: told"]),
        ("x = [each for each in y]", []),
        ("x = [\n  each\n  for each in y]", ["3: each"]),
        ("x = sorted(y, key=lambda one: one.z)", []),
        ("if (found := f()): self.kept = found", ["1: found", "1: kept"]),
        ("try: pass\nexcept E as other: pass", ["2: other"]),
        ("class Shown: pass", ["1: Shown"]),
    ],
)
def test_banned_identifiers_are_recognized(source, names):
    assert banned(source) == names
