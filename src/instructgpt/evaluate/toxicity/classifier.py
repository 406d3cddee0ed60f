"""How toxic a text is, by our own small scorer: n-grams in a logistic regression, trained on texts whose toxicity is known.

    instructgpt judge toxicity --data scored_texts.jsonl --out runs/toxicity

It is trained on soft labels, such as the Perspective API's scores that RealToxicityPrompts was released with, runs offline in
milliseconds, and is a directory of plain numbers (safetensors and JSON). A text in which there is nothing to read gets no
score: NaN, never 0. Scores of different scorers cannot be compared, so name and hash of the scorer stand beside every result.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import load_file, save_file
from scipy import optimize, sparse, special, stats

from instructgpt.config import WITHOUT_TRAINING, StageConfig
from instructgpt.errors import BadInput
from instructgpt.evaluate.metrics.toxicity import TOXIC
from instructgpt.records import Record, Skipped, read_all
from instructgpt.run.directory import Run
from instructgpt.run.lineage import by_name, content_hash

Floats = NDArray[np.float64]

KIND = "toxicity n-grams 1"
"""What a scorer's directory is; the number changes when the features do."""
BITS = 18
"""Features are hashed into 2^BITS places; with 2^20 it is no better."""
SHORTEST, LONGEST = 2, 5
"""Characters of the n-grams inside a word, its edges counted."""
FOLDS = 5


class ToxicText(Record):
    """A text with its known toxicity, 0 to 1."""

    text: str
    toxicity: float = Field(ge=0, le=1, allow_inf_nan=False)


class ToxicityConfig(StageConfig):
    """A toxicity scorer from texts whose toxicity is known."""

    stage: ClassVar[str] = "toxicity"
    lacks: ClassVar[frozenset[str]] = WITHOUT_TRAINING

    data: tuple[Path, ...] = Field(description="texts with their toxicity: `text`, `toxicity` (0 to 1)")
    l2: float = Field(2e-5, gt=0, description="strength of the penalty on large weights")
    skip_bad: bool = Field(False, description="leave out bad lines and count them, instead of stopping at the first")


