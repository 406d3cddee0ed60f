"""Checks of models and data from a stage's files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from instructgpt.doctor.base import Diagnosis, StageReport
from instructgpt.errors import InputError
from instructgpt.models.reward_model import read_score_offset
from instructgpt.records import Ranking, SkippedLines, read_records
from instructgpt.run.directory import content_hash
from instructgpt.statistics.agreement import inter_labeler_agreement
from instructgpt.train.alarms import LOSS_MARGIN

_MAX_OFFSET_ERROR = 1e-3
_MIN_MARGIN_OVER_LENGTH, _MIN_ACCURACY = 0.02, 0.55
_MAX_TIE_RATE, _MIN_AGREEMENT = 0.5, 0.6
_FALLING_LOSS_RATIO = 1.05


def diagnose_reward_model(stage: StageReport, folder: Path) -> Iterator[Diagnosis]:
    """Check accuracy against baselines, the offset, and the training rankings."""
    metrics = stage.info.get("validation")
    if isinstance(metrics, Mapping):
        yield from _check_accuracy(stage, metrics)
        yield from _check_offset(stage, folder, metrics)
    for file in stage.setting("data") or ():
        yield from _check_rankings(stage, Path(file))


def _check_accuracy(stage: StageReport, metrics: Mapping[str, float]) -> Iterator[Diagnosis]:
    """Check that the reward model beats chance and completion length."""
    accuracy, length_baseline = metrics.get("validation/accuracy"), metrics.get("validation/length_baseline")
    if accuracy is None:
        return
    if accuracy < _MIN_ACCURACY:
        yield stage.error(
            f"the reward model is right about {100 * accuracy:.1f} % of pairs, a coin about 50 %",
            "PPO against it learns noise: more rankings, labelers who agree, a larger or better --base, or another "
            "--lr",
        )
    if length_baseline is not None and accuracy < max(length_baseline, 1 - length_baseline) + _MIN_MARGIN_OVER_LENGTH:
        preferred_length = "longer" if length_baseline >= 0.5 else "shorter"
        yield stage.error(
            f"the reward model is right about {100 * accuracy:.1f} % of pairs; taking the {preferred_length} "
            "completion is right about "
            f"{100 * max(length_baseline, 1 - length_baseline):.1f} %",
            "it may have learned nothing but length: see accuracy among pairs of like length, and collect such pairs",
        )


def _check_offset(stage: StageReport, folder: Path, metrics: Mapping[str, float]) -> Iterator[Diagnosis]:
    """Check that the offset stored with the weights is the measured one."""
    stored = read_score_offset(folder)
    if stored is None:
        yield stage.warning(
            "the weights record no offset",
            "they were saved by something else, which lost their metadata; the offset of config.json counts. Stock "
            "tools that rewrite config.json would lose it too",
        )
    elif "offset" in metrics and abs(stored - metrics["offset"]) > _MAX_OFFSET_ERROR * max(1.0, abs(stored)):
        yield stage.error(
            f"the stored offset is {stored:.4f}, the one measured after training {metrics['offset']:.4f}",
            "stale: weights and config.json are of different runs; make the reward model again",
        )


def _check_rankings(stage: StageReport, file: Path) -> Iterator[Diagnosis]:
    """Check ties and agreement: disagreement of labelers bounds any model."""
    try:
        records = read_records(Ranking, file, SkippedLines())
    except InputError:
        return  # moved or gone: `lineage` says so
    pairs = sum(len(ranking.ranks) * (len(ranking.ranks) - 1) // 2 for ranking in records)
    tie_rate = 1 - sum(len(ranking.pairs()) for ranking in records) / pairs
    if tie_rate > _MAX_TIE_RATE:
        yield stage.warning(
            f"{100 * tie_rate:.0f} % of the pairs in {file.name} are ties",
            "ties give the loss nothing: show labelers completions that differ more (several models, a higher "
            "temperature)",
        )
    agreement_rate = inter_labeler_agreement(records).decided.value
    if agreement_rate is not None and agreement_rate < _MIN_AGREEMENT:
        yield stage.warning(
            f"two labelers order a pair in {file.name} alike in {100 * agreement_rate:.0f} % of cases (the paper: 73 "
            "%)",
            "no reward model gets far beyond that: write clearer instructions, and look at single labelers on the "
            "site's quality page",
        )


def diagnose_language_model(stage: StageReport, folder: Path) -> Iterator[Diagnosis]:
    """Check that the loss of `pretrain` or `sft` is not worse than a uniform guess, and has stopped falling."""
    vocab_size = stage.info.get("vocab_size") or _read_vocab_size(folder)
    for metric in ("loss/train", "loss/validation"):
        first, last = stage.history.first(metric), stage.history.last(metric)
        if vocab_size and first is not None and last is not None:
            limit = max(math.log(vocab_size), min(first, math.log(vocab_size) + LOSS_MARGIN)) + LOSS_MARGIN
            if last > limit:
                yield stage.error(
                    f"{metric} is {last:.4g} nats per token; a uniform guess over {vocab_size} tokens has "
                    f"{math.log(vocab_size):.2f}",
                    "training has diverged: lower --lr, and do not use this model",
                )
                return
    losses = stage.history.values("loss/validation")
    if (
        stage.info.get("stage") == "sft"
        and len(losses) > 1
        and min(losses) == losses[-1]
        and losses[-2] > _FALLING_LOSS_RATIO * losses[-1]
    ):
        yield stage.warning(
            f"validation loss was still falling at the last epoch ({losses[-2]:.3f} to {losses[-1]:.3f})",
            "train for more --epochs",
        )


def check_lineage(stage: StageReport, hash_of: Callable[[Path], str] = content_hash) -> Iterator[Diagnosis]:
    """Check that the parents have not changed since."""
    parents = stage.info.get("parents")
    for name, parent in parents.items() if isinstance(parents, Mapping) else ():
        path, recorded_hash = Path(str(parent.get("path", ""))), str(parent.get("sha256", ""))
        if path.exists() and hash_of(path) != recorded_hash:
            yield stage.warning(
                f"its {name}, {path}, has changed since",
                "results of the two do not belong together: make this stage again into another --out, or bring the old "
                "file back",
            )


def check_tokenizers(stage: StageReport) -> Iterator[Diagnosis]:
    """Report different tokenizers of policy and reward models: completions are decoded and tokenized again."""
    policy, sources = _read_vocabulary(Path(str(stage.setting("policy") or ""))), stage.setting("reward") or ()
    for source in (sources,) if isinstance(sources, str) else sources:
        reward = _read_vocabulary(Path(str(source)))
        if policy is not None and reward is not None and policy != reward:
            yield stage.warning(
                f"policy and reward model {Path(str(source)).name} have different tokenizers",
                "completions are decoded and rendered again for the reward model, which is slower, and it cannot be "
                "the start of the value model",
            )


def _read_vocab_size(folder: Path) -> int | None:
    """Return the vocabulary of a finished model; of its text part where the configuration is nested."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("vocab_size") or config["text_config"]["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_vocabulary(folder: Path) -> dict[str, int] | list[list[object]] | None:
    try:
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return vocabulary if isinstance(vocabulary, dict | list) else None
