"""What a run cost: FLOPs, hours, energy and money of each stage, and the labels that people made."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from instructgpt.config import did_you_mean
from instructgpt.errors import InputError, one_line
from instructgpt.io import iter_rows, write_text_atomic
from instructgpt.run.directory import read_run_record

PFS_DAY = 8.64e19
"""FLOPs of a petaflop/s-day."""
PAPER_PFS_DAYS = {"SFT": 4.9, "PPO-ptx": 60.0, "pretraining (GPT-3)": 3640.0}
"""The paper's training compute at 175B, in petaflop/s-days (section 5.1)."""
PRETRAINING_STAGE = "pretrain"
_SKIPPED_FOLDERS = {"checkpoints", "policies", "evaluation", "world", "site"}
_UNTRAINED_STAGES = {"run"}
_UNWRITTEN = ("path", "labeler_names")
"""Of the cost of labels, what `cost.json` leaves out: people's names and places on this machine."""


@dataclass(frozen=True, slots=True)
class PriceList:
    """A user's prices, in one currency. None leaves that part of the bill out."""

    currency: str = ""
    machine_hour: float | None = None  # of a stage without a GPU
    gpu_hour: float | None = None
    kwh: float | None = None
    labeler_hour: float | None = None

    @classmethod
    def read(cls, path: Path) -> PriceList:
        """Read a YAML file of prices.

        Raises:
            InputError: it cannot be read, or has an unknown or impossible entry.
        """
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"--prices {path}: cannot be read ({one_line(error)})") from error
        names = [entry.name for entry in fields(cls)]
        if not isinstance(values, dict):
            raise InputError(f"--prices {path}: expected lines 'name: number' with {', '.join(names)}")
        for name, value in values.items():
            if name not in names:
                raise InputError(f"--prices {path}: no price '{name}'{did_you_mean(str(name), names)}")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "currency" and not (is_number and math.isfinite(value) and value >= 0):
                raise InputError(f"--prices {path}: {name} is {value}, expected a number from 0 on")
        prices = {name: float(value) for name, value in values.items() if name != "currency"}
        return cls(str(values.get("currency", "")), **prices)


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage. None where it was not measured."""

    name: str
    stage: str
    flops: float | None
    flops_done: float | None
    seconds: float
    gpu_seconds: float
    energy_kwh: float | None
    is_energy_estimated: bool = False
    money: float | None = None
    finished: bool = True


@dataclass(frozen=True, slots=True)
class LabelCost:
    """Labels of one file."""

    name: str
    records: int
    pairs: int  # completions of one ranking with different ranks
    labelers: int
    active_minutes: float | None  # None where no record has its time
    timed_records: int = 0
    money: float | None = None
    path: str = ""
    labeler_names: frozenset[str] = frozenset()  # never written


@dataclass(frozen=True, slots=True)
class RunCost:
    """The whole bill."""

    stages: list[StageCost]
    labels: list[LabelCost] = field(default_factory=list)
    currency: str = ""

    def sum_flops(self, *, pretraining: bool) -> float | None:
        """Return the FLOPs of pretraining, or of all other stages; None where one of them was not counted."""
        flops = [stage.flops for stage in self.stages if (stage.stage == PRETRAINING_STAGE) == pretraining]
        return None if not flops or None in flops else math.fsum(number for number in flops if number is not None)

    @property
    def share_of_pretraining(self) -> float | None:
        """FLOPs of alignment for one FLOP of pretraining."""
        pretraining, alignment = self.sum_flops(pretraining=True), self.sum_flops(pretraining=False)
        return alignment / pretraining if pretraining and alignment is not None else None

    def to_json(self) -> dict[str, Any]:
        labels = [
            {key: value for key, value in asdict(label).items() if key not in _UNWRITTEN} for label in self.labels
        ]
        return asdict(self) | {"labels": labels, "share_of_pretraining": self.share_of_pretraining}


def read_cost(
    runs: Sequence[Path], labels: Sequence[Path] = (), prices: PriceList | None = None, watts: float | None = None
) -> RunCost:
    """Read what runs cost from their records, and labels from files of a site's export.

    Args:
        runs: run directories, or directories of stages.
        labels: files or folders of demonstrations and rankings; by default those that the stages were trained on.
        prices: what a unit costs.
        watts: power that is taken where no counter measured the energy.

    Raises:
        InputError: a directory holds no run, or a file cannot be read.
    """
    prices = prices or PriceList()
    records = [record for run in runs for record in _read_records(run, runs)]
    stages = [_stage_cost(name, record, prices, watts) for name, record in records]
    sources = list(labels) or _find_label_files(record for _, record in records)
    counted = [cost for source in sources for cost in _count_labels(source, prices)]
    return RunCost(stages, counted, prices.currency)


def _read_records(run: Path, runs: Sequence[Path]) -> list[tuple[str, dict[str, Any]]]:
    """Return name and record of every stage in a directory, in the order of the paper's steps.

    Raises:
        InputError: there is none.
    """
    entries = [(f"{run.name}/{name}" if len(runs) > 1 else name, record) for name, record in _iter_records(run)]
    if not entries:
        raise InputError(f"{run}: no run.json of a stage in it; give a run directory, or the directory of a stage")
    order = ["pretrain", "sft", "reward", "ppo", "dpo"]
    rank = {stage: place for place, stage in enumerate(order)}
    return sorted(entries, key=lambda entry: (entry[0].count("/"), rank.get(entry[1]["stage"], len(order))))


def _iter_records(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and record of every stage in a directory, each once, also where it is linked."""
    visited: set[Path] = set()
    for folder, subfolders, files in os.walk(run, followlinks=True):
        path = Path(folder)
        if path.resolve() in visited:
            subfolders.clear()
            continue
        visited.add(path.resolve())
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS and name[0] != ".")
        record = read_run_record(path) if "run.json" in files else None
        if record is not None and record.get("stage") not in _UNTRAINED_STAGES:
            yield (path.relative_to(run).as_posix() if path != run else run.name), record


