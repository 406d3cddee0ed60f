"""The doctor finds planted faults, each by its own sign, and nothing in healthy runs. Numbers are planted by hand."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from instructgpt.cli import run_command as command
from instructgpt.doctor.cli import main
from instructgpt.run.configs import DoctorConfig
from instructgpt.run.directory import content_hash

HEALTHY = {
    "objective/kl": 0.8,
    "val/parity": 4e-6,
    "completion/length": 20.0,
    "policy/entropy_avg": 0.5,
    "completion/truncated": 0.01,
    "val/explained_variance": 0.7,
    "policy/clipfrac_avg": 0.02,
    "objective/scores": 0.3,
}


def make_stage(folder, stage, rows=(), **info):
    """A stage directory with these logged rows."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"stage": stage, "finished": True, "config": {}, "parents": {}} | info))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i + 1} | row) + "\n" for i, row in enumerate(rows))
    )
    return folder


def make_reward(folder, offset=0.5, stored=0.5, **measured):
    """A reward model's directory: its validation, and weights with an offset in their metadata."""
    validation = {"validation/accuracy": 0.72, "validation/length_baseline": 0.55, "offset": offset} | measured
    make_stage(folder, "reward", validation=validation)
    save_file(
        {"score.weight": torch.zeros(1, 2)},
        folder / "model.safetensors",
        None if stored is None else {"score_offset": repr(stored)},
    )
    return folder


def said(folder):
    """What the doctor finds, in (weight, words)."""
    return [(finding.severity, finding.message) for finding in main(DoctorConfig(run=folder))]


def test_a_healthy_run_has_nothing(tmp_path, capsys):
    make_stage(tmp_path / "ppo", "ppo", [HEALTHY] * 30)
    make_reward(tmp_path / "reward")
    make_stage(tmp_path / "sft", "sft", [{"loss/validation": loss} for loss in (1.5, 1.2, 1.3)])
    assert said(tmp_path) == []
    assert "3 stages examined: nothing wrong was found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "from_", "to", "weight", "words"),
    [
        ("objective/kl", 0.0, -0.4, "bad", "KL to the reference is -0.40"),
        ("objective/kl", 0.0, 31.0, "bad", "reached 31.0 nats"),
        ("val/parity", 1e-6, 0.02, "bad", "differ by up to 2.0e-02"),
        ("completion/length", 20.0, 44.0, "notice", "grew from 20 to 44 tokens"),
        ("policy/entropy_avg", 1.0, 0.1, "bad", "entropy fell to 10 %"),
        ("completion/truncated", 0.0, 0.25, "notice", "25 % of completions are cut off"),
        ("completion/truncated", 0.0, 0.75, "bad", "75 % of completions are cut off"),
        ("completion/truncated", 1.0, 1.0, "bad", "100 % of completions are cut off .* hardly ever stops"),
        ("val/explained_variance", 0.0, -0.3, "notice", "explains -30 %"),
        ("policy/clipfrac_avg", 0.0, 0.45, "notice", "45 % of tokens are clipped"),
        ("objective/scores", -9.0, -8.0, "notice", "the first completions score -9.0"),
    ],
)
def test_each_sign_alone(tmp_path, metric, from_, to, weight, words):
    rows = [HEALTHY | {metric: from_} if i < 20 else HEALTHY | {metric: to} for i in range(40)]
    found = said(make_stage(tmp_path / "ppo", "ppo", rows))
    assert len(found) == 1
    assert found[0][0] == weight
    assert re.search(words, found[0][1])


@pytest.mark.parametrize(("rms", "count"), [(0.019, 0), (0.021, 1)])
def test_parity_in_bf16_is_a_notice(tmp_path, rms, count):
    """The largest difference is noise there."""
    rows = [HEALTHY | {"val/parity": 0.3, "val/parity_rms": rms}] * 20
    found = said(make_stage(tmp_path / "ppo", "ppo", rows, config={"memory": ["bf16"]}))
    assert [severity for severity, _ in found] == ["notice"] * count


def test_a_falling_heldout_score(tmp_path):
    """Measured every ten updates: best at 11, then lower by four standard errors."""
    rows = [HEALTHY | {"objective/scores": 0.1 * i} for i in range(40)]
    for i, score, change, error, training in ((0, 0.1, 0, 0, 0), (10, 0.9, 0, 0, 0), (20, 0.7, -0.2, 0.1, 1.0)):
        rows[i] |= {"validation/scores": score, "validation/change_from_best": change}
        rows[i] |= {"validation/change_from_best_se": error, "validation/training_change_from_best": training}
    assert said(make_stage(tmp_path / "a", "ppo", rows)) == []
    rows[30] |= rows[20] | {"validation/scores": 0.5, "validation/change_from_best": -0.4}
    ((severity, message),) = said(make_stage(tmp_path / "b", "ppo", rows))
    assert severity == "bad"
    assert "fell from 0.90 (update 11) to 0.50 while the training score rose" in message


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_diverged_language_model(tmp_path, stage):
    """Ln 384 = 5.95. What diverged needs no more epochs."""
    rows = [{"loss/train": 7.6, "loss/validation": 7.0}, {"loss/train": 65150.0, "loss/validation": 6.0}]
    ((severity, message),) = said(make_stage(tmp_path / "a", stage, rows, vocab_size=384))
    assert severity == "bad"
    assert message == "loss/train is 6.515e+04 nats per token; a uniform guess over 384 tokens has 5.95"
    folder = make_stage(tmp_path / "b", stage, [{"loss/train": 9.0}, {"loss/train": 10.2}])
    assert said(folder) == []
    (folder / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 384}}))
    assert [severity for severity, _ in said(folder)] == ["bad"]


