"""A finished run goes on with a larger number of episodes, epochs or tokens.

pytest tests/train/test_extend.py
"""

import json
from functools import partial

import pytest
from conftest import assert_same_tensors, weights_of
from support.stages import STAGES, build_stage
from test_export import export_checkpoint, model_files
from test_resume import outcome, stop_at_step

from instructgpt.errors import InputError
from instructgpt.run import directory as run_directory

SHORT = {"pretrain": {"tokens": 128 * 5}, "sft": {"epochs": 2}, "reward": {"epochs": 2}, "ppo": {"episodes": 24}}
SHORT["dpo"] = {"epochs": 2}
LONG = {"pretrain": {"tokens": 128 * 9}, "sft": {"epochs": 4}, "reward": {"epochs": 4}, "ppo": {"episodes": 40}}
LONG["dpo"] = {"epochs": 4}


@pytest.fixture
def stage(write, save, save_reward, tmp_path):
    return partial(build_stage, write, save, save_reward, tmp_path)


def test_extended_ppo_equals_a_run_that_was_long_from_the_start(stage, rows_of, capsys):
    """Both warm up for two steps: a fifth of 10 and of 14."""

    def run(folder, episodes):
        main, config = stage("ppo", folder, batch=4, episodes=episodes)
        return main(config.model_copy(update={"pretraining": (), "ptx_ratio": 8.0}))

    long = outcome(run("long", 56), rows_of)
    short = weights_of(run("extended", 40))
    capsys.readouterr()
    folder = run("extended", 56)
    extended = outcome(folder, rows_of)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "goes on from --episodes 40 to 56; the result is that of a run with --episodes 56 from its start" in said
    assert extended["run.json"].pop("extended_from") == [40]
    assert extended == long
    longer = weights_of(folder)
    assert any((short[name] != longer[name]).any() for name in short), "the steps that were added trained something"


@pytest.mark.parametrize("name", STAGES)
def test_what_differs_from_one_long_run_is_printed(stage, name, rows_of, capsys):
    main, config = stage(name, "run", **SHORT[name])
    steps = len(rows_of(main(config) / "metrics.jsonl"))
    before = weights_of(config.out)
    capsys.readouterr()
    main, config = stage(name, "run", **LONG[name])
    main(config)
    said = capsys.readouterr().out.replace("\n", " ")
    if name == "ppo":
        assert (
            "its warm-up had 0 PPO steps, that of one long run has 1; pretraining text comes in another order" in said
        )
    else:
        assert "the learning rate follows the new length from here on" in said
    rows = rows_of(config.out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > steps
    after = weights_of(config.out)
    assert any((before[key] != after[key]).any() for key in before)
    record = json.loads((config.out / "run.json").read_text())
    (option, length), (_, earlier) = (*LONG[name].items(), *SHORT[name].items())
    assert (record["finished"], record["config"][option], record["extended_from"]) == (True, length, [earlier])
    assert main(config) == config.out
    assert len(rows_of(config.out / "metrics.jsonl")) == len(rows), "the same command again does nothing"


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_extension_that_is_stopped_goes_on(stage, name, rows_of, monkeypatch):
    def extended(folder, stop):
        main, config = stage(name, folder, **SHORT[name])
        steps = len(rows_of(main(config) / "metrics.jsonl"))
        main, config = stage(name, folder, **LONG[name])
        if stop:
            stop_at_step(steps + stop, main, config, monkeypatch)
        return outcome(main(config), rows_of)

    assert extended("stopped", 2) == extended("whole", 0)


def test_extended_twice(stage, rows_of):
    for episodes in (16, 24, 40):
        main, config = stage("ppo", "run", episodes=episodes)
        main(config)
    assert json.loads((config.out / "run.json").read_text())["extended_from"] == [16, 24]
    assert len(rows_of(config.out / "metrics.jsonl")) == 5


def test_final_state_is_the_finished_model(stage, tmp_path):
    main, config = stage("sft", "run", lora=3)
    main(config)
    kept = [folder.name for folder in (config.out / "checkpoints").iterdir()]
    assert kept == ["step-00000008"]
    exported = export_checkpoint(config.out, tmp_path / "exported")
    assert model_files(exported) == model_files(config.out)


def test_run_without_final_state_is_not_extended(stage):
    main, config = stage("reward", "run", keep_state=False, **SHORT["reward"])
    main(config)
    assert not (config.out / "checkpoints").exists()
    before = weights_of(config.out)
    main, config = stage("reward", "run", **LONG["reward"])
    with pytest.raises(InputError, match=r"finished with --epochs 2, and its final state was not kept .*--no-resume"):
        main(config)
    assert_same_tensors(weights_of(config.out), before, tolerance=0)
    main, config = stage("reward", "run", **LONG["reward"] | {"epochs": 1})
    with pytest.raises(InputError, match="--epochs was 2 when the run started and is 1 now"):
        main(config)


def test_corrupt_final_state_is_refused_and_the_model_stays(stage):
    main, config = stage("reward", "run", **SHORT["reward"])
    main(config)
    before = weights_of(config.out)
    (state,) = (config.out / "checkpoints").iterdir()
    (state / "state.json").write_text("{")
    main, config = stage("reward", "run", **LONG["reward"])
    with pytest.raises(InputError, match="its final state is corrupt"):
        main(config)
    assert json.loads((config.out / "run.json").read_text())["finished"]
    main, config = stage("reward", "run", **SHORT["reward"])
    main(config)  # nothing to do: the run has not started again
    assert_same_tensors(weights_of(config.out), before, tolerance=0)


def test_another_option_may_not_change_with_the_length(stage):
    main, config = stage("sft", "run", **SHORT["sft"])
    main(config)
    main, config = stage("sft", "run", **LONG["sft"], lr=1e-3)
    with pytest.raises(InputError, match=r"--lr was 0\.05 when the run started and is 0\.001 now"):
        main(config)
    assert json.loads((config.out / "run.json").read_text())["finished"]


def test_large_final_state_is_reported_with_its_size(stage, monkeypatch, capsys):
    monkeypatch.setattr(run_directory, "_LARGE_STATE_BYTES", 1000)
    main, config = stage("sft", "run", **SHORT["sft"])
    main(config)
    size = sum(file.stat().st_size for file in (config.out / "checkpoints").rglob("*") if file.is_file())
    assert f"the final state, {size / 1000:.3g} kB, to extend the run" in " ".join(capsys.readouterr().out.split())
