"""Next-token logits of selected hidden states, by the model's own forward pass.

Most families end in one matrix. Others scale or cap the logits (Cohere, Granite, Gemma 2), scale the states before, or
have more layers (BERT). A view of the model, whose backbone returns the selected states, runs transformers' own code
from there on, whatever it does. Where that is one matrix and nothing else, the matrix is called directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers.modeling_outputs import BaseModelOutputWithPast

from instructgpt.models.lora import get_backbone

_IS_PLAIN_KEY = "_instructgpt_head_is_one_matrix"
_PROBE_SIZE = 1e4
"""Size of the probe's logits: any cap or scale changes numbers as large as these, in every digit."""


class _StatesOutput(BaseModelOutputWithPast):  # type: ignore[misc]
    """The output of a backbone: hidden states, and None for all else that a family may ask for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _BackboneStub(nn.Module):
    """Stands in for a backbone and returns states that are already computed."""

    def __init__(self, states: Tensor, backbone: nn.Module) -> None:
        super().__init__()
        self.states = states
        self.__dict__["backbone"] = backbone  # no submodule

    def __getattr__(self, name: str) -> Any:
        """Return what the backbone has, such as the factor that Falcon-H1 scales its logits by."""
        return getattr(self.__dict__["backbone"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return _StatesOutput(last_hidden_state=self.states)

    @property
    def decoder(self) -> _BackboneStub:
        """Return itself: the decoders of BART's relatives call `model.decoder`."""
        return self

    @property
    def language_model(self) -> _BackboneStub:
        """Return itself: some models with images call `model.language_model`."""
        return self


class _HeadStub(nn.Module):
    """Stands in for the output layer: keeps its input and returns known logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.weight, self.states = logits, torch.empty(0), torch.empty(0)

    def forward(self, states: Tensor) -> Tensor:
        self.states = states
        return self.logits


def _causal_model(model: Any) -> Any:
    model = getattr(model, "peft_model", model)  # a view without adapters, which the output layer does not have
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forward_from_states(model: Any, states: Tensor, **modules: nn.Module) -> Tensor:
    """Run the rest of a model's own forward pass on hidden states (N, D). -> (N, V)."""
    # shares the weights; made by hand, because FSDP's classes cannot be copied
    model_class: Any = next(one for one in type(model).__mro__ if not one.__name__.startswith("FSDP"))
    view = model_class.__new__(model_class)
    view.__dict__.update(vars(model))
    backbone = get_backbone(model)
    name = next((name for name, module in model.named_children() if module is backbone), model.base_model_prefix)
    view._modules = {**model._modules, name: _BackboneStub(states[None], backbone), **modules}
    input_ids = torch.zeros((1, len(states)), dtype=torch.long, device=states.device)
    logits: Tensor = model_class.forward(view, input_ids=input_ids, use_cache=False).logits[0]
    return logits


@torch.no_grad()
def has_plain_head(model: Any) -> bool:
    """Return whether the logits are the output layer's, neither scaled nor capped, as its own forward pass shows."""
    model = _causal_model(model)
    if _IS_PLAIN_KEY not in vars(model):
        object.__setattr__(model, _IS_PLAIN_KEY, _probe_head(model))
    is_plain: bool = vars(model)[_IS_PLAIN_KEY]
    return is_plain


def _probe_head(model: Any) -> bool:
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_children() if module is head), None)
    if name is None:
        return False
    try:
        with unset_fake_temporarily():  # numbers are compared, also while a model without weights is planned
            states = _PROBE_SIZE * torch.linspace(-1, 1, 6, device="cpu").view(2, 3)
            stub = _HeadStub(_PROBE_SIZE * torch.linspace(-1, 1, 10, device="cpu").view(1, 2, 5))
            logits = _forward_from_states(model, states, **{name: stub})
            return torch.equal(logits, stub.logits[0]) and torch.equal(stub.states, states[None])
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # it needs other parts of the model, which the view has


def compute_logits(model: Any, states: Tensor) -> Tensor:
    """Compute next-token logits of selected hidden states. (N, D) -> (N, V)."""
    model = _causal_model(model)
    if has_plain_head(model):
        logits: Tensor = model.get_output_embeddings()(states)
        return logits
    return _forward_from_states(model, states)


def vocabulary_rows(model: Any) -> int:
    """Return the number of logits a token."""
    head = _causal_model(model).get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        return int(model.config.get_text_config().vocab_size)
    return len(head.weight)
