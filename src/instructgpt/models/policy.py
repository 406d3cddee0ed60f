"""Load and save causal language models and their tokenizers: transformers' own models, in float32, in safetensors."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from instructgpt import functional
from instructgpt.data.packing import PackedBatch, TokenizedExample, collate
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.comm import call_sharded, get_dist_info
from instructgpt.errors import InputError, is_out_of_memory, one_line
from instructgpt.models.families import context_notice, get_family, max_context
from instructgpt.models.flop_count import count_outputs
from instructgpt.models.head import compute_logits, vocabulary_rows
from instructgpt.models.loading import add_notice, load_hf_tokenizer, load_model, load_model_config
from instructgpt.models.lora import save_weights
from instructgpt.models.packed_attention import FORWARD_ERRORS, hidden_states, use_packed_attention
from instructgpt.models.quantization import count_quantized

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
for library in ("transformers", "huggingface_hub"):
    logging.getLogger(library).setLevel(logging.ERROR)

PRETRAINING_WINDOW_KEY = "pretraining_window"
MAX_LOGITS = 2**25
"""Logits held at once: 128 MiB in float32, and as much again for their gradient."""
_RESIDUAL_DROPOUT_KEYS = ("resid_pdrop", "hidden_dropout", "resid_dropout", "residual_dropout")
"""Names of the dropout on the residual stream: GPT-2; GPT-NeoX and Falcon; others."""


def pick_device(name: str, memory: Collection[str] = ()) -> torch.device:
    """Return the device to load a model to: the CPU with several ranks or `offload`, where `shard` moves it from there.

    Raises:
        InputError: the device is not available.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not a device that works here ({one_line(error, 300)})") from error
    return device if get_dist_info().world_size == 1 and "offload" not in memory else torch.device("cpu")


def load_tokenizer(source: Path | str) -> PromptTokenizer:
    """Load the tokenizer of a model directory or hub name, with its chat template; an adapter's may be its base's.

    Raises:
        InputError: there is no tokenizer, or it has no end-of-text token.
    """
    return PromptTokenizer(load_hf_tokenizer(source))


def load_policy(source: Path | str, device: torch.device, residual_dropout: float = 0.0) -> tuple[Any, PromptTokenizer]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Args:
        source: the directory of a model or of an adapter, or a hub name.
        device: where the weights go.
        residual_dropout: for families that have one (paper, appendix C.1); all other dropout is off.

    Raises:
        InputError: the model, its tokenizer or some weights are missing, or the family is not supported.
    """
    tokenizer = load_tokenizer(source)
    dropout = dropout_settings(load_model_config(source), residual_dropout)
    model, loading_info = load_model(transformers.AutoModelForCausalLM, source, changes=dropout)
    check_no_missing_weights(source, loading_info)
    if "score.weight" in loading_info["unexpected_keys"]:
        raise InputError(f"{source}: is a reward model, expected a language model, such as the one it was trained from")
    check_tokenizer_fits(tokenizer, model, source)
    tokenizer.add_stop_tokens(_configured_stop_tokens(model))
    _repair_generation_config(model)
    model.to(device).eval()
    prepare_model(model, source)
    return model, tokenizer


def prepare_model(model: Any, source: Path | str) -> None:
    """Choose how a loaded model is computed: packed or padded batches, by the family's row of the table.

    Raises:
        InputError: the model's forward pass needs more than tokens, or is not causal.
    """
    if model.get_output_embeddings() is not None:
        check_forward(model, source)
    use_packed_attention(model)
    if get_family(model.config) is None:
        family = model.config.model_type
        add_notice(model, f"the family '{family}' is not in docs/reference/families.md; it is computed in padded rows")
    if notice := context_notice(model.config):
        add_notice(model, notice)


def check_tokenizer_fits(tokenizer: PromptTokenizer, model: Any, source: Path | str) -> None:
    """Raise InputError where the tokenizer has tokens that the model has no embedding for.

    A padding token is let through: texts are not padded.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.eos >= rows:
        reason = "the end-of-text token is outside the model's vocabulary"
        raise InputError(f"{source}: {reason}; save the tokenizer the model was trained with")
    words = tokenizer.hf_tokenizer
    beyond = sorted((index, token) for token, index in words.get_vocab().items() if index >= rows)
    beyond = [(index, token) for index, token in beyond if token != words.pad_token]
    if beyond:
        names = ", ".join(f"{token!r} ({index})" for index, token in beyond[:3]) + (" ..." if beyond[3:] else "")
        reason = f"the tokenizer has {len(beyond)} tokens beyond the model's {rows} embeddings: {names}"
        mend = "resize the model with model.resize_token_embeddings(len(tokenizer)), or remove the tokens"
        raise InputError(f"{source}: {reason}; {mend}")


def _configured_stop_tokens(model: Any) -> list[int]:
    """Return the stop tokens of a model's generation settings and configuration that its vocabulary has."""
    configs = (model.generation_config, model.config, model.config.get_text_config())
    settings = [getattr(config, "eos_token_id", None) for config in configs]
    tokens = [token for ids in settings if ids is not None for token in (ids if isinstance(ids, list) else [ids])]
    return [token for token in tokens if 0 <= token < model.get_input_embeddings().num_embeddings]


