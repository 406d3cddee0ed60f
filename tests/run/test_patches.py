"""Replaced functions: used, undone, recorded with their source, and required again to resume.

pytest tests/run/test_patches.py
"""

from __future__ import annotations

import hashlib
import json

import pytest
from support.commands import PPO_SIZE, edit_json

from instructgpt import functional, make_config, patch_function
from instructgpt.distributed.launch import check_main_guard
from instructgpt.errors import InputError
from instructgpt.run.directory import RunDirectory
from instructgpt.train.configs import PPOConfig


def center(advantages):
    return advantages - advantages.mean()


def double(advantages):
    return 2 * advantages


@pytest.fixture
def config(tmp_path):
    sizes = {name.replace("-", "_"): value for name, value in PPO_SIZE.items()}
    inputs = {"policy": "p", "reward": "r", "prompts": "f.jsonl", "out": tmp_path / "run"}
    return make_config(PPOConfig, sizes, inputs)


def started(config):
    run = RunDirectory.open(config)
    run.create()
    return json.loads((config.out / "run.json").read_text())


def test_a_replacement_is_used_recorded_and_undone(config):
    before = functional.whiten
    with patch_function(functional, "whiten", center):
        assert functional.whiten is center
        record = started(config)
    assert functional.whiten is before
    source = "def center(advantages):\n    return advantages - advantages.mean()\n"
    expected = {"function": "center", "sha256": hashlib.sha256(source.encode()).hexdigest(), "source": source}
    assert record["patches"] == {"instructgpt.functional.whiten": expected}


def test_a_run_without_replacements_records_none(config):
    assert "patches" not in started(config)


def test_a_run_resumes_with_the_same_replacement_only(config):
    with patch_function(functional, "whiten", center):
        started(config)
        RunDirectory.open(config)
    with pytest.raises(InputError, match=r"functional\.whiten was replaced when the run started; choose another --out"):
        RunDirectory.open(config)
    with (
        patch_function(functional, "whiten", double),
        pytest.raises(InputError, match="was replaced by another function"),
    ):
        RunDirectory.open(config)
    edit_json(config.out / "run.json", lambda record: record.pop("patches"))
    with patch_function(functional, "whiten", center), pytest.raises(InputError, match="was not replaced"):
        RunDirectory.open(config)


def test_an_error_undoes_the_replacement():
    before = functional.whiten
    with pytest.raises(ZeroDivisionError), patch_function(functional, "whiten", center):
        raise ZeroDivisionError
    assert functional.whiten is before


def test_mistakes_are_refused():
    with pytest.raises(InputError, match="no such function"), patch_function(functional, "whitten", center):
        pass
    with patch_function(functional, "whiten", center):
        with pytest.raises(InputError, match="already"), patch_function(functional, "whiten", double):
            pass
        with pytest.raises(InputError, match="not in worker processes"):
            check_main_guard()


def test_functions_without_source_have_a_hash_of_their_code(config):
    names: dict = {}
    exec("def first(x):\n    return x\ndef second(x):\n    return x + 1\n", names)
    with patch_function(functional, "whiten", names["first"]):
        patch = started(config)["patches"]["instructgpt.functional.whiten"]
        assert "source" not in patch
    with patch_function(functional, "whiten", names["second"]), pytest.raises(InputError, match="another function"):
        RunDirectory.open(config)