def _stage_cost(name: str, record: Mapping[str, Any], prices: PriceList, watts: float | None) -> StageCost:
    seconds, gpu_seconds = float(record.get("seconds", 0)), float(record.get("gpu_seconds") or 0)
    energy, is_estimated = record.get("energy_kwh"), False
    if energy is None and watts is not None:
        energy, is_estimated = watts * max(seconds, gpu_seconds) / 3.6e6, True
    parts = [
        (prices.gpu_hour, gpu_seconds / 3600 if gpu_seconds else None),
        (prices.machine_hour, None if gpu_seconds else seconds / 3600),
        (prices.kwh, energy),
    ]
    bills = [price * amount for price, amount in parts if price is not None and amount is not None]
    return StageCost(
        name,
        str(record["stage"]),
        record.get("flops"),
        record.get("flops_done"),
        seconds,
        gpu_seconds,
        energy,
        is_estimated,
        math.fsum(bills) if bills else None,
        bool(record.get("finished")),
    )


# --- labels ----------------------------------------------------------------------------------------------------------


def _find_label_files(records: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Return the files of people's work that the stages were trained on, each once."""
    files = [
        Path(parent["path"]).resolve()  # stages of a sweep read one file by several links
        for record in records
        if record["stage"] in ("sft", "reward", "dpo")
        for name, parent in record["parents"].items()
        if name.partition(" ")[0] == "data"
    ]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def _count_labels(source: Path, prices: PriceList) -> Iterator[LabelCost]:
    """Yield the costs of the files in a folder, or of one file."""
    files = [source]
    if source.is_dir():
        files = [file for name in ("demonstrations", "rankings") for file in sorted(source.glob(f"{name}.*"))]
        if not files:
            raise InputError(f"--labels {source}: no demonstrations or rankings in it; give a folder of 'label export'")
    for file in files:
        yield count_label_file(file, prices.labeler_hour)


def count_label_file(file: Path, labeler_hour: float | None = None) -> LabelCost:
    """Count demonstrations or rankings, decided pairs, labelers, active minutes and pay.

    Raises:
        InputError: the file cannot be read.
    """
    records = pairs = timed_records = 0
    labelers, milliseconds = set[str](), 0
    for _, row in iter_rows(file):
        records += 1
        ranks = row.get("ranks")
        pairs += count_decided_pairs(ranks) if isinstance(ranks, list) else int("chosen" in row and "rejected" in row)
        if row.get("labeler") is not None:
            labelers.add(str(row["labeler"]))
        if isinstance(row.get("active_ms"), int | float):
            timed_records, milliseconds = timed_records + 1, milliseconds + row["active_ms"]
    minutes = milliseconds / 60_000 if timed_records else None
    pay = None if minutes is None or labeler_hour is None else minutes / 60 * labeler_hour
    return LabelCost(
        file.name.partition(".")[0],
        records,
        pairs,
        len(labelers),
        minutes,
        timed_records,
        pay,
        str(file.resolve()),
        frozenset(labelers),
    )


def count_decided_pairs(ranks: Sequence[int]) -> int:
    """Return the pairs of completions with different ranks."""
    ties = sum(math.comb(count, 2) for count in Counter(ranks).values())
    return math.comb(len(ranks), 2) - ties


COST_FILE = "cost.json"


def write_cost(run: Path, cost: RunCost) -> None:
    """Write cost.json into a run directory, from which its report takes money and labels."""
    write_text_atomic(run / COST_FILE, json.dumps(cost.to_json(), indent=2, ensure_ascii=False) + "\n")


def read_cost_file(run: Path) -> RunCost | None:
    """Return the cost that was written into a run directory, or None. Raise InputError if it is corrupt."""
    path = run / COST_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        stages, labels = values["stages"], values["labels"]
        return RunCost([StageCost(**row) for row in stages], [LabelCost(**row) for row in labels], values["currency"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: corrupt ({one_line(error)}); write it again with 'instructgpt cost'") from error


def read_report_cost(run: Path) -> RunCost | None:
    """Return what the report of a run shows: the stages as they are now, with the prices and labels of cost.json."""
    try:
        cost = read_cost([run])
    except InputError:
        return None  # no stage, or a damaged record or file: the rest of the page does without
    cost_file = read_cost_file(run)
    if cost_file is None:
        return cost
    by_name = {stage.name: stage for stage in cost_file.stages}
    stages = [
        by_name[stage.name] if stage.name in by_name and by_name[stage.name].flops == stage.flops else stage
        for stage in cost.stages
    ]
    return RunCost(stages, cost_file.labels, cost_file.currency)
