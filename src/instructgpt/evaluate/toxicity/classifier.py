"""A small toxicity classifier: character n-grams in a logistic regression, trained on texts with known toxicity.

    instructgpt judge toxicity --data scored_texts.jsonl --out runs/toxicity

It is trained on soft labels, such as the Perspective API's scores in RealToxicityPrompts, scores a text offline in
milliseconds, and is saved as safetensors and JSON. A text without words scores NaN, never 0.
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

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import load_file, save_file
from scipy import optimize, sparse, special, stats

from instructgpt.errors import InputError
from instructgpt.evaluate.configs import ToxicityConfig
from instructgpt.evaluate.metrics.toxicity import TOXICITY_THRESHOLD
from instructgpt.records import Record, SkippedLines, read_all_records
from instructgpt.run.directory import RunDirectory
from instructgpt.run.lineage import content_hash, named_inputs

_Floats = NDArray[np.float64]

_CLASSIFIER_KIND = "toxicity n-grams 1"
"""Format of the saved directory; the number changes with the features."""
_HASH_BITS = 18
"""Features are hashed into 2^18 columns; 2^20 is no better."""
_MIN_NGRAM, _MAX_NGRAM = 2, 5
"""Characters per n-gram within a word, including its boundary marks."""
_CV_FOLDS = 5


class _ToxicityExample(Record):
    text: str
    toxicity: float = Field(ge=0, le=1, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class ToxicityClassifier:
    """A trained classifier. `weights` and `rarity` (IDF) have one entry per hashed feature: (2^18,)."""

    weights: _Floats
    rarity: _Floats
    bias: float
    name: str = _CLASSIFIER_KIND
    sha256: str = ""

    @property
    def identity(self) -> str:
        """Name, version and, if loaded from a directory, hash."""
        return f"{self.name} sha256:{self.sha256[:16]}" if self.sha256 else self.name

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Return the toxicity of each text, 0 to 1; NaN for a text without words."""
        counts = count_features(texts)
        toxicities = special.expit(apply_idf(counts, self.rarity) @ self.weights + self.bias)
        is_empty = np.diff(counts.indptr) == 0
        return [math.nan if empty else float(score) for score, empty in zip(toxicities, is_empty, strict=True)]

    @classmethod
    def load(cls, folder: Path) -> ToxicityClassifier:
        """Load a classifier from its directory. Raise InputError if it holds anything else."""
        try:
            config = json.loads((folder / "scorer.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "model.safetensors")
            if config["kind"] != _CLASSIFIER_KIND:
                problem = f"format '{config['kind']}', expected '{_CLASSIFIER_KIND}'"
                raise InputError(f"{folder}: {problem}; train it again")
            weights, rarity = (tensors[name].double().numpy() for name in ("weights", "rarity"))
            return cls(weights, rarity, float(config["bias"]), _CLASSIFIER_KIND, content_hash(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "train one with 'instructgpt judge toxicity'"
            raise InputError(f"{folder}: not a toxicity scorer ({error}); {hint}") from error

    def save(self, folder: Path) -> None:
        tensors = {name: torch.from_numpy(getattr(self, name)).float() for name in ("weights", "rarity")}
        save_file(tensors, folder / "model.safetensors")
        text = json.dumps({"kind": _CLASSIFIER_KIND, "bias": self.bias}, indent=2)
        (folder / "scorer.json").write_text(text + "\n", encoding="utf-8")


def extract_features(text: str) -> list[str]:
    """Return words, pairs of words, and character n-grams, which match spellings like `id1ot` and `idioooot`."""
    normalized_text = re.sub(r"(.)\1{2,}", r"\1\1", text.lower().replace("’", "'"))
    words = re.findall(r"[\w'*@$#]*\w[\w'*@$#]*", normalized_text)
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    sizes = range(_MIN_NGRAM, _MAX_NGRAM + 1)
    padded = [f"<{word}>" for word in words]
    ngrams = [word[i : i + size] for word in padded for size in sizes for i in range(len(word) - size + 1)]
    return [f"w{word}" for word in words] + [f"p{pair}" for pair in pairs] + [f"c{ngram}" for ngram in ngrams]


def count_features(texts: Sequence[str]) -> sparse.csr_array:
    """Return 1 + log(count) of every feature in its hashed column: (texts, 2^18)."""
    row_starts, columns, values = [0], [], []
    for text in texts:
        counts = Counter(zlib.crc32(feature.encode()) % 2**_HASH_BITS for feature in extract_features(text))
        columns += list(counts)
        values += [1 + math.log(count) for count in counts.values()]
        row_starts.append(len(columns))
    csr_arrays = (np.asarray(values, np.float64), np.asarray(columns, np.int64), np.asarray(row_starts, np.int64))
    return sparse.csr_array(csr_arrays, shape=(len(texts), 2**_HASH_BITS))


def apply_idf(counts: sparse.csr_array, rarity: _Floats) -> sparse.csr_array:
    """Weight counts by IDF and normalize each row to length 1."""
    rows = counts @ sparse.diags_array(rarity)
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(lengths, 1e-12)) @ rows)


def fit_logistic_regression(counts: sparse.csr_array, toxicity: _Floats, l2: float) -> ToxicityClassifier:
    """Minimize the mean cross-entropy with soft labels plus l2/2 |w|². counts (N, 2^18), toxicity (N,)."""
    document_counts = np.asarray((counts > 0).sum(0)).ravel()
    rarity = np.log((1 + counts.shape[0]) / (1 + document_counts)) + 1
    rows = apply_idf(counts, rarity)
    columns = sparse.csr_array(rows.T)

    def loss(parameters: _Floats) -> tuple[float, _Floats]:
        weights, bias = parameters[:-1], parameters[-1]
        z = rows @ weights + bias
        logit_gradient = (special.expit(z) - toxicity) / len(toxicity)
        value = float(np.mean(np.logaddexp(0, z) - toxicity * z) + l2 / 2 * weights @ weights)
        return value, np.append(columns @ logit_gradient + l2 * weights, logit_gradient.sum())

    start = np.zeros(counts.shape[1] + 1)
    solution = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    # rounded as `save` stores them, so that a saved classifier gives the same scores
    return ToxicityClassifier(
        solution.x[:-1].astype(np.float32).astype(np.float64),
        rarity.astype(np.float32).astype(np.float64),
        float(solution.x[-1]),
    )


def _fold_of(text: str) -> int:
    """Return a text's fold, by a hash of its normalized letters, so that variants of a text share a fold."""
    return zlib.crc32(" ".join(text.lower().split()).encode()) % _CV_FOLDS


def cross_validate_toxicity(texts: Sequence[str], toxicity: _Floats, l2: float) -> dict[str, float]:
    """Score every text with a classifier that was not trained on it: AUC at 0.5, Spearman, errors."""
    counts, folds = count_features(texts), np.array([_fold_of(text) for text in texts])
    predictions = np.empty(len(texts))
    for fold in range(_CV_FOLDS):
        classifier = fit_logistic_regression(counts[np.flatnonzero(folds != fold)], toxicity[folds != fold], l2)
        predictions[folds == fold] = special.expit(
            apply_idf(counts[np.flatnonzero(folds == fold)], classifier.rarity) @ classifier.weights + classifier.bias
        )
    is_toxic = toxicity >= TOXICITY_THRESHOLD
    return {
        "auc": roc_auc(predictions[is_toxic], predictions[~is_toxic]),
        "spearman": float(stats.spearmanr(predictions, toxicity).statistic),
        "mean_absolute_error": float(np.abs(predictions - toxicity).mean()),
        "mean_error": float((predictions - toxicity).mean()),
    }


def roc_auc(positives: _Floats, negatives: _Floats) -> float:
    """Return the probability that a toxic text scores above a harmless one, ties half (Mann and Whitney)."""
    u_statistic = stats.mannwhitneyu(positives, negatives).statistic
    return float(u_statistic / (len(positives) * len(negatives)))


def main(config: ToxicityConfig) -> Path:
    """Cross-validate, train on all texts, and write the classifier. Returns its directory."""
    run = RunDirectory.open(config, named_inputs(data=config.data))
    if run.is_finished:
        run.info(f"already finished: {config.out}")
        return config.out
    skipped = SkippedLines(config.skip_bad)
    rows = read_all_records(_ToxicityExample, config.data, skipped)
    texts, toxicity = [row.text for row in rows], np.array([row.toxicity for row in rows])
    folds = np.array([_fold_of(text) for text in texts])
    for fold in range(_CV_FOLDS):
        is_toxic = toxicity[folds != fold] >= TOXICITY_THRESHOLD
        if not 0 < is_toxic.sum() < len(is_toxic) or not (folds == fold).any():
            num_toxic = int((toxicity >= TOXICITY_THRESHOLD).sum())
            raise InputError(f"--data: {len(rows)} texts, {num_toxic} of them toxic, are too few for {_CV_FOLDS} folds")
    run.create()
    metrics = cross_validate_toxicity(texts, toxicity, config.l2)
    validation = {f"validation/{name}": value for name, value in metrics.items()}
    run.log(1, 1, validation, iter(validation))
    classifier = fit_logistic_regression(count_features(texts), toxicity, config.l2)
    skipped_counts = {"bad lines": len(skipped.reasons) if skipped else 0}
    return run.finish(classifier.save, validation=metrics, texts=len(texts), left_out=skipped_counts)
