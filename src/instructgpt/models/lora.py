"""Low-rank adapters (LoRA, Hu et al. 2021) on the backbone of any model, by peft: weights are frozen, adapters train.

A matrix W with an adapter computes W x + (alpha / r) B A x. B starts at zero, so a new adapter changes nothing. With
its adapters off a model is bitwise what it was before: PPO's reference is the policy without adapters, the reward
model is the value model without them, and neither needs weights of its own. Functions also take models without any.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from instructgpt.errors import InputError, one_line
from instructgpt.models.loading import saved_dtype
from instructgpt.models.quantization import is_quantized

_ADAPTER_FOLDER = "adapter"
"""Folder of the adapter in a saved model's directory, beside the merged weights."""
_ALPHA_OVER_RANK = 2
"""alpha / r, the factor of an adapter's product."""
_LORA_FACTOR_KEYS, _BASE_LAYER_KEY = (".lora_A.", ".lora_B."), ".base_layer"
_ORIGINAL_HEAD_KEY, _TRAINED_HEAD_KEY = ".original_module.", ".modules_to_save.default"
"""Parts of peft's names of weights: the factors, the adapted matrix, the head before training and the trained one."""


class BaseModelView:
    """A model as it was before it got adapters: the same weights, with the adapters off while it computes."""

    def __init__(self, peft_model: Any) -> None:
        from peft.tuners.lora import LoraLayer

        self.peft_model = peft_model
        self.lora_layers = [module for module in peft_model.modules() if isinstance(module, LoraLayer)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.peft_model, name)

    def get_base_model(self) -> BaseModelView:
        """Return itself: the model below computes with its adapters unless `base_model` switches them off."""
        return self

    def base_model(self, **inputs: Any) -> Any:
        """Compute hidden states without adapters, and switch them on again, after an error too."""
        # peft's own switch walks the whole model and sets requires_grad again, which takes milliseconds each time
        try:
            for layer in self.lora_layers:
                layer._disable_adapters = True
            return get_backbone(self.peft_model)(**inputs)
        finally:
            for layer in self.lora_layers:
                layer._disable_adapters = False

    @property
    def score(self) -> nn.Module:
        """The scalar head before training."""
        head: nn.Module = self.peft_model.score.original_module
        return head


def get_backbone(model: Any) -> Any:
    """Return the part of a model that maps tokens to hidden states, adapters included."""
    base_model = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = base_model.base_model
    # a few families name a prefix that they do not have, and transformers then returns the model itself
    return getattr(base_model, "model", backbone) if backbone is base_model else backbone


def has_adapters(model: Any) -> bool:
    """Return whether a model has adapters."""
    return hasattr(model, "peft_config")


def add_lora(model: Any, rank: int, seed: int) -> Any:
    """Add adapters to all matrices of a backbone, in place, and a trained copy of a scalar head; freeze the rest.

    Args:
        model: a causal model or a sequence classifier.
        rank: r; with 0 the model is returned unchanged.
        seed: for the initial A.

    Raises:
        InputError: the backbone has no matrices, or none that peft can adapt.
    """
    if not rank:
        return model
    import peft  # takes seconds

    modules = model.base_model.named_modules()
    linear_layers = {name: module for name, module in modules if isinstance(module, nn.Linear | Conv1D)}
    if not linear_layers:
        family = model.config.model_type
        raise InputError(f"--lora: the family '{family}' has no linear layers to adapt; leave --lora out")
    has_scalar_head = hasattr(model, "score")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=_ALPHA_OVER_RANK * rank,
        lora_dropout=0.0,
        target_modules=_find_target_modules(model.base_model, set(linear_layers)),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear_layers.values()),
        modules_to_save=["score"] if has_scalar_head else None,
        task_type="SEQ_CLS" if has_scalar_head else "CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            family, reason = model.config.model_type, one_line(error, 200)
            raise InputError(f"--lora: peft cannot adapt the family '{family}' ({reason}); leave --lora out") from error


def _find_target_modules(backbone: nn.Module, linear_layers: set[str]) -> list[str]:
    """Return names that peft finds the linear layers by: their last parts, or all of a name that others share."""
    remaining = {name for name, _ in backbone.named_modules()} - linear_layers
    shared = {name.rpartition(".")[2] for name in remaining}
    last_parts = {name: name.rpartition(".")[2] for name in linear_layers}
    return sorted({name if last in shared else last for name, last in last_parts.items()})


def get_trainable_module(model: Any) -> nn.Module:
    """Return a model's trained parameters, not copied: all, or adapters and head. Checkpoints and EMA hold these."""
    if not has_adapters(model):
        full_model: nn.Module = model
        return full_model
    named = model.named_parameters()
    return nn.ParameterDict({name.replace(".", "/"): tensor for name, tensor in named if tensor.requires_grad})


@torch.no_grad()
def merged_state_dict(model: Any) -> dict[str, Tensor]:
    """Return weights with the adapters merged in, under the names of the plain model. The model does not change."""
    from peft.tuners.lora import LoraLayer

    base_model = model.get_base_model()
    lora_layers = {name: module for name, module in base_model.named_modules() if isinstance(module, LoraLayer)}
    quantized = {f"{name}.weight": module for name, module in base_model.named_modules() if is_quantized(module)}
    merged = {}
    for name, value in {**base_model.state_dict(), **quantized}.items():
        if any(part in name for part in (*_LORA_FACTOR_KEYS, _ORIGINAL_HEAD_KEY)):
            continue
        module_name, _, parameter_name = name.partition(_BASE_LAYER_KEY + ".")
        tensor = value.weight if name in quantized else value
        if parameter_name == "weight" and module_name in lora_layers:
            tensor = tensor + lora_layers[module_name].get_delta_weight("default")
        merged[name.replace(_BASE_LAYER_KEY, "").replace(_TRAINED_HEAD_KEY, "")] = tensor
    return merged


def cast_weights(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights in another type; those that share memory share it again."""
    cast: dict[tuple[int, torch.Size], Tensor] = {}

    def convert(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return cast.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))

    return {name: convert(tensor) for name, tensor in weights.items()}


def _write_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Write into config.json the type of the saved weights, by which transformers loads them."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {})):
        if "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_weights(model: Any, folder: Path) -> None:
    """Write merged weights and configuration as transformers does, and the adapters alone as peft does.

    Weights are written in the type of the files that the model came from (`saved_dtype`).
    """
    dtype = saved_dtype(model)
    if not has_adapters(model):
        weights = {} if dtype == torch.float32 else {"state_dict": cast_weights(model.state_dict(), dtype)}
        model.save_pretrained(folder, safe_serialization=True, **weights)
        _write_dtype(folder, dtype)
        return
    merged = cast_weights(merged_state_dict(model), dtype)
    model.get_base_model().save_pretrained(folder, state_dict=merged, safe_serialization=True)
    _write_dtype(folder, dtype)
    model.save_pretrained(folder / _ADAPTER_FOLDER, save_embedding_layers=False)
    (folder / _ADAPTER_FOLDER / "README.md").unlink()  # an empty template
    config_path = folder / _ADAPTER_FOLDER / "adapter_config.json"
    adapter_config = json.loads(config_path.read_text(encoding="utf-8"))
    adapter_config["target_modules"].sort()  # a set, whose order changes from run to run
    config_path.write_text(json.dumps(adapter_config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
