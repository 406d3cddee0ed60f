"""`doctor`: what is wrong with a run or with one stage of it, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from rich.markup import escape

from instructgpt.config import Options
from instructgpt.doctor import check_models, check_ppo
from instructgpt.doctor.base import Course, Finding, Patient
from instructgpt.errors import BadInput
from instructgpt.report.inputs import finite
from instructgpt.run.directory import console, content_hash, read_logged, read_record


class DoctorConfig(Options):
    """What to examine."""

    stage: ClassVar[str] = "doctor"

    run: Path = Field(description="a run directory, or the directory of one stage")


def main(config: DoctorConfig) -> list[Finding]:
    """Examine every stage, print what is wrong, the worst first, and give it back.

    Raises:
        BadInput: there is no stage in the directory, or a run.json is damaged.
    """
    folders = stages(config.run)
    found = sorted((finding for folder in folders for finding in examine(folder)), key=lambda finding: finding.weight != "bad")
    for finding in found:
        colour = "red" if finding.weight == "bad" else "yellow"
        console.print(
            f"[{colour}]{finding.weight}[/] [bold]{escape(finding.where)}[/] {escape(finding.what)}", soft_wrap=True, highlight=False
        )
        console.print(f"    {escape(finding.mend)}", soft_wrap=True, highlight=False)
    bad = sum(finding.weight == "bad" for finding in found)
    said = f"{bad} bad, {len(found) - bad} to look at" if found else "nothing wrong was found"
    console.print(f"{len(folders)} {'stages' if len(folders) > 1 else 'stage'} examined: {said}")
    return found


def stages(folder: Path) -> list[Path]:
    """The stage directories in a run directory, or the one that was named. Raises BadInput where there is none."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such directory; give a run directory, or that of one stage")
    info = read_record(folder)
    if info is not None and info.get("stage") != "run":
        return [folder]
    found = sorted(file.parent for file in folder.glob("*/run.json"))
    if not found:
        raise BadInput(f"{folder}: no stage in it; expected run.json in it or in its directories")
    return found


def examine(folder: Path, hash_of: Callable[[Path], str] = content_hash) -> Iterator[Finding]:
    """Everything one stage's files say. `hash_of` reads what it was made from, as `run.content_hash` does."""
    info = read_record(folder)
    assert info is not None
    rows = tuple(finite(row) for row in read_logged(folder / "metrics.jsonl"))
    patient = Patient(folder.name, info, Course(rows))
    if not info.get("finished"):
        yield Finding("notice", folder.name, "not finished", "the command that began it goes on where it stands")
    kind = info.get("stage")
    if kind == "ppo":
        yield from check_ppo.examine_policy(patient, truth_of(folder))
        yield from check_models.tokenizers(patient)
    elif kind == "reward":
        yield from check_models.examine_reward(patient, folder)
    elif kind == "sft":
        yield from check_models.examine_sft(patient)
    yield from check_models.lineage(patient, hash_of)


def truth_of(folder: Path) -> list[Mapping[str, Any]]:
    """The true utility over a policy's updates, where the small world has recorded it."""
    curve = folder.parent / "evaluation" / "over_optimisation.jsonl"
    return [row for row in read_logged(curve) if row.get("model") == folder.name]
