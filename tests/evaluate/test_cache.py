"""The result cache: no double computation, resumption after interruptions, and torn lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from instructgpt.distributed.launch import process_map
from instructgpt.errors import InputError
from instructgpt.evaluate.cache import ResultCache

GREEDY = {"temperature": 0.0, "max_tokens": 5, "seed": 1}
SAMPLED = GREEDY | {"temperature": 1.0}


class Model:
    """Echoes prompts and counts calls."""

    def __init__(self, fail_after=None):
        self.asked, self.fail_after = [], fail_after

    def __call__(self, prompts, seed):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += prompts
        return [f"{prompt}|{seed}|{place}" for place, prompt in enumerate(prompts)]


def test_results_are_computed_once(tmp_path):
    model = Model()
    first = ResultCache(tmp_path).get_or_compute("w", ["a", "b", "a"], GREEDY, model)
    assert model.asked == ["a", "b"]
    assert first[0] == first[2]
    assert ResultCache(tmp_path).get_or_compute("w", ["b", "c", "a"], GREEDY, model)[0] == first[1]
    assert model.asked == ["a", "b", "c"]


@pytest.mark.parametrize("other", [("x", GREEDY), ("w", GREEDY | {"seed": 2}), ("w", GREEDY | {"max_tokens": 6})])
def test_other_weights_seed_or_settings_miss_the_cache(tmp_path, other):
    model = Model()
    ResultCache(tmp_path).get_or_compute("w", [[1, 2], [3]], GREEDY, model)
    ResultCache(tmp_path).get_or_compute(other[0], [[1, 2], [3]], other[1], model)
    assert model.asked == [[1, 2], [3]] * 2


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED])
def test_interruption_does_not_change_results(tmp_path, settings):
    prompts = [f"p{i // 3}" for i in range(20)]
    whole = ResultCache(tmp_path / "a").get_or_compute("w", prompts, settings, Model(), chunk_size=4)
    with pytest.raises(KeyboardInterrupt):
        ResultCache(tmp_path / "b").get_or_compute("w", prompts, settings, Model(fail_after=4), chunk_size=4)
    assert ResultCache(tmp_path / "b").get_or_compute("w", prompts, settings, Model(), chunk_size=4) == whole
    assert len(set(whole)) == (20 if settings is SAMPLED else 7)  # equal prompts are sampled separately


@pytest.mark.parametrize("cut", [1, 2, 15, 60])
def test_only_torn_lines_are_computed_again(tmp_path, cut):
    prompts = ["a", "b", "c é"]
    whole = ResultCache(tmp_path).get_or_compute("w", prompts, GREEDY, Model())
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    again = Model()
    assert [said.split("|")[0] for said in ResultCache(tmp_path).get_or_compute("w", prompts, GREEDY, again)] == prompts
    assert again.asked == ([] if cut == 1 else ["c é"])  # only the line feed was lost
    assert ResultCache(tmp_path).get_or_compute("w", prompts[:2], GREEDY, again) == whole[:2]
    never = Model(fail_after=0)
    ResultCache(tmp_path).get_or_compute("w", prompts, GREEDY, never)


def test_killed_process_resumes(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from instructgpt.evaluate.cache import ResultCache
def make(prompts, seed):
    if "p4" in prompts:
        os.kill(os.getpid(), signal.SIGKILL)
    return prompts
ResultCache(Path({str(tmp_path)!r})).get_or_compute("w", [f"p{{i}}" for i in range(9)], {{}}, make, chunk_size=2)
"""
    found = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False
    )
    assert found.returncode == -signal.SIGKILL
    model = Model()
    ResultCache(tmp_path).get_or_compute("w", [f"p{i}" for i in range(9)], {}, model, chunk_size=2)
    assert model.asked == [f"p{i}" for i in range(4, 9)]


def test_missing_results_are_returned_but_not_stored(tmp_path):
    verdicts = {"a": None, "b": 0.0}

    def judge(prompts, seed):
        assert seed == 0
        return [verdicts.pop(prompt) for prompt in prompts]

    assert ResultCache(tmp_path).get_or_compute("w", ["a", "b"], {}, judge) == [None, 0.0]
    verdicts["a"] = 0.5  # b is still missing
    assert ResultCache(tmp_path).get_or_compute("w", ["a", "b"], {}, judge) == [0.5, 0.0]


def test_two_writers_share_a_file(tmp_path):
    one, two = ResultCache(tmp_path), ResultCache(tmp_path)
    one.get_or_compute("w", ["a"], {}, Model())
    two.get_or_compute("w", ["b"], {}, Model())
    one.get_or_compute("w", ["c"], {}, Model())
    never = Model(fail_after=0)
    assert len(ResultCache(tmp_path).get_or_compute("w", ["a", "b", "c"], {}, never)) == 3


def test_unwritable_folder_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        ResultCache(tmp_path / "file").get_or_compute("w", ["a"], {}, Model())


def test_progress_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("instructgpt.run.progress.PROGRESS_INTERVAL_S", -1.0)
    ResultCache(tmp_path).get_or_compute("w", list("abcde"), {}, Model(), chunk_size=2, title="squad")
    out = "".join(capsys.readouterr())
    assert "squad: 2 of 5" in out
    assert "squad: 5 of 5" in out


def test_worker_exception_is_raised_in_order():
    found = []
    with pytest.raises(ValueError, match="invalid literal"), process_map(2) as over:
        found += over(int, ["1", "2", "x", "3"])
    assert found == [1, 2]
