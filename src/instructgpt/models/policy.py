"""From a name or a directory to a model and its renderer. Every model is transformers' own, in float32, in safetensors."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from instructgpt import functional
from instructgpt.data.packing import PackedBatch, TokenizedExample, collate
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.comm import call_sharded, get_dist_info
from instructgpt.errors import InputError, one_line
from instructgpt.models.lora import get_backbone as get_backbone
from instructgpt.models.lora import save_weights
from instructgpt.models.packed_attention import hidden_states, use_packed_attention

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
for library in ("transformers", "huggingface_hub"):
    logging.getLogger(library).setLevel(logging.ERROR)

PRETRAINING_WINDOW_KEY = "pretraining_window"
MAX_LOGITS = 2**25
"""Logits held at once: 128 MiB in float32, and as much again for their gradient."""
_HUB_TIMEOUT_S = 10.0
"""The hub has so long to answer before a model is looked for among those that were downloaded before."""
_RESIDUAL_DROPOUT_KEYS = ("resid_pdrop", "hidden_dropout", "resid_dropout", "residual_dropout")
"""What the families call the dropout on the residual stream (GPT-2; GPT-NeoX and Falcon; others)."""


def pick_device(name: str, memory: Collection[str] = ()) -> torch.device:
    """The device a model is loaded to: the one a stage runs on; the CPU where `shard` takes it from there.

    That is so with several ranks, and where the weights stay on the CPU (`offload` in `memory`).

    Raises:
        BadInput: the device is not there.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not a device that works here ({one_line(error, 300)})") from error
    return device if get_dist_info().world_size == 1 and "offload" not in memory else torch.device("cpu")


