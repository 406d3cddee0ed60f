"""InstructGPT (Ouyang et al. 2022): demonstrations and rankings in, an aligned model and its evaluation out.

Public names are imported on first use, so that neither `import instructgpt` nor the labelers' site loads torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036 - pip refuses an older Python; a source tree on PYTHONPATH gets here
    sys.stderr.write(f"instructgpt: needs Python 3.11 or newer; this is Python {sys.version.split()[0]}\n")
    sys.exit(2)

__version__ = "0.1.0"

_EXPORTS = {
    "Completion": "records",
    "Demonstration": "records",
    "EvaluateConfig": "evaluate.configs",
    "InputError": "errors",
    "Labelers": "records",
    "Message": "records",
    "PPOConfig": "train.configs",
    "Pair": "records",
    "PretrainConfig": "train.configs",
    "Prompt": "records",
    "Ranking": "records",
    "RewardConfig": "train.configs",
    "RunConfig": "run.configs",
    "RunError": "errors",
    "SFTConfig": "train.configs",
    "evaluate_models": "evaluate.cli:main",
    "functional": "",
    "load_policy": "models.policy",
    "load_reward_model": "models.reward_model",
    "make_config": "config",
    "patch_function": "run.patches",
    "pretrain": "train.pretrain:main",
    "read_records": "records",
    "run_pipeline": "pipeline:main",
    "sample": "sampling.completions:generate",
    "train_ppo": "train.ppo:main",
    "train_reward": "train.reward:main",
    "train_sft": "train.sft:main",
    "write_records": "records",
}
"""Module of each public name, with the name there if it differs; an empty string marks a module."""

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'instructgpt' has no attribute '{name}'")
    module, _, attribute = _EXPORTS[name].partition(":")
    if not module:
        return importlib.import_module(f"instructgpt.{name}")
    return getattr(importlib.import_module(f"instructgpt.{module}"), attribute or name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