@dataclass(frozen=True, slots=True)
class ToxicityScorer:
    """A trained scorer. `weights` and `rarity` have a number for each place of a feature: (2^BITS,)."""

    weights: Floats
    rarity: Floats
    bias: float
    name: str = KIND
    sha256: str = ""

    @property
    def identity(self) -> str:
        """Name, version and hash; without a hash where it was not read from a directory."""
        return f"{self.name} sha256:{self.sha256[:16]}" if self.sha256 else self.name

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The toxicity of each text, 0 to 1; NaN for a text without a word in it."""
        counts = count_features(texts)
        scores = special.expit(weighed(counts, self.rarity) @ self.weights + self.bias)
        empty = np.diff(counts.indptr) == 0
        return [math.nan if nothing else float(score) for score, nothing in zip(scores, empty, strict=True)]

    @classmethod
    def load(cls, folder: Path) -> ToxicityScorer:
        """A scorer from its directory. Raises BadInput where it holds something else."""
        try:
            config = json.loads((folder / "scorer.json").read_text(encoding="utf-8"))
            numbers = load_file(folder / "model.safetensors")
            if config["kind"] != KIND:
                raise BadInput(f"{folder}: holds '{config['kind']}', this version reads '{KIND}'; train it again")
            weights, rarity = (numbers[name].double().numpy() for name in ("weights", "rarity"))
            return cls(weights, rarity, float(config["bias"]), KIND, content_hash(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{folder}: not a toxicity scorer ({error}); train one with 'instructgpt judge toxicity'") from error

    def save(self, folder: Path) -> None:
        """Write the directory that `load` reads."""
        numbers = {name: torch.from_numpy(getattr(self, name)).float() for name in ("weights", "rarity")}
        save_file(numbers, folder / "model.safetensors")
        (folder / "scorer.json").write_text(json.dumps({"kind": KIND, "bias": self.bias}, indent=2) + "\n", encoding="utf-8")


def features(text: str) -> list[str]:
    """Words, pairs of words, and the pieces of each word, so that `id1ot` and `idioooot` still look like what they are."""
    plain = re.sub(r"(.)\1{2,}", r"\1\1", text.lower().replace("’", "'"))
    words = re.findall(r"[\w'*@$#]*\w[\w'*@$#]*", plain)
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    edged = [f"<{word}>" for word in words]
    pieces = [word[i : i + size] for word in edged for size in range(SHORTEST, LONGEST + 1) for i in range(len(word) - size + 1)]
    return [f"w{word}" for word in words] + [f"p{pair}" for pair in pairs] + [f"c{piece}" for piece in pieces]


def count_features(texts: Sequence[str]) -> sparse.csr_array:
    """1 + log(count) of every feature, at its hashed place: (texts, 2^BITS)."""
    starts, places, values = [0], [], []
    for text in texts:
        counted = Counter(zlib.crc32(feature.encode()) % 2**BITS for feature in features(text))
        places += list(counted)
        values += [1 + math.log(count) for count in counted.values()]
        starts.append(len(places))
    parts = (np.asarray(values, np.float64), np.asarray(places, np.int64), np.asarray(starts, np.int64))
    return sparse.csr_array(parts, shape=(len(texts), 2**BITS))


def weighed(counts: sparse.csr_array, rarity: Floats) -> sparse.csr_array:
    """Counts weighed by how rare a feature is, every row of length 1."""
    rows = counts @ sparse.diags_array(rarity)
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(lengths, 1e-12)) @ rows)


def train(counts: sparse.csr_array, toxicity: Floats, l2: float) -> ToxicityScorer:
    """Logistic regression on soft labels: the mean cross-entropy plus l2/2 |w|², minimised by L-BFGS from zero.

    Args:
        counts: (N, 2^BITS) from `count_features`; toxicity: (N,), 0 to 1.
    """
    seen = np.asarray((counts > 0).sum(0)).ravel()
    rarity = np.log((1 + counts.shape[0]) / (1 + seen)) + 1
    rows = weighed(counts, rarity)
    columns = sparse.csr_array(rows.T)

    def loss(point: Floats) -> tuple[float, Floats]:
        weights, bias = point[:-1], point[-1]
        z = rows @ weights + bias
        slope = (special.expit(z) - toxicity) / len(toxicity)
        value = float(np.mean(np.logaddexp(0, z) - toxicity * z) + l2 / 2 * weights @ weights)
        return value, np.append(columns @ slope + l2 * weights, slope.sum())

    found = optimize.minimize(loss, np.zeros(counts.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return ToxicityScorer(
        found.x[:-1].astype(np.float32).astype(np.float64), rarity.astype(np.float32).astype(np.float64), float(found.x[-1])
    )


def fold_of(text: str) -> int:
    """Which of FOLDS a text belongs to: by a hash of its letters, so that one text in two writings never crosses."""
    return zlib.crc32(" ".join(text.lower().split()).encode()) % FOLDS


def validate(texts: Sequence[str], toxicity: Floats, l2: float) -> dict[str, float]:
    """Every text scored by a scorer that has not seen it, in FOLDS folds: AUC at 0.5, Spearman, errors."""
    counts, folds = count_features(texts), np.array([fold_of(text) for text in texts])
    scores = np.empty(len(texts))
    for fold in range(FOLDS):
        scorer = train(counts[np.flatnonzero(folds != fold)], toxicity[folds != fold], l2)
        scores[folds == fold] = special.expit(weighed(counts[np.flatnonzero(folds == fold)], scorer.rarity) @ scorer.weights + scorer.bias)
    toxic = toxicity >= TOXIC
    return {
        "auc": area_under_curve(scores[toxic], scores[~toxic]),
        "spearman": float(stats.spearmanr(scores, toxicity).statistic),
        "mean_absolute_error": float(np.abs(scores - toxicity).mean()),
        "mean_error": float((scores - toxicity).mean()),
    }


def area_under_curve(toxic: Floats, harmless: Floats) -> float:
    """The chance that a toxic text scores above a harmless one, ties counting half (Mann and Whitney)."""
    above = stats.mannwhitneyu(toxic, harmless).statistic
    return float(above / (len(toxic) * len(harmless)))


def main(config: ToxicityConfig) -> Path:
    """Cross-validate, train on everything, and write the scorer. Returns its directory.

    Raises:
        BadInput: a line is wrong, or there are too few toxic or harmless texts to tell them apart.
    """
    run = Run.start(config, by_name(data=config.data))
    if run.finished:
        run.say(f"already finished: {config.out}")
        return config.out
    skipped = Skipped(config.skip_bad)
    rows = read_all(ToxicText, config.data, skipped)
    texts, toxicity = [row.text for row in rows], np.array([row.toxicity for row in rows])
    folds = np.array([fold_of(text) for text in texts])
    for fold in range(FOLDS):
        inside = toxicity[folds != fold] >= TOXIC
        if not 0 < inside.sum() < len(inside) or not (folds == fold).any():
            raise BadInput(f"--data: {len(rows)} texts, {int((toxicity >= TOXIC).sum())} of them toxic, are too few for {FOLDS} folds")
    run.begin()
    measured = validate(texts, toxicity, config.l2)
    run.log(1, 1, {f"validation/{name}": value for name, value in measured.items()}, (f"validation/{name}" for name in measured))
    scorer = train(count_features(texts), toxicity, config.l2)
    return run.finish(scorer.save, validation=measured, texts=len(texts), left_out={"bad lines": len(skipped.reasons) if skipped else 0})
