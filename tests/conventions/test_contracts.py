"""The public contracts, compared with the snapshot in `tests/contracts/`: options, configuration, API, routes,
catalogues, database, files.

A deliberate change of a contract is written to the snapshot by `python tests/conventions/test_contracts.py` and shows
in the diff.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import yaml
from fastapi.routing import iter_route_contexts
from support.configs import configs
from support.site import make_site

from instructgpt import cli
from instructgpt.flags import build_parser
from instructgpt.label.db import migrate
from instructgpt.label.db.database import create_database_engine, sqlite_url
from instructgpt.label.web.app import create_app

FOLDER = Path(__file__).parent / "contracts"
SRC = Path(__file__).parents[2] / "src" / "instructgpt"
IGNORED_IN_OPENAPI = {"operationId", "title", "description", "summary", "version"}


def options() -> str:
    """Every flag of every command with its kind, default and choices; the help text itself is free to change."""
    lines = []
    for command in cli.COMMANDS:
        for action in build_parser(command)._actions:
            name = "/".join(action.option_strings) or action.dest
            kind = type(action).__name__.strip("_").removesuffix("Action")
            required = "required" if "(required)" in (action.help or "") else ""
            default = (
                (action.help or "").rpartition("(default ")[2].rstrip(")") if "(default " in (action.help or "") else ""
            )
            nargs = "" if action.nargs is None else str(action.nargs)
            if not isinstance(action, argparse._HelpAction):
                lines.append(
                    f"{command.name}: {name} {kind} {action.metavar or ''} {nargs} {required}{default}".rstrip()
                )
    return "\n".join(lines)


def configuration() -> str:
    """Every field of every configuration with its default."""
    return "\n".join(
        f"{config.__name__}.{name} = "
        f"{'(required)' if field.is_required() else repr(field.get_default(call_default_factory=False))}"
        for _, config in configs()
        for name, field in config.model_fields.items()
    )


def inlined(node: Any, schemas: dict[str, Any], seen: tuple[str, ...] = ()) -> Any:
    """An OpenAPI node with its components put in place, without names and prose."""
    if isinstance(node, list):
        return [inlined(item, schemas, seen) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return {"recursive": True} if name in seen else inlined(schemas[name], schemas, (*seen, name))
    is_properties = "type" not in node and all(isinstance(value, dict) for value in node.values())
    return {
        key: inlined(value, schemas, seen)
        for key, value in sorted(node.items())
        if is_properties or key not in IGNORED_IN_OPENAPI
    }


def openapi(site: Any) -> str:
    """The API's description, one line an operation and part."""
    schema = create_app(site).openapi()
    lines = []
    for path, operations in sorted(schema["paths"].items()):
        for method, operation in sorted(operations.items()):
            for part, value in sorted(inlined(operation, schema["components"]["schemas"]).items()):
                lines.append(f"{method.upper()} {path} {part}: {json.dumps(value, sort_keys=True)}")
    return "\n".join(lines)


def routes(site: Any) -> str:
    """Method and path of every route."""
    found = set()
    for context in iter_route_contexts(create_app(site).routes):
        for method in sorted(getattr(context, "methods", None) or {"MOUNT"}):
            found.add(f"{context.path} {method}")
    return "\n".join(sorted(found))


def catalogue() -> str:
    """The keys of the catalogue; every language has the same."""

    def flat(node: Any, prefix: str = "") -> Iterator[str]:
        for key, value in node.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]

    paths = sorted([*SRC.glob("label/locales/*.yaml"), *SRC.glob("label/locales/*.yaml")])
    keys = [sorted(flat(yaml.safe_load(path.read_text(encoding="utf-8")))) for path in paths]
    assert len(keys) > 1
    assert all(other == keys[0] for other in keys)
    return "\n".join(keys[0])


def database(url: str) -> str:
    """The structure that the migrations make, as SQLAlchemy reads it from the database."""
    engine = create_database_engine(url)
    migrate.upgrade_database(engine)
    inspector = sqlalchemy.inspect(engine)
    lines = [f"revision {migrate.get_database_revision(engine)}"]
    for table in sorted(inspector.get_table_names()):
        key = inspector.get_pk_constraint(table)["constrained_columns"]
        lines.append(f"{table} primary key {', '.join(key)}")
        for column in inspector.get_columns(table):
            null = "" if column["nullable"] else " not null"
            default = f" default {column['default']}" if column["default"] is not None else ""
            lines.append(f"{table}.{column['name']} {column['type']!r}{null}{default}")
        parts = [
            f"foreign key {f['constrained_columns']} {f['referred_table']}{f['referred_columns']} {f['options']}"
            for f in inspector.get_foreign_keys(table)
        ]
        parts += [f"unique {u['name']} {u['column_names']}" for u in inspector.get_unique_constraints(table)]
        parts += [f"check {c['name']} {c['sqltext']}" for c in inspector.get_check_constraints(table)]
        parts += [
            f"index {i['name']} {i['column_names']} {'unique' if i['unique'] else ''}"
            for i in inspector.get_indexes(table)
        ]
        lines += [f"{table} {part}".rstrip() for part in sorted(parts)]
    engine.dispose()
    return "\n".join(lines)


def smoke_run(folder: Path) -> str:
    """The files of a smoke run, the keys of every run.json and log, and the rows of results.json."""
    out = folder / "smoke"
    argv = [sys.executable, "-m", "instructgpt", "run", "--preset", "smoke", "--seed", "0", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(SRC.parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(argv, check=True, capture_output=True, env=environment)
    lines = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        lines.append(name)
        if path.name == "run.json":
            lines.append(f"{name}: {', '.join(sorted(json.loads(path.read_text())))}")
        elif path.suffix == ".jsonl":
            keys = {key for line in path.read_text(encoding="utf-8").splitlines() for key in json.loads(line)}
            lines.append(f"{name}: {', '.join(sorted(keys))}")
    rows = json.loads((out / "results.json").read_text())
    lines += [f"results.json: {row['evaluation']} {row['metric']} {row['model']} {row['condition']}" for row in rows]
    return "\n".join(lines)


def compare(name: str, text: str) -> None:
    path = FOLDER / f"{name}.txt"
    if os.environ.get("WRITE_CONTRACTS"):
        path.write_text(text + "\n", encoding="utf-8")
    assert path.read_text(encoding="utf-8").splitlines() == text.splitlines()


@pytest.mark.parametrize("part", [options, configuration, catalogue])
def test_options_configuration_and_catalogue_match_the_snapshot(part: Callable[[], str]):
    compare(part.__name__, part())


@pytest.mark.parametrize("part", [openapi, routes])
def test_api_and_routes_match_the_snapshot(part: Callable[[Any], str], tmp_path):
    site = make_site(tmp_path)
    compare(part.__name__, part(site))
    site.database.close()


def test_migrated_sqlite_schema_matches_the_snapshot(tmp_path):
    compare("schema_sqlite", database(sqlite_url(tmp_path / "site.db")))


def test_migrated_postgresql_schema_matches_the_snapshot(postgres_url):
    compare("schema_postgresql", database(postgres_url))


@pytest.mark.slow
def test_smoke_run_writes_the_files_and_metrics_of_the_snapshot(tmp_path):
    compare("smoke_run", smoke_run(tmp_path))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory():
        sys.exit(
            subprocess.run(
                [sys.executable, "-m", "pytest", __file__], env={**os.environ, "WRITE_CONTRACTS": "1"}
            ).returncode
        )