def check_no_missing_weights(
    source: Path | str, loading_info: dict[str, Any], newly_initialized: frozenset[str] = frozenset()
) -> None:
    """Raise InputError where weights were in no file, and so are random, except those that are meant to be new."""
    if missing := sorted(set(loading_info["missing_keys"]) - newly_initialized):
        raise InputError(f"{source}: weights are missing from the files: {', '.join(missing[:3])}")


def dropout_settings(config: Any, residual: float = 0.0) -> dict[str, float]:
    """Return every dropout of a configuration: residual ones with the given rate, all others 0."""
    values = config.get_text_config().to_dict()
    rates = {name: 0.0 for name, value in values.items() if "drop" in name and isinstance(value, float)}
    return rates | {name: residual for name in _RESIDUAL_DROPOUT_KEYS if name in rates}


@torch.no_grad()
def check_forward(model: Any, source: Path | str) -> None:
    """Raise InputError where a model does not compute, reads both ways, or has other logits than its own forward's."""
    refused = f"{source}: the family '{model.config.model_type}' is not supported"
    batch = collate([TokenizedExample([0], [1, 2])], model.device)
    try:
        logits = compute_logits(model, hidden_states(model, batch))
        expected, first = (model(input_ids=batch.input_ids[None, :end], use_cache=False).logits[0] for end in (3, 1))
    except FORWARD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = f"its forward pass needs more than tokens ({type(error).__name__}: {one_line(error, 200)})"
        raise InputError(f"{refused}: {reason}") from error
    if not expected.isfinite().all():
        raise InputError(f"{source}: the model's logits are not finite; its weights are damaged")
    if expected.shape != logits.shape or not torch.allclose(expected, logits, atol=1e-4, rtol=1e-4):
        raise InputError(f"{refused}: it changes its logits in a way that depends on more than the hidden state")
    if not torch.allclose(expected[:1], first, atol=1e-3, rtol=1e-3):
        raise InputError(f"{refused}: later tokens change the logits of earlier ones, so it cannot write text")


def per_token_outputs(model: Any, batch: PackedBatch, *functions: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Apply functions of (logits (m, V), tokens (m,)) -> (m,) to all completion tokens of a batch. -> (M,) each.

    More logits than MAX_LOGITS are computed in chunks, and again in the backward pass, so that few exist at once.
    """

    def apply_functions(states: Tensor, targets: Tensor) -> list[Tensor]:
        logits = compute_logits(model, states)
        return [function(logits, targets) for function in functions]

    def compute() -> list[Tensor]:
        states = hidden_states(model, batch, "target_positions")
        chunk_size = max(1, MAX_LOGITS // vocabulary_rows(model))
        count_outputs(model, len(states), repeats=len(states) > chunk_size)
        if len(states) <= chunk_size:
            return apply_functions(states, batch.targets)
        chunks = zip(torch.split(states, chunk_size), torch.split(batch.targets, chunk_size), strict=True)
        compute_chunk = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        chunk_outputs = [compute_chunk(apply_functions, *chunk) for chunk in chunks]
        return [torch.cat(outputs) for outputs in zip(*chunk_outputs, strict=True)]

    return call_sharded(model, compute)


def completion_logp(model: Any, batch: PackedBatch) -> Tensor:
    """Return the logp of every completion token, in the order of `batch.targets`. -> (M,)."""
    return per_token_outputs(model, batch, functional.token_logp)[0]


def context_length(model: Any) -> int:
    """Return the model's context length in tokens (see `max_context`)."""
    return max_context(model.config)


def pretraining_sequence_length(model: Any) -> int:
    """Return the tokens of a row of pretraining text: those our `pretrain` used, else the context, at most 2048."""
    return min(int(getattr(model.config, PRETRAINING_WINDOW_KEY, 2048)), context_length(model) - 1)


def count_parameters(model: nn.Module) -> int:
    """Count parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters()) + count_quantized(model)


def _repair_generation_config(model: Any) -> None:
    """Change settings of generation, which no stage reads, where transformers would refuse to save them."""
    generation = model.generation_config
    if _has_valid_settings(generation):
        return
    generation.do_sample = True  # sampling settings without it, as chat models had
    if _has_valid_settings(generation):
        return
    tokens = {name: value for name, value in generation.to_diff_dict().items() if name.endswith("_token_id")}
    model.generation_config = transformers.GenerationConfig(**tokens)
    add_notice(model, "settings of generation_config.json contradict each other; only its special tokens are kept")


def _has_valid_settings(generation: Any) -> bool:
    try:
        generation.validate(strict=True)
    except ValueError:
        return False
    return True


def save_policy(model: Any, tokenizer: PromptTokenizer, folder: Path) -> None:
    """Write a plain Hugging Face directory: weights, configuration, tokenizer with template, generation settings.

    The saved configuration has no dropout: it belongs to the stage, not to the model.
    """
    pad = tokenizer.hf_tokenizer.pad_token_id
    config = model.config.get_text_config()
    rates = {name: getattr(config, name) for name in dropout_settings(model.config)}
    config.update(dropout_settings(model.config))
    generation = model.generation_config
    stop_tokens = list(tokenizer.stop_tokens)
    generation.eos_token_id = stop_tokens if len(stop_tokens) > 1 else stop_tokens[0]
    generation.pad_token_id = tokenizer.eos if pad is None else pad
    try:
        save_weights(model, folder)
    finally:
        config.update(rates)
    tokenizer.hf_tokenizer.save_pretrained(folder)
