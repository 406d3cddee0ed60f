"""Configure every training stage at the smallest size, with everything that a checkpoint must store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import CORPUS, DEMONSTRATIONS, FRESH_RANKINGS, RANKINGS

from instructgpt.baselines import dpo
from instructgpt.config import StageConfig, make_config
from instructgpt.train import ppo, pretrain, reward, sft
from instructgpt.train.configs import DPOConfig, PPOConfig, PretrainConfig, RewardConfig, SFTConfig

STAGES = ("pretrain", "sft", "reward", "dpo", "ppo")
_PRETRAIN_SIZE = {"vocabulary": 280, "width": 16, "layers": 1, "heads": 2, "context": 16, "window": 16, "batch": 8}
_PPO_SIZE = {"episodes": 40, "batch": 8, "minibatch": 4, "epochs": 2, "max_tokens": 5}


def build_stage(
    write: Any, save: Any, save_reward: Any, parent: Path, name: str, folder: str, **options: Any
) -> tuple[Callable[[Any], Path], StageConfig]:
    """Return a stage's main function and a config with `options`; write its data with the fixtures of conftest."""
    corpus, out = (write("corpus.jsonl", CORPUS),), {"out": parent / folder}
    if name == "pretrain":
        config = {"corpus": corpus, **_PRETRAIN_SIZE, "tokens": 128 * 9}
        return pretrain.main, make_config(PretrainConfig, config, out, options)
    if name == "sft":
        files = {"data": (write("data.jsonl", DEMONSTRATIONS),), "pretraining": corpus}
        files["validation"] = (write("fresh.jsonl", DEMONSTRATIONS[:2]),)
        sizes = {"epochs": 4, "batch": 4, "dropout": 0.3, "lr": 5e-2}
        return sft.main, make_config(SFTConfig, {"base": str(save("gpt2"))}, files, sizes, out, options)
    if name in ("reward", "dpo"):
        files = {"data": (write("rankings.jsonl", RANKINGS),)}
        files["validation"] = (write("fresh_rankings.jsonl", FRESH_RANKINGS),)
        sizes = {"epochs": 4, "batch": 3, "lr": 1e-2}
        if name == "dpo":
            return dpo.main, make_config(DPOConfig, {"policy": str(save())}, files, sizes, out, options)
        return reward.main, make_config(RewardConfig, {"base": str(save())}, files, sizes, out, options)
    models = {"policy": str(save()), "reward": save_reward()}
    text = {"prompts": (write("prompts.jsonl", DEMONSTRATIONS),), "pretraining": corpus, "ptx_ratio": 0.5}
    rates = {"lr": 1e-2, "value_lr": 1e-2, "ema": 0.9}
    return ppo.main, make_config(PPOConfig, models, text, _PPO_SIZE, rates, out, options)
