"""Random models on a device, and PPO with them, for the scripts beside this one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from ppo import EOS, PAD, SIZES

from instructgpt.models.packed_attention import use_packed_attention
from instructgpt.models.reward_model import ScalarModel
from instructgpt.records import Prompt
from instructgpt.train.configs import PPOConfig
from instructgpt.train.optim import build_optimizer
from instructgpt.train.ppo import ppo_step
from instructgpt.train.reward_functions import Reward
from instructgpt.train.rollout import PPOModels, Rollout


def build(shape: str | dict[str, int], device: torch.device, *, scalar: bool = False) -> Any:
    """A random model: GPT-2's shape, or a Llama's of some size."""
    torch.manual_seed(0)
    if shape == "gpt2":
        config: Any = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    else:
        shape = SIZES[shape] if isinstance(shape, str) else shape
        same = {
            "num_key_value_heads": shape["num_attention_heads"],
            "tie_word_embeddings": True,
            "max_position_embeddings": 2048,
        }
        config = transformers.LlamaConfig(**shape, **same, pad_token_id=PAD, eos_token_id=EOS)
    config.num_labels = 1
    kind = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
    with torch.device(device):
        model = kind.from_config(config, attn_implementation="sdpa").eval()
    use_packed_attention(model)
    return model


def updates(
    policy: Any, reward: ScalarModel, value: ScalarModel, prompts: list[list[int]], length: int, minibatch: int
) -> Callable[[], Rollout]:
    """PPO with these models, whose words are numbers: each call is an update on an episode of every prompt."""
    tokenizer = reward.tokenizer
    whole_reward = Reward.from_model(reward, tokenizer)
    models = PPOModels(policy, copy.deepcopy(policy), value, whole_reward, copy.deepcopy(policy), tokenizer)
    for frozen in (models.reference, reward.model, models.ema):
        frozen.requires_grad_(False)
    optimizers = {"policy": build_optimizer(policy, eps=1e-5), "value": build_optimizer(value.model, eps=1e-5)}
    count = len(prompts)
    told: dict[str, Any] = {
        "out": Path("out"),
        "policy": "policy",
        "reward": "reward",
        "prompts": (Path("prompts"),),
    }
    config = PPOConfig(**told, batch=count, minibatch=minibatch, max_tokens=length, episodes=1000 * count)
    asked = [Prompt(prompt=" ".join(map(str, prompt))) for prompt in prompts]
    numbers = iter(range(1, 1000))
    return lambda: ppo_step(models, optimizers, None, asked, next(numbers), config)[0]
