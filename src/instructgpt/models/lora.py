"""Low-rank adapters (LoRA, Hu et al. 2021) on the trunk of any model, by peft: small matrices are trained, the weights stay.

A matrix W with an adapter computes W x + (alpha / r) B A x. B begins at zero, so a new adapter changes nothing. With its
adapters off a model is, to the bit, what it was before: PPO's reference is the policy seen so, and the reward model is
the value model seen so, and neither needs weights of its own.

A model without adapters goes through the same functions; then all of it is trained and held.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from instructgpt.errors import InputError

_ADAPTER_FOLDER = "adapter"
"""Where a saved model's adapter lies, beside the merged weights."""
_ALPHA_OVER_RANK = 2
"""alpha / r: how much of an adapter's product is added."""
_LORA_FACTOR_KEYS, _ORIGINAL_HEAD_KEY, _TRAINED_HEAD_KEY, _BASE_LAYER_KEY = (
    (".lora_A.", ".lora_B."),
    ".original_module.",
    ".modules_to_save.default",
    ".base_layer",
)
"""What peft puts into the names of weights: factors of a product; the head as it was; the head that is trained; an adapted matrix."""


class BaseModelView:
    """A model as it was before it got adapters: the very same weights, with the adapters switched off while it computes."""

    def __init__(self, peft_model: Any) -> None:
        from peft.tuners.lora import LoraLayer

        self.peft_model = peft_model
        self.lora_layers = [module for module in peft_model.modules() if isinstance(module, LoraLayer)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.peft_model, name)

    def get_base_model(self) -> BaseModelView:
        """Itself: what lies below the adapters is not to be had without switching them off."""
        return self

    def base_model(self, **inputs: Any) -> Any:
        """Hidden states without adapters. Whatever happens, they are switched on again."""
        # peft's own switch walks through the whole model and says anew what needs a gradient: milliseconds, each time
        try:
            for layer in self.lora_layers:
                layer._disable_adapters = True
            return get_backbone(self.peft_model)(**inputs)
        finally:
            for layer in self.lora_layers:
                layer._disable_adapters = False

    @property
    def score(self) -> nn.Module:
        """The head it had, where it has one."""
        head: nn.Module = self.peft_model.score.original_module
        return head


def get_backbone(model: Any) -> Any:
    """The part of a model that maps tokens to hidden states, with its adapters if it has some."""
    base_model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base_model.base_model


def has_adapters(model: Any) -> bool:
    """Whether a model was given adapters."""
    return hasattr(model, "peft_config")


def add_lora(model: Any, rank: int, seed: int) -> Any:
    """The model with an adapter on every matrix of its trunk, and a copy of its scalar head where it has one, to be trained.

    All else is frozen. The model itself is changed, no weight is copied but the head's.

    Args:
        model: a causal model or a sequence classifier; rank: r, 0 for none: then the model is returned as it came.
        seed: of A's first numbers.

    Raises:
        BadInput: the family's trunk has no matrix that peft can adapt.
    """
    if not rank:
        return model
    import peft  # seconds to load, and only needed here

    linear_layers = {
        name: module for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    if not linear_layers:
        raise InputError(
            f"--lora: the family '{model.config.model_type}' has no linear layers in its trunk; leave --lora out"
        )
    has_scalar_head = hasattr(model, "score")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=_ALPHA_OVER_RANK * rank,
        lora_dropout=0.0,
        target_modules=sorted({name.rpartition(".")[2] for name in linear_layers}),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear_layers.values()),
        modules_to_save=["score"] if has_scalar_head else None,
        task_type="SEQ_CLS" if has_scalar_head else "CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers about something by its old name
        return peft.get_peft_model(model, config)


def get_trainable_module(model: Any) -> nn.Module:
    """What training changes in a model, as a module of the very same parameters: all of it, or its adapters and head.

    This is what checkpoints hold, what is averaged, and what the optimizer moves.
    """
    if not has_adapters(model):
        full_model: nn.Module = model
        return full_model
    trainable_parameters = {
        name.replace(".", "/"): parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    return nn.ParameterDict(trainable_parameters)


@torch.no_grad()
def merged_state_dict(model: Any) -> dict[str, Tensor]:
    """The weights of the plain model that computes the same, by their plain names. The model stays as it is."""
    from peft.tuners.lora import LoraLayer

    base_model = model.get_base_model()
    lora_layers = {name: module for name, module in base_model.named_modules() if isinstance(module, LoraLayer)}
    merged = {}
    for name, tensor in base_model.state_dict().items():
        if any(part in name for part in (*_LORA_FACTOR_KEYS, _ORIGINAL_HEAD_KEY)):
            continue
        module_name, _, parameter_name = name.partition(_BASE_LAYER_KEY + ".")
        if parameter_name == "weight" and module_name in lora_layers:
            tensor = tensor + lora_layers[module_name].get_delta_weight("default")
        merged[name.replace(_BASE_LAYER_KEY, "").replace(_TRAINED_HEAD_KEY, "")] = tensor
    return merged


def save_weights(model: Any, folder: Path) -> None:
    """Write weights and configuration as transformers does; adapters merged in, and once more by themselves as peft keeps them."""
    if not has_adapters(model):
        model.save_pretrained(folder, safe_serialization=True)
        return
    model.get_base_model().save_pretrained(folder, state_dict=merged_state_dict(model), safe_serialization=True)
    model.save_pretrained(folder / _ADAPTER_FOLDER, save_embedding_layers=False)
    (folder / _ADAPTER_FOLDER / "README.md").unlink()  # a form that nobody has filled in
    config_path = folder / _ADAPTER_FOLDER / "adapter_config.json"
    adapter_config = json.loads(config_path.read_text(encoding="utf-8"))
    adapter_config["target_modules"].sort()  # peft keeps a set, whose order changes from run to run
    config_path.write_text(json.dumps(adapter_config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
