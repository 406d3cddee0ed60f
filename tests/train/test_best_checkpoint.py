"""The weights a stage saves (`--keep`) and the number of checkpoints it keeps.

pytest tests/train/test_best_checkpoint.py
"""

import json

import pytest
from conftest import CORPUS, RANKINGS, assert_same_tensors, weights_of
from support.signals import stop_at

from instructgpt.config import make_config
from instructgpt.train import pretrain, reward
from instructgpt.train.configs import PretrainConfig, RewardConfig

QUALITIES = (0.3, 0.9, float("nan"), 0.5, 0.9)
"""Scripted validation results: the second is the best, and the last as good."""
SIZES = {
    "vocabulary": 280,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "context": 16,
    "window": 16,
    "batch": 8,
    "tokens": 128 * 10,
}


@pytest.fixture
def stage(write, save, tmp_path, monkeypatch):
    """Build a stage of ten steps with five validations, scripted or real -> main, config, weights by validated step."""

    def build(name, folder, *, script=True, **options):
        seen = {}

        def snapshot(model):
            step = 2 * len(seen) + 2
            seen[step] = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            return QUALITIES[step // 2 - 1]

        if name == "pretrain":
            monkeypatch.setattr(pretrain, "VALIDATION_INTERVAL", 2)
            monkeypatch.setattr(pretrain, "compute_validation_loss", lambda model, _: -snapshot(model))
            given = {"corpus": (write("corpus.jsonl", CORPUS),), **SIZES}
            return pretrain.main, make_config(PretrainConfig, given, options, {"out": tmp_path / folder}), seen
        measure = reward.evaluate_pair_accuracy

        def scripted(model, tasks):
            measured = measure(model, tasks)
            if script and len(seen) < len(QUALITIES):  # the last call measures the saved weights
                measured["validation/accuracy"] = snapshot(model.model)
            return measured

        monkeypatch.setattr(reward, "evaluate_pair_accuracy", scripted)
        data = (
            write("rankings.jsonl", [row | {"prompt": f"{row['prompt']} {n}"} for n in range(5) for row in RANKINGS]),
        )
        fresh = (write("fresh.jsonl", RANKINGS),)
        given = {
            "base": str(save()),
            "data": data,
            "validation": fresh,
            "batch": 3,
            "lr": 1e-2,
            "out": tmp_path / folder,
        }
        return reward.main, make_config(RewardConfig, given, options), seen

    return build


def kept_step(folder):
    return json.loads((folder / "run.json").read_text())["step"]


@pytest.mark.parametrize(("keep", "step"), [("best", 4), ("last", 10)])
@pytest.mark.parametrize("name", ["pretrain", "reward"])
def test_weights_with_best_validation_are_saved(stage, name, keep, step):
    main, config, seen = stage(name, "whole", keep=keep)
    folder = main(config)
    assert sorted(seen) == [2, 4, 6, 8, 10]
    assert kept_step(folder) == step
    saved = weights_of(folder)
    assert_same_tensors(saved, {key: tensor for key, tensor in seen[step].items() if key in saved}, tolerance=0)
    assert any((seen[4][key] != seen[10][key]).any() for key in saved), "the two candidates must differ"


@pytest.mark.parametrize("name", ["pretrain", "reward"])
@pytest.mark.parametrize("stop", [4, 7])
def test_resumed_run_keeps_its_best_checkpoint(stage, name, stop, monkeypatch):
    """Stop before and after the best weights are in a checkpoint."""
    main, config, _ = stage(name, "whole", keep="best")
    whole = weights_of(main(config))
    main, config, seen = stage(name, "killed", keep="best")
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            main(config)
    for step in [step for step in seen if step >= stop]:  # the resumed run validates these again
        del seen[step]
    assert kept_step(main(config)) == 4
    assert_same_tensors(weights_of(config.out), whole, tolerance=0)


def test_reward_selection_falls_back_to_heldout_labelers(stage, write, rows_of):
    fresh = write("heldout.jsonl", [row for row in RANKINGS if row["cohort"] == "heldout"])
    main, config, _ = stage("reward", "heldout", script=False, keep="best", validation=(fresh,))
    folder = main(config)
    rows = rows_of(folder / "metrics.jsonl")
    measured = {row["step"]: row["validation/accuracy_heldout"] for row in rows if "validation/accuracy_heldout" in row}
    assert len(measured) == 5
    assert kept_step(folder) == min(step for step, accuracy in measured.items() if accuracy == max(measured.values()))


@pytest.mark.parametrize("count", [1, 3])
def test_checkpoints_option_limits_kept_checkpoints(stage, count, monkeypatch):
    main, config, _ = stage("pretrain", "few", checkpoints=count)
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            main(config)
    kept = sorted(folder.name for folder in (config.out / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in range(7 - count, 7)]
    _, config, _ = stage("pretrain", "few", checkpoints=5 - count)  # resumes with another number
    assert [folder.name for folder in (main(config) / "checkpoints").iterdir()] == ["step-00000010"]
