"""Where an evaluation's data is: in a folder under a usual name, in a file of its own, in a saved data set, or on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.errors import BadInput
from instructgpt.evaluate.tasks.base import Evaluation
from instructgpt.evaluate.tasks.loading import SUFFIXES


def named_sources(data: Sequence[str], option: str = "data") -> tuple[list[Path], dict[str, Path]]:
    """What was given as `--data` (or another option): folders and files, and the sources of single evaluations, given as NAME=SOURCE.

    Raises:
        BadInput: a folder or file is not there, or an evaluation has two sources.
    """
    places: list[Path] = []
    named: dict[str, Path] = {}
    for said in data:
        name, equals, source = said.partition("=")
        if not equals or "/" in name:
            if not Path(said).exists():
                raise BadInput(f"--{option} {said}: no such file or folder")
            places.append(Path(said))
        elif name in named:
            raise BadInput(f"--{option} {said}: {name} has a source already: {named[name]}")
        else:
            named[name] = Path(source)
    return places, named


def source_of(evaluation: Evaluation, places: Sequence[Path], named: dict[str, Path], count: int) -> Path | None:
    """The data of an evaluation, or None where it is nowhere.

    Args:
        places: folders, of which the first that holds it counts; or the file itself, where there is but one evaluation.
        count: how many evaluations there are.

    Raises:
        BadInput: one file is given for several evaluations.
    """
    if evaluation.name in named:
        return named[evaluation.name]
    for place in places:
        if place.is_file():
            if count > 1:
                raise BadInput(
                    f"--data {place}: one file for {count} evaluations; give the folder that holds {evaluation.file} and the others, "
                    f"or {evaluation.name}={place}"
                )
            return place
        if (place / "dataset_dict.json").exists() or (place / "dataset_info.json").exists():
            return place if count == 1 else None
        stem = stem_of(evaluation.file)
        for name in (evaluation.file, *(stem + suffix for suffix in SUFFIXES), stem):
            if (place / name).exists():
                return place / name
    return None


def stem_of(name: str) -> str:
    """`squad_v2_dev_half.jsonl.gz` -> `squad_v2_dev_half`."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