@functools.cache
def _is_hub_reachable() -> bool:
    """Whether the hub can be reached. Asked once: without a network, transformers would ask again and again, for most of a minute."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception:  # their kinds are those of whatever client is underneath
        return False
    return True


def from_pretrained(auto_class: Any, source: Path | str, **kwargs: Any) -> Any:
    """`kind.from_pretrained` with our rules: safetensors only, no code from outside, no silent download for a directory.

    Where the hub does not answer, a name means what was downloaded before.

    Raises:
        BadInput: there is no such model, or its files do not fit together.
    """
    path = Path(source)
    is_local = path.is_dir()
    if path.is_file():
        raise InputError(f"{source}: is a file, expected the directory of a model")
    if not is_local and (path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1):
        raise InputError(f"{source}: no such directory")
    if is_local and not (path / "config.json").exists() and auto_class is not transformers.AutoTokenizer:
        raise InputError(f"{source}: not a model directory (no config.json); has the stage that makes it finished?")
    local_files_only = is_local or not _is_hub_reachable()
    try:
        return auto_class.from_pretrained(
            str(source), local_files_only=local_files_only, trust_remote_code=False, **kwargs
        )
    except MemoryError:
        raise
    except Exception as error:  # the libraries below raise a dozen unrelated kinds
        if "ignore_mismatched_sizes" in str(error):
            raise InputError(
                f"{source}: weights in the files have other shapes than config.json says; they are of two models"
            ) from error
        reason = (
            "cannot be loaded"
            if is_local
            else "there is no such directory, and no model of that name can be loaded from the hub"
        )
        reason += ", which does not answer" if local_files_only and not is_local else ""
        raise InputError(f"{source}: {reason} ({one_line(error, 300)})") from error


def load_tokenizer(source: Path | str) -> PromptTokenizer:
    """The tokenizer of a model directory or hub name, with its template.

    Raises:
        BadInput: there is no tokenizer, or it has no end-of-text token.
    """
    path = Path(source)
    if path.is_dir() and not any(
        (path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    ):
        raise InputError(
            f"{source}: no tokenizer in this model directory; save one there with tokenizer.save_pretrained"
        )
    return PromptTokenizer(from_pretrained(transformers.AutoTokenizer, source))


def load_policy(source: Path | str, device: torch.device, residual_dropout: float = 0.0) -> tuple[Any, PromptTokenizer]:
    """A causal language model in evaluation mode, and its renderer.

    Args:
        source: a directory or a hub name.
        device: where the weights go.
        residual_dropout: set where the family has such a dropout (appendix C.1); it acts in training mode only. Any other is off.

    Raises:
        BadInput: the model or its tokenizer is missing, weights are missing, or the family cannot be computed with.
    """
    tokenizer = load_tokenizer(source)
    dropout = dropout_settings(from_pretrained(transformers.AutoConfig, source), residual_dropout)
    model, loading_info = from_pretrained(
        transformers.AutoModelForCausalLM,
        source,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        **dropout,
    )
    check_no_missing_weights(source, loading_info)
    if "score.weight" in loading_info["unexpected_keys"]:
        raise InputError(f"{source}: is a reward model, expected a language model, as the one it was made from")
    if tokenizer.eos >= model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"{source}: the tokenizer's end-of-text is no token of the model; save the tokenizer the model was trained with"
        )
    model.to(device).eval()
    use_packed_attention(model)
    _check_logits_match(model, str(source))
    return model, tokenizer


def check_no_missing_weights(
    source: Path | str, loading_info: dict[str, Any], newly_initialized: frozenset[str] = frozenset()
) -> None:
    """Refuse a model some of whose weights were in no file, and so are random numbers. `drawn`: those that are meant to be.

    Raises:
        BadInput: weights are missing.
    """
    if missing := sorted(set(loading_info["missing_keys"]) - newly_initialized):
        raise InputError(f"{source}: weights are missing from the files: {', '.join(missing[:3])}")


def dropout_settings(config: Any, residual: float = 0.0) -> dict[str, float]:
    """Every dropout of a configuration, by name: those on the residual stream as given, all others 0."""
    rates = {name: 0.0 for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)}
    return rates | {name: residual for name in _RESIDUAL_DROPOUT_KEYS if name in rates}


@torch.no_grad()
def _check_logits_match(model: Any, source: str) -> None:
    """Logits made from the picked hidden states must be the model's own; a family that reworks them afterwards is refused.

    Raises:
        BadInput: they differ, or are no numbers.
    """
    batch = collate([TokenizedExample([0], [1, 2])], model.device)
    expected = model(input_ids=batch.input_ids[None], use_cache=False).logits[0]
    logits = compute_logits(model, hidden_states(model, batch))
    if not expected.isfinite().all():
        raise InputError(f"{source}: the model's logits are not finite; its weights are damaged")
    if expected.shape != logits.shape or not torch.allclose(expected, logits, atol=1e-4, rtol=1e-4):
        raise InputError(f"{source}: this family changes its logits after the output layer, which is not supported yet")


def compute_logits(model: Any, states: Tensor) -> Tensor:
    """Logits of the next token, only where they are needed. (N, D) -> (N, V)."""
    logits: Tensor = model.get_output_embeddings()(states)
    return logits


def per_token_outputs(model: Any, batch: PackedBatch, *functions: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """What each measure says of the logits (m, V) that predict completion tokens, and of these tokens (m,). -> (M,) each.

    Where a batch has more logits than are to be held, they are computed part by part, and once more in the backward pass.
    """

    def apply_functions(states: Tensor, targets: Tensor) -> list[Tensor]:
        logits = compute_logits(model, states)
        return [function(logits, targets) for function in functions]

    def compute() -> list[Tensor]:
        states = hidden_states(model, batch, "target_positions")
        chunk_size = max(1, MAX_LOGITS // len(model.get_output_embeddings().weight))
        if len(states) <= chunk_size:
            return apply_functions(states, batch.targets)
        chunks = zip(torch.split(states, chunk_size), torch.split(batch.targets, chunk_size), strict=True)
        chunk_outputs = [
            checkpoint(apply_functions, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks
        ]
        return [torch.cat(outputs) for outputs in zip(*chunk_outputs, strict=True)]

    return call_sharded(model, compute)


def completion_logp(model: Any, batch: PackedBatch) -> Tensor:
    """Log-probability of every completion token of a batch, in the order of `batch.targets`. -> (M,)."""
    return per_token_outputs(model, batch, functional.token_logp)[0]


def context_length(model: Any) -> int:
    """How many tokens the model was built for."""
    config = model.config
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)


def pretraining_sequence_length(model: Any) -> int:
    """Tokens in a row of pretraining text: what the base was trained on where our `pretrain` made it, else its context, at most 2048."""
    return min(int(getattr(model.config, PRETRAINING_WINDOW_KEY, 2048)), context_length(model) - 1)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_policy(model: Any, tokenizer: PromptTokenizer, folder: Path) -> None:
    """Write a plain Hugging Face directory: weights, configuration, tokenizer with its template, generation settings.

    Dropout belongs to the stage that trained with it: the configuration that is saved has none.
    """
    model.config.update(dropout_settings(model.config))
    model.generation_config.eos_token_id = tokenizer.eos
    model.generation_config.pad_token_id = (
        tokenizer.hf_tokenizer.pad_token_id if tokenizer.hf_tokenizer.pad_token_id is not None else tokenizer.eos
    )
    save_weights(model, folder)
    tokenizer.hf_tokenizer.save_pretrained(folder)
