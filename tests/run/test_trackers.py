"""Trackers: metrics are read back with the trackers' own readers; failures are refused or disable the tracker."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from instructgpt.config import StageConfig, make_config
from instructgpt.errors import InputError
from instructgpt.run import trackers
from instructgpt.run.directory import RunDirectory, read_jsonl_log


class Stage(StageConfig):
    """A stage that only logs."""

    stage = "pretrain"


def logged(folder: Path, steps: range, *, kill_after: int | None = None) -> RunDirectory:
    run = RunDirectory.open(make_config(Stage, {"out": folder, "track": ["tensorboard"]}))
    state = run.restore()
    for step in range(state["step"] if state else steps.start, steps.stop):
        run.log(step + 1, steps.stop, {"loss/train": 1 / (step + 1)})
        if step + 1 == kill_after:
            run.save_checkpoint(
                step, dict, force=True
            )  # the last step comes after the last checkpoint, and is taken back
            return run
    run.finish(lambda _: None)
    return run


def scalars(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss/train")]


def test_tensorboard_has_what_metrics_jsonl_has(tmp_path):
    logged(tmp_path / "run", range(5))
    rows = {row["step"]: row["loss/train"] for row in read_jsonl_log(tmp_path / "run" / "metrics.jsonl")}
    assert len(rows) == 5
    assert dict(scalars(tmp_path / "run")) == pytest.approx(rows)


def test_repeated_steps_are_purged_from_tensorboard(tmp_path):
    logged(tmp_path / "run", range(6), kill_after=4)._trackers[
        "tensorboard"
    ].close()  # as far as a killed process had written
    logged(tmp_path / "run", range(6))
    assert [step for step, _ in scalars(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_missing_tracker_library_is_refused_before_the_run(tmp_path):
    program = """if True:
        import importlib.util, sys
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: None if name in ("trackio", "wandb") else found(name, *more)
        from instructgpt.cli import run_command as run
        sys.exit(run(["pretrain", "--corpus", sys.argv[1], "--out", sys.argv[2], "--track", "tensorboard", "trackio"]))
    """
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Text.\n")
    asked = [sys.executable, "-c", program, str(corpus), str(tmp_path / "out")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert done.stderr == "instructgpt: --track trackio: the library is not installed; pip install trackio\n"
    assert not (tmp_path / "out").exists()


def test_unknown_tracker_is_one_line():
    with pytest.raises(InputError, match="--track notebook: Input should be 'tensorboard', 'trackio' or 'wandb'"):
        make_config(Stage, {"out": "x", "track": ["notebook"]})


def test_tracker_that_does_not_start_is_an_input_error(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(InputError, match="--track tensorboard: does not start"):
        trackers.open_tracker("tensorboard", tmp_path, {}, 0)


def test_failing_tracker_is_disabled_and_the_run_continues(tmp_path, capsys):
    run = RunDirectory.open(make_config(Stage, {"out": tmp_path / "run", "track": ["tensorboard"]}))
    run.restore()
    run.log(1, 3, {"loss/train": 1.0})
    run._trackers["tensorboard"].close()
    run._trackers["tensorboard"]._writer.file_writer = None  # what is left after its connection has gone
    run._trackers["tensorboard"]._writer.add_scalar = lambda *_: 1 / 0
    run.log(2, 3, {"loss/train": 0.5})
    run.log(3, 3, {"loss/train": 0.25})
    run.finish(lambda _: None)
    assert [row["step"] for row in read_jsonl_log(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    said = capsys.readouterr().out
    assert said.count("tracker tensorboard failed and was disabled: division by zero") == 1


PROGRAM = """if True:
    import sys
    from pathlib import Path
    from instructgpt.config import StageConfig, make_config
    from instructgpt.run.directory import RunDirectory

    class Stage(StageConfig):
        stage = "pretrain"

    run = RunDirectory.open(make_config(Stage, {"out": Path(sys.argv[1]), "track": [sys.argv[2]]}))
    run.restore()
    for step in range(1, 4):
        run.log(step, 3, {"loss/train": 1 / step})
    run.finish(lambda _: None)
"""


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_offline_trackers_keep_every_step(name, tmp_path):
    pytest.importorskip(name, reason=f"{name} is not installed")
    place = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), name], env=place, check=True, capture_output=True
    )
    if name == "wandb":
        (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
        assert file.read_bytes().count(b"loss/train") >= 3
    else:
        (file,) = (tmp_path / "trackio").glob("*.db")
        with sqlite3.connect(file) as db:
            rows = [json.loads(row) for (row,) in db.execute("SELECT metrics FROM metrics ORDER BY step")]
        assert [row["loss/train"] for row in rows] == pytest.approx([1, 1 / 2, 1 / 3])


def test_every_message_is_a_line_of_log_jsonl(tmp_path):
    run = RunDirectory.open(make_config(Stage, {"out": tmp_path / "run"}))
    run.info("read [bold]3[/] files")  # before there is a directory
    run.restore()
    run.info("a [red]word[/]")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["said"] for row in rows] == ["read 3 files", "a word"]
    assert all(row["time"].endswith("+00:00") for row in rows)
