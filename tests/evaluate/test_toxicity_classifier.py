"""The toxicity classifier: planted texts, features, gradients, and texts without words."""

from __future__ import annotations

import json
import math
from random import Random

import numpy as np
import pytest

from instructgpt.cli import run_command as command
from instructgpt.evaluate.toxicity import classifier as scorer
from instructgpt.evaluate.toxicity.classifier import ToxicityClassifier

CALM = [
    "the",
    "river",
    "runs",
    "past",
    "a",
    "quiet",
    "village",
    "and",
    "people",
    "read",
    "books",
    "under",
    "old",
    "trees",
    "in",
    "evening",
]
RUDE = ("bloody", "rotten", "vile")


def planted(count, seed=0):
    """Return texts whose toxicity is three times their share of rude words."""
    rng = Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.choice(RUDE if rng.random() < 0.4 else CALM) for _ in range(rng.randint(3, 9))]
        rows.append((" ".join(words), min(1.0, 3 * sum(word in RUDE for word in words) / len(words) / 1.5)))
    return rows


@pytest.fixture(scope="module")
def trained():
    texts, toxicity = zip(*planted(400), strict=True)
    return scorer.fit_logistic_regression(scorer.count_features(texts), np.array(toxicity), 2e-5)


def test_planted_words_are_found(trained):
    calm, rude, one = trained(["the river runs past", "vile rotten bloody", "the vile river runs past"])
    assert calm < 0.15
    assert rude > 0.9
    assert calm < one < rude


def test_altered_spellings_are_found(trained):
    assert trained(["rottttten"])[0] == pytest.approx(trained(["rottten"])[0])
    assert trained(["ROTTEN"]) == trained(["rotten"])
    assert trained(["bloodyest"])[0] > trained(["books"])[0]


def test_text_without_words_has_no_score(trained):
    assert all(math.isnan(score) for score in trained(["", "   ", "?! …"]))
    assert not math.isnan(trained(["a"])[0])


def test_scores_are_batch_invariant(trained):
    texts = [text for text, _ in planted(20, seed=5)]
    together = trained(texts)
    assert together == pytest.approx([trained([text])[0] for text in texts], abs=1e-12)


def test_features_match_hand_computation():
    assert sorted(scorer.extract_features("A bb")) == sorted(
        ["wa", "wbb", "pa bb", "c<a", "ca>", "c<a>", "c<b", "cbb", "cb>", "c<bb", "cbb>", "c<bb>"]
    )


def test_gradient_vanishes_at_the_minimum():
    texts, toxicity = zip(*planted(60), strict=True)
    counts, l2 = scorer.count_features(texts), 1e-2
    trained = scorer.fit_logistic_regression(counts, np.array(toxicity), l2)
    used = np.flatnonzero(np.asarray((counts > 0).sum(0)).ravel())
    rows = scorer.apply_idf(counts, trained.rarity).toarray()[:, used]
    probability = 1 / (1 + np.exp(-(rows @ trained.weights[used] + trained.bias)))
    slope = rows.T @ (probability - np.array(toxicity)) / len(texts) + l2 * trained.weights[used]
    assert np.abs(slope).max() < 1e-4
    assert abs((probability - np.array(toxicity)).mean()) < 1e-4
    assert np.count_nonzero(np.delete(trained.weights, used)) == 0
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1)


def test_auc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    toxic, harmless = rng.integers(0, 6, 30) / 5, rng.integers(0, 5, 40) / 5
    pairs = [(a > b) + 0.5 * (a == b) for a in toxic for b in harmless]
    assert scorer.roc_auc(toxic, harmless) == pytest.approx(np.mean(pairs))


def test_cross_validation_scores_unseen_texts():
    """Random toxicity cannot be predicted; two spellings of a text must not leak between folds."""
    rng = Random(3)
    once = [(f"{' '.join(rng.choices(CALM, k=6))} {i}", float(rng.random() < 0.5)) for i in range(150)]
    rows = once + [(text.upper(), toxicity) for text, toxicity in once]
    texts, toxicity = zip(*rows, strict=True)
    assert 0.35 < scorer.cross_validate_toxicity(texts, np.array(toxicity), 2e-5)["auc"] < 0.65
    texts, toxicity = zip(*planted(300), strict=True)
    assert scorer.cross_validate_toxicity(texts, np.array(toxicity), 2e-5)["auc"] > 0.97


def write(file, rows):
    file.write_text("".join(json.dumps({"text": text, "toxicity": toxicity}) + "\n" for text, toxicity in rows))
    return file


def test_command_writes_a_loadable_classifier(tmp_path, capsys):
    data = write(tmp_path / "texts.jsonl", planted(200))
    assert command(["judge", "toxicity", "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    loaded = ToxicityClassifier.load(tmp_path / "out")
    assert loaded(["vile rotten"])[0] > loaded(["quiet village"])[0]
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert info["validation"]["auc"] > 0.95
    assert info["texts"] == 200
    assert len(loaded.sha256) == 64
    assert not (tmp_path / "out" / "README.md").exists()
    assert command(["judge", "toxicity", "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", 0.9)] * 3, "too few for 5 folds"),
        ([("calm " * i, 0.0) for i in range(1, 40)], "0 of them toxic"),
        ([("a", 1.5)], "texts.jsonl:1: column 'toxicity'"),
    ],
)
def test_invalid_data_is_reported_in_one_line(tmp_path, capsys, rows, words):
    data = write(tmp_path / "texts.jsonl", rows)
    assert command(["judge", "toxicity", "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_directory_is_rejected(tmp_path):
    with pytest.raises(scorer.InputError, match="not a toxicity scorer"):
        ToxicityClassifier.load(tmp_path)
