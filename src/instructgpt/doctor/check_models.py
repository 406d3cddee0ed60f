"""Models and their data: what the files of a stage say about how it was trained and what it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from instructgpt.doctor.base import Finding, Patient
from instructgpt.errors import BadInput
from instructgpt.models.reward_model import recorded_offset
from instructgpt.records import Ranking, Skipped, read_records
from instructgpt.run.directory import content_hash
from instructgpt.statistics.agreement import agreement

OFFSET_ROUNDING = 1e-3
NEAR_LENGTH, CHANCE = 0.02, 0.55
MANY_TIES, LOW_AGREEMENT = 0.5, 0.6
WORSE = 1.05


def examine_reward(patient: Patient, folder: Path) -> Iterator[Finding]:
    """Accuracy against its baselines, the offset, and the rankings it was trained on."""
    measured = patient.info.get("validation")
    if isinstance(measured, Mapping):
        yield from accuracy(patient, measured)
        yield from offset(patient, folder, measured)
    for file in patient.told("data") or ():
        yield from rankings(patient, Path(file))


def accuracy(patient: Patient, measured: Mapping[str, float]) -> Iterator[Finding]:
    """A reward model must beat a coin and the length of the completions."""
    right, longer = measured.get("validation/accuracy"), measured.get("validation/length_baseline")
    if right is None:
        return
    if right < CHANCE:
        yield patient.bad(
            f"the reward model is right about {100 * right:.1f} % of pairs, a coin about 50 %",
            "PPO against it learns noise: more rankings, labelers who agree, a larger or better --base, or another --lr",
        )
    if longer is not None and right < max(longer, 1 - longer) + NEAR_LENGTH:
        which = "longer" if longer >= 0.5 else "shorter"
        yield patient.bad(
            f"the reward model is right about {100 * right:.1f} % of pairs; taking the {which} completion is right about "
            f"{100 * max(longer, 1 - longer):.1f} %",
            "it may have learned nothing but length: see accuracy among pairs of like length, and collect such pairs",
        )


def offset(patient: Patient, folder: Path, measured: Mapping[str, float]) -> Iterator[Finding]:
    """The offset stored with the weights is the one that was measured."""
    stored = recorded_offset(folder)
    if stored is None:
        yield patient.bad(
            "the directory holds no offset",
            "its weights were saved by something else, which lost their metadata; copy the old file back, or make the reward model again",
        )
    elif "offset" in measured and abs(stored - measured["offset"]) > OFFSET_ROUNDING * max(1.0, abs(stored)):
        yield patient.bad(
            f"the stored offset is {stored:.4f}, the one measured after training {measured['offset']:.4f}",
            "stale: weights and config.json are of different runs; make the reward model again",
        )


def rankings(patient: Patient, file: Path) -> Iterator[Finding]:
    """Ties and agreement in the rankings: what the labelers do not know, no model can learn."""
    try:
        found = read_records(Ranking, file, Skipped())
    except BadInput:
        return  # moved or gone: `lineage` says so
    pairs = sum(len(ranking.ranks) * (len(ranking.ranks) - 1) // 2 for ranking in found)
    tied = 1 - sum(len(ranking.pairs()) for ranking in found) / pairs
    if tied > MANY_TIES:
        yield patient.notice(
            f"{100 * tied:.0f} % of the pairs in {file.name} are ties",
            "ties give the loss nothing: show labelers completions that differ more (several models, a higher temperature)",
        )
    agreed = agreement(found).decided.value
    if agreed is not None and agreed < LOW_AGREEMENT:
        yield patient.notice(
            f"two labelers order a pair in {file.name} alike in {100 * agreed:.0f} % of cases (the paper: 73 %)",
            "no reward model gets far beyond that: write clearer instructions, and look at single labelers on the site's quality page",
        )


def examine_sft(patient: Patient) -> Iterator[Finding]:
    """The last epochs against the best one."""
    losses = patient.course.values("loss/validation")
    if len(losses) > 1 and min(losses) == losses[-1] and losses[-2] > WORSE * losses[-1]:
        yield patient.notice(
            f"validation loss was still falling at the last epoch ({losses[-2]:.3f} to {losses[-1]:.3f})",
            "train for more --epochs",
        )


def lineage(patient: Patient, hash_of: Callable[[Path], str] = content_hash) -> Iterator[Finding]:
    """What a stage was made from is still what it was."""
    parents = patient.info.get("parents")
    for name, parent in parents.items() if isinstance(parents, Mapping) else ():
        path, known = Path(str(parent.get("path", ""))), str(parent.get("sha256", ""))
        if path.exists() and hash_of(path) != known:
            yield patient.notice(
                f"its {name}, {path}, has changed since",
                "results of the two do not belong together: make this stage again into another --out, or bring the old file back",
            )


def tokenizers(patient: Patient) -> Iterator[Finding]:
    """Policy and reward model may have different tokenizers, since completions are decoded and rendered again; one should know."""
    policy, reward = (vocabulary(Path(str(patient.told(name) or ""))) for name in ("policy", "reward"))
    if policy is not None and reward is not None and policy != reward:
        yield patient.notice(
            "policy and reward model have different tokenizers",
            "completions are decoded and rendered again for the reward model, which is slower; the value model reads its tokens too",
        )


def vocabulary(folder: Path) -> dict[str, int] | list[list[object]] | None:
    """The vocabulary in a directory's tokenizer.json; None where there is none."""
    try:
        found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict | list) else None
