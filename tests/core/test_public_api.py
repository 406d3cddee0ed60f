"""The names that the package exports, and that importing it stays cheap.

pytest tests/core/test_public_api.py
"""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from support.commands import SRC

import instructgpt

PUBLIC = """
Completion Demonstration EvaluateConfig InputError Labelers Message PPOConfig Pair PretrainConfig Prompt Ranking
RewardConfig RunConfig RunError SFTConfig evaluate_models functional load_policy load_reward_model make_config
patch_function pretrain read_records run_pipeline sample train_ppo train_reward train_sft write_records
"""


def test_exported_names_are_pinned_and_sorted():
    assert PUBLIC.split() == instructgpt.__all__ == sorted(instructgpt.__all__)
    assert set(instructgpt.__all__) < set(dir(instructgpt))


@pytest.mark.parametrize("name", PUBLIC.split())
def test_exported_names_resolve(name):
    exported = getattr(instructgpt, name)
    module = exported if inspect.ismodule(exported) else inspect.getmodule(exported)
    assert module is not None
    assert module.__name__.startswith("instructgpt.")


def test_stage_functions_take_their_configs():
    pairs = {
        "pretrain": "PretrainConfig",
        "train_sft": "SFTConfig",
        "train_reward": "RewardConfig",
        "train_ppo": "PPOConfig",
        "evaluate_models": "EvaluateConfig",
        "run_pipeline": "RunConfig",
    }
    for function, config in pairs.items():
        (parameter,) = inspect.signature(getattr(instructgpt, function)).parameters.values()
        assert parameter.annotation == config


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'instructgpt' has no attribute 'trian_sft'"):
        instructgpt.trian_sft  # noqa: B018
    with pytest.raises(ImportError):
        from instructgpt import trian_sft  # noqa: F401


def test_import_and_records_load_no_torch():
    program = "import sys, instructgpt; instructgpt.Ranking, dir(instructgpt); print('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"
