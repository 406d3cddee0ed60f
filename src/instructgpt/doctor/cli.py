"""`doctor`: diagnose a run or one stage of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from instructgpt.doctor import check_models, check_ppo
from instructgpt.doctor.base import Diagnosis, MetricHistory, StageReport
from instructgpt.errors import InputError
from instructgpt.report.inputs import finite_numbers
from instructgpt.run.configs import DoctorConfig
from instructgpt.run.directory import console, content_hash, read_jsonl_log, read_run_record
from instructgpt.run.rounds import iter_stage_directories, stage_label


def main(config: DoctorConfig) -> list[Diagnosis]:
    """Examine every stage, print the diagnoses, worst first, and return them.

    Raises:
        InputError: no stage in the directory, or a run.json is damaged.
    """
    folders = find_stage_directories(config.run)
    diagnoses = sorted(
        (diagnosis for folder in folders for diagnosis in diagnose_stage(folder)),
        key=lambda diagnosis: diagnosis.severity != "bad",
    )
    for diagnosis in diagnoses:
        color = "red" if diagnosis.severity == "bad" else "yellow"
        console.print(
            f"[{color}]{diagnosis.severity}[/] [bold]{escape(diagnosis.stage)}[/] {escape(diagnosis.message)}",
            soft_wrap=True,
            highlight=False,
        )
        console.print(f"    {escape(diagnosis.remedy)}", soft_wrap=True, highlight=False)
    bad = sum(diagnosis.severity == "bad" for diagnosis in diagnoses)
    summary = f"{bad} bad, {len(diagnoses) - bad} to look at" if diagnoses else "nothing wrong was found"
    console.print(f"{len(folders)} {'stages' if len(folders) > 1 else 'stage'} examined: {summary}")
    return diagnoses


def find_stage_directories(folder: Path) -> list[Path]:
    """Return the stage directories of a run, or the named one. Raises InputError if there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; give a run directory, or that of one stage")
    info = read_run_record(folder)
    if info is not None and info.get("stage") != "run":
        return [folder]
    folders = list(iter_stage_directories(folder))
    if not folders:
        raise InputError(f"{folder}: no stage in it; expected run.json in it or in its directories")
    return folders


def diagnose_stage(folder: Path, hash_of: Callable[[Path], str] = content_hash) -> Iterator[Diagnosis]:
    """Yield the diagnoses of one stage. `hash_of` hashes its parents."""
    info = read_run_record(folder)
    assert info is not None
    rows = tuple(finite_numbers(row) for row in read_jsonl_log(folder / "metrics.jsonl"))
    stage = StageReport(stage_label(folder), info, MetricHistory(rows))
    if not info.get("finished"):
        yield Diagnosis("notice", stage.name, "not finished", "the command that began it goes on where it stands")
    stage_name = info.get("stage")
    if stage_name == "ppo":
        yield from check_ppo.diagnose_ppo(stage, _read_utility_curve(folder))
        yield from check_models.check_tokenizers(stage)
    elif stage_name == "reward":
        yield from check_models.diagnose_reward_model(stage, folder)
    elif stage_name in ("pretrain", "sft"):
        yield from check_models.diagnose_language_model(stage, folder)
    yield from check_models.check_lineage(stage, hash_of)


def _read_utility_curve(folder: Path) -> list[Mapping[str, Any]]:
    path = folder.parent / "evaluation" / "over_optimisation.jsonl"
    return [row for row in read_jsonl_log(path) if row.get("model") == folder.name]
