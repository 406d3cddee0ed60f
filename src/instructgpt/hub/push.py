"""`push`: a finished directory to the hub, with license, base model and metrics in the model card.

    instructgpt push runs/demo/ppo_ptx --repo ORG/NAME --license apache-2.0 --dry-run
    instructgpt push runs/demo/ppo_ptx --repo ORG/NAME --license apache-2.0 --private

Weights, configuration, tokenizer, adapter and card are sent. run.json, samples, logs and checkpoints stay: they hold
prompts of people and paths of this machine.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError, RunError, one_line
from instructgpt.formatting import format_si
from instructgpt.hub.configs import PushConfig
from instructgpt.results import DIFFERENCE, ResultRow, read_result_rows
from instructgpt.run.directory import console, read_run_record
from instructgpt.run.model_card import format_model_card

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.jinja", "adapter/*.safetensors", "adapter/*.json")
_LEFT_OUT = {"run.json", "results.json", "trainer_state.json"}
_PARENT_OPTIONS = ("base", "policy")
"""Options that name the model which a stage started from."""
_NOT_A_MEASURE = {DIFFERENCE, "rounds"}


def main(config: PushConfig) -> str | None:
    """Send the directory; return the address of the commit, or None with --dry-run.

    Raises:
        InputError: the directory holds no finished model, or an option does not fit.
        RunError: the hub refused.
    """
    record = check_finished(config)
    base_model = config.base_model or find_base_model(config.directory, record)
    card = format_hub_card(config, record, base_model, find_rows(config))
    files = list(find_files(config.directory))
    size = sum(file.stat().st_size for file in files)
    console.print(f"base model: {base_model or 'none; --base-model names it'}", markup=False, soft_wrap=True)
    console.print(f"{len(files)} files, {format_si(size, 'B')}, and the card", markup=False)
    if not config.dry_run:
        return upload(config, card, files)
    for file in files:
        console.print(f"  {file.relative_to(config.directory)}", markup=False)
    console.print(card, markup=False, soft_wrap=True)
    return None


def check_finished(config: PushConfig) -> dict[str, Any]:
    """Return the record of the directory.

    Raises:
        InputError: no finished run, no weights, or an impossible name of a repository.
    """
    record = read_run_record(config.directory)
    if record is None or not record.get("finished"):
        state = "no run" if record is None else "a run that has not finished"
        raise InputError(f"{config.directory}: holds {state}; name the directory of a finished stage")
    if not list(config.directory.glob("*.safetensors")):
        raise InputError(f"{config.directory}: holds no model; name the directory of one stage, such as ppo_ptx")
    if not _REPOSITORY.fullmatch(config.repo):
        raise InputError(f"--repo {config.repo}: expected ORG/NAME")
    return record


def find_base_model(directory: Path, record: dict[str, Any]) -> str | None:
    """Return the hub name that a chain of stages started from; None where it started elsewhere.

    A parent on the hub is recorded with the hash of its name.
    """
    for _ in range(100):
        parents: dict[str, dict[str, str]] = record.get("parents", {})
        name = next((option for option in _PARENT_OPTIONS if option in parents), None)
        if name is None:
            return None
        path = parents[name]["path"]
        if parents[name]["sha256"] == hashlib.sha256(path.encode()).hexdigest():
            return path.partition("@")[0]
        earlier = next((read_run_record(place) for place in _places(directory, path) if place.is_dir()), None)
        if earlier is None:
            return None
        record = earlier
    return None


def _places(directory: Path, path: str) -> Iterator[Path]:
    """Yield where a parent may be: where it was, or beside the directory if the run has moved."""
    yield Path(path)
    yield directory.parent / Path(path).name


def find_rows(config: PushConfig) -> list[ResultRow]:
    """Return the rows of results.json about this model.

    Raises:
        InputError: --results cannot be read, or does not know the model.
    """
    path = config.results or config.directory.parent / "results.json"
    if config.results is None and not path.exists():
        return []
    name = config.directory.resolve().name
    rows = [row for row in read_result_rows(path) if row.model == name and row.value is not None]
    if config.results is not None and not rows:
        raise InputError(f"--results {path}: no row about the model '{name}'")
    return [row for row in rows if row.evaluation not in _NOT_A_MEASURE]


def format_hub_card(config: PushConfig, record: dict[str, Any], base_model: str | None, rows: list[ResultRow]) -> str:
    """Return the directory's card with license, base model and metrics; inputs by their names alone."""
    from huggingface_hub import EvalResult, ModelCard  # slow to import

    parents = {name: dict(parent, path=Path(parent["path"]).name) for name, parent in record["parents"].items()}
    settings = {name: _without_folders(value) for name, value in record["config"].items()}
    card = ModelCard(format_model_card(record | {"parents": parents, "config": settings}))
    data: Any = card.data  # its fields depend on the kind of card
    data.license = config.license
    if base_model is not None:
        data.base_model = base_model
    if rows:
        data.model_name = config.repo.partition("/")[2]
        data.eval_results = [
            EvalResult(
                task_type=data.pipeline_tag,
                dataset_type=row.evaluation,
                dataset_name=" ".join(filter(None, (row.evaluation, row.condition))),
                dataset_config=row.condition or None,
                metric_type=row.metric,
                metric_value=row.value,
            )
            for row in rows
        ]
        card.text = card.text.rstrip() + "\n\n" + _format_measures(rows)
    return str(card)


def _without_folders(value: Any) -> Any:
    """Return a setting with the last part of absolute paths alone."""
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _format_measures(rows: list[ResultRow]) -> str:
    lines = [
        "## Measured",
        "",
        "| evaluation | metric | condition | value | 95 % interval | n |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = "" if row.low is None or row.high is None else f"{row.low:.4g} to {row.high:.4g}"
        lines.append(f"| {row.evaluation} | {row.metric} | {row.condition} | {row.value:.4g} | {interval} | {row.n} |")
    return "\n".join(lines) + "\n"


def find_files(directory: Path) -> Iterator[Path]:
    """Yield the files of the model in a directory, in a fixed order."""
    files = {file for pattern in (*_MODEL_FILES, "*.json") for file in directory.glob(pattern)}
    yield from sorted(file for file in files if file.is_file() and file.name not in _LEFT_OUT)


def upload(config: PushConfig, card: str, files: list[Path]) -> str:
    """Create the repository where it is not there, and send everything as one commit.

    Raises:
        RunError: the hub cannot be reached, or refused.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    additions = [CommitOperationAdd(file.relative_to(config.directory).as_posix(), file) for file in files]
    additions.append(CommitOperationAdd("README.md", card.encode()))
    api = HfApi()
    try:
        api.create_repo(config.repo, private=config.private or None, exist_ok=True)
        commit = api.create_commit(config.repo, additions, commit_message=f"Upload {config.directory.resolve().name}")
    except OfflineModeIsEnabled as error:
        raise InputError("push: HF_HUB_OFFLINE is set; unset it to reach the hub") from error
    except (HfHubHTTPError, ValueError, OSError) as error:
        hint = "; sign in with `hf auth login`" if "401" in str(error) or "403" in str(error) else ""
        raise RunError(f"{config.repo}: the hub refused ({one_line(error, 300)}){hint}") from error
    console.print(f"pushed: {commit.commit_url}", markup=False, soft_wrap=True)
    return str(commit.commit_url)