def test_one_bad_update_is_no_finding(tmp_path):
    """Medians of a tenth: one odd batch at the end says nothing."""
    rows = [HEALTHY] * 39 + [HEALTHY | {"objective/kl": -1.0, "completion/truncated": 0.9}]
    assert said(make_stage(tmp_path / "ppo", "ppo", rows)) == []


@pytest.mark.parametrize(("fell", "expected"), [(True, 1), (False, 0)])
def test_over_optimisation_needs_intervals_apart(tmp_path, fell, expected):
    make_stage(tmp_path / "ppo", "ppo", [HEALTHY] * 4)
    utility = [4.0, 4.6, 4.5, 4.0 if fell else 4.4]
    points = [
        {"model": "ppo", "step": i + 1, "utility": u, "low": u - 0.2, "high": u + 0.2, "kl": i, "score": float(i)}
        for i, u in enumerate(utility)
    ]
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "over_optimisation.jsonl").write_text(
        "".join(json.dumps(point) + "\n" for point in points)
    )
    found = said(tmp_path)
    assert len(found) == expected
    assert all("fell from 4.60 (update 2) to 4.00" in what for _, what in found)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"validation/accuracy": 0.51, "validation/length_baseline": 0.5},
            ["right about 51.0 % of pairs, a coin", "taking the longer"],
        ),
        ({"validation/length_baseline": 0.28}, ["taking the shorter completion is right about 72.0 %"]),
        ({"stored": None}, ["weights record no offset"]),
        ({"stored": 0.9}, ["stored offset is 0.9000, the one measured after training 0.5000"]),
    ],
)
def test_a_reward_model(tmp_path, changed, words):
    found = said(make_reward(tmp_path / "reward", **changed))
    severity = "notice" if changed == {"stored": None} else "bad"
    assert [weight for weight, _ in found] == [severity] * len(words)
    assert all(word in what for word, (_, what) in zip(words, found, strict=True))


def test_rankings_that_tie_and_disagree(tmp_path):
    """Of 3 pairs a ranking, 2 tie; the third is ordered the other way round by the second labeler."""
    rankings = [
        {"prompt": f"p{i}", "completions": ["a", "b", "c"], "ranks": ranks, "labeler": labeler}
        for i in range(5)
        for labeler, ranks in (("x", [1, 1, 1]), ("y", [1, 2, 2]), ("z", [2, 1, 1]))
    ]
    file = tmp_path / "rankings.jsonl"
    file.write_text("".join(json.dumps(ranking) + "\n" for ranking in rankings))
    folder = make_reward(tmp_path / "reward")
    info = json.loads((folder / "run.json").read_text()) | {"config": {"data": [str(file)]}}
    (folder / "run.json").write_text(json.dumps(info))
    assert [what for _, what in said(folder)] == [
        "56 % of the pairs in rankings.jsonl are ties",
        "two labelers order a pair in rankings.jsonl alike in 0 % of cases (the paper: 73 %)",
    ]


def test_a_changed_parent_and_an_unfinished_stage(tmp_path):
    data = tmp_path / "demonstrations.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    parents = {"data": {"path": str(data), "sha256": content_hash(data)}}
    folder = make_stage(tmp_path / "sft", "sft", parents=parents, finished=False)
    assert [what for _, what in said(folder)] == ["not finished"]
    data.write_text('{"prompt": "a", "completion": "c"}\n')
    assert [what for _, what in said(folder)] == ["not finished", f"its data, {data}, has changed since"]


def test_sft_that_was_still_learning(tmp_path):
    folder = make_stage(tmp_path / "sft", "sft", [{"loss/validation": loss} for loss in (2.0, 1.5, 1.2)])
    assert [what for _, what in said(folder)] == [
        "validation loss was still falling at the last epoch (1.500 to 1.200)"
    ]


def test_different_tokenizers(tmp_path):
    for name, vocabulary in (("policy", {"a": 0}), ("model", {"b": 0})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    told = {"policy": str(tmp_path / "policy"), "reward": str(tmp_path / "model")}
    folder = make_stage(tmp_path / "ppo", "ppo", [HEALTHY], config=told)
    assert [what for _, what in said(folder)] == ["policy and reward model model have different tokenizers"]
    told["reward"] = told["policy"]
    assert said(make_stage(tmp_path / "same", "ppo", [HEALTHY], config=told)) == []


def test_the_worst_comes_first(tmp_path, capsys):
    make_stage(tmp_path / "a", "ppo", [HEALTHY | {"completion/truncated": 0.3, "objective/kl": -1.0}])
    assert command(["doctor", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.index("bad a KL") < out.index("notice a 30 %")
    assert out.endswith("1 stage examined: 1 bad, 1 to look at\n")


@pytest.mark.parametrize("made", [False, True])
def test_nothing_to_examine(tmp_path, capsys, made):
    folder = tmp_path / "runs"
    if made:
        folder.mkdir()
    assert command(["doctor", str(folder)]) == 2
    assert str(folder) in capsys.readouterr().err
