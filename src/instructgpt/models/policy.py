"""Load and save causal language models and their tokenizers: transformers' own models, in float32, in safetensors."""

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
from instructgpt.io import is_missing_path
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
"""Seconds the hub may take to answer before the download cache is used alone."""
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


@functools.cache
def _is_hub_reachable() -> bool:
    # once a process: without a network, transformers would retry every file for most of a minute
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception:  # the HTTP client below decides which
        return False
    return True


def from_pretrained(auto_class: Any, source: Path | str, **kwargs: Any) -> Any:
    """Call `auto_class.from_pretrained` without remote code, and without a download where a local path is meant.

    Where the hub does not answer, a hub name is looked up in the download cache.

    Raises:
        InputError: there is no such model, or its files do not fit together.
    """
    path = Path(source)
    is_local = path.is_dir()
    if path.is_file():
        raise InputError(f"{source}: is a file, expected the directory of a model")
    if is_missing_path(source):
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
    except Exception as error:  # the libraries below raise a dozen unrelated types
        if "ignore_mismatched_sizes" in str(error):
            reason = "shapes of the weights differ from config.json; the files belong to two models"
            raise InputError(f"{source}: {reason}") from error
        missing = "there is no such directory, and no model of that name can be loaded from the hub"
        reason = "cannot be loaded" if is_local else missing
        reason += ", which does not answer" if local_files_only and not is_local else ""
        raise InputError(f"{source}: {reason} ({one_line(error, 300)})") from error


def load_tokenizer(source: Path | str) -> PromptTokenizer:
    """Load the tokenizer of a model directory or hub name, with its chat template.

    Raises:
        InputError: there is no tokenizer, or it has no end-of-text token.
    """
    path, names = Path(source), ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if path.is_dir() and not any((path / name).exists() for name in names):
        reason = "no tokenizer in this model directory; save one there with tokenizer.save_pretrained"
        raise InputError(f"{source}: {reason}")
    return PromptTokenizer(from_pretrained(transformers.AutoTokenizer, source))


def load_policy(source: Path | str, device: torch.device, residual_dropout: float = 0.0) -> tuple[Any, PromptTokenizer]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Args:
        source: a directory or a hub name.
        device: where the weights go.
        residual_dropout: for families that have one (paper, appendix C.1); all other dropout is off.

    Raises:
        InputError: the model, its tokenizer or some weights are missing, or the family is not supported.
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
        raise InputError(f"{source}: is a reward model, expected a language model, such as the one it was trained from")
    if tokenizer.eos >= model.get_input_embeddings().num_embeddings:
        reason = "the end-of-text token is outside the model's vocabulary"
        raise InputError(f"{source}: {reason}; save the tokenizer the model was trained with")
    tokenizer.add_stop_tokens(_configured_stop_tokens(model))
    model.to(device).eval()
    use_packed_attention(model)
    _check_logits_match(model, str(source))
    return model, tokenizer


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
    rates = {name: 0.0 for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)}
    return rates | {name: residual for name in _RESIDUAL_DROPOUT_KEYS if name in rates}


@torch.no_grad()
def _check_logits_match(model: Any, source: str) -> None:
    """Raise InputError where logits of selected hidden states differ from the model's own, or are not finite."""
    batch = collate([TokenizedExample([0], [1, 2])], model.device)
    expected = model(input_ids=batch.input_ids[None], use_cache=False).logits[0]
    logits = compute_logits(model, hidden_states(model, batch))
    if not expected.isfinite().all():
        raise InputError(f"{source}: the model's logits are not finite; its weights are damaged")
    if expected.shape != logits.shape or not torch.allclose(expected, logits, atol=1e-4, rtol=1e-4):
        raise InputError(f"{source}: this family changes its logits after the output layer, which is not supported")


def compute_logits(model: Any, states: Tensor) -> Tensor:
    """Compute next-token logits of selected hidden states. (N, D) -> (N, V)."""
    logits: Tensor = model.get_output_embeddings()(states)
    return logits


def per_token_outputs(model: Any, batch: PackedBatch, *functions: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Apply functions of (logits (m, V), tokens (m,)) -> (m,) to all completion tokens of a batch. -> (M,) each.

    More logits than MAX_LOGITS are computed in chunks, and again in the backward pass, so that few exist at once.
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
        compute_chunk = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        chunk_outputs = [compute_chunk(apply_functions, *chunk) for chunk in chunks]
        return [torch.cat(outputs) for outputs in zip(*chunk_outputs, strict=True)]

    return call_sharded(model, compute)


def completion_logp(model: Any, batch: PackedBatch) -> Tensor:
    """Return the logp of every completion token, in the order of `batch.targets`. -> (M,)."""
    return per_token_outputs(model, batch, functional.token_logp)[0]


def context_length(model: Any) -> int:
    """Return the model's context length in tokens; 2048 where its configuration names none."""
    config = model.config
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)


def pretraining_sequence_length(model: Any) -> int:
    """Return the tokens of a row of pretraining text: those our `pretrain` used, else the context, at most 2048."""
    return min(int(getattr(model.config, PRETRAINING_WINDOW_KEY, 2048)), context_length(model) - 1)


def count_parameters(model: nn.Module) -> int:
    """Count parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_policy(model: Any, tokenizer: PromptTokenizer, folder: Path) -> None:
    """Write a plain Hugging Face directory: weights, configuration, tokenizer with template, generation settings.

    The saved configuration has no dropout: it belongs to the stage, not to the model.
    """
    pad = tokenizer.hf_tokenizer.pad_token_id
    rates = {name: getattr(model.config, name) for name in dropout_settings(model.config)}
    model.config.update(dropout_settings(model.config))
    generation = model.generation_config
    stop_tokens = list(tokenizer.stop_tokens)
    generation.eos_token_id = stop_tokens if len(stop_tokens) > 1 else stop_tokens[0]
    generation.pad_token_id = tokenizer.eos if pad is None else pad
    if generation.temperature not in (None, 1.0) or generation.top_p not in (None, 1.0):
        generation.do_sample = True  # transformers refuses to save sampling settings without it, as chat models had
    try:
        save_weights(model, folder)
    finally:
        model.config.update(rates)
    tokenizer.hf_tokenizer.save_pretrained(folder)
