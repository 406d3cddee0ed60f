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
from instructgpt.data.packing import Batch, Example, collate
from instructgpt.data.tokenization import Renderer
from instructgpt.distributed.comm import all_ranks, enter
from instructgpt.errors import BadInput, in_one_line
from instructgpt.models.lora import save_weights
from instructgpt.models.lora import trunk as trunk
from instructgpt.models.packed_attention import hidden_states, use_packed_attention

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
for library in ("transformers", "huggingface_hub"):
    logging.getLogger(library).setLevel(logging.ERROR)

WINDOW = "pretraining_window"
LOGITS_HELD = 2**25
"""Logits held at once: 128 MiB in float32, and as much again for their gradient."""
HUB_SECONDS = 10.0
"""The hub has so long to answer before a model is looked for among those that were downloaded before."""
RESIDUAL_DROPOUT = ("resid_pdrop", "hidden_dropout", "resid_dropout", "residual_dropout")
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
        raise BadInput(f"--device {name}: not a device that works here ({in_one_line(error, 300)})") from error
    return device if all_ranks().total == 1 and "offload" not in memory else torch.device("cpu")


@functools.cache
def hub_answers() -> bool:
    """Whether the hub can be reached. Asked once: without a network, transformers would ask again and again, for most of a minute."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception:  # their kinds are those of whatever client is underneath
        return False
    return True


def from_pretrained(kind: Any, source: Path | str, **options: Any) -> Any:
    """`kind.from_pretrained` with our rules: safetensors only, no code from outside, no silent download for a directory.

    Where the hub does not answer, a name means what was downloaded before.

    Raises:
        BadInput: there is no such model, or its files do not fit together.
    """
    path = Path(source)
    local = path.is_dir()
    if path.is_file():
        raise BadInput(f"{source}: is a file, expected the directory of a model")
    if not local and (path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1):
        raise BadInput(f"{source}: no such directory")
    if local and not (path / "config.json").exists() and kind is not transformers.AutoTokenizer:
        raise BadInput(f"{source}: not a model directory (no config.json); has the stage that makes it finished?")
    known = local or not hub_answers()
    try:
        return kind.from_pretrained(str(source), local_files_only=known, trust_remote_code=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # the libraries below raise a dozen unrelated kinds
        if "ignore_mismatched_sizes" in str(error):
            raise BadInput(f"{source}: weights in the files have other shapes than config.json says; they are of two models") from error
        what = "cannot be loaded" if local else "there is no such directory, and no model of that name can be loaded from the hub"
        what += ", which does not answer" if known and not local else ""
        raise BadInput(f"{source}: {what} ({in_one_line(error, 300)})") from error


def load_renderer(source: Path | str) -> Renderer:
    """The tokenizer of a model directory or hub name, with its template.

    Raises:
        BadInput: there is no tokenizer, or it has no end-of-text token.
    """
    path = Path(source)
    if path.is_dir() and not any(
        (path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    ):
        raise BadInput(f"{source}: no tokenizer in this model directory; save one there with tokenizer.save_pretrained")
    return Renderer(from_pretrained(transformers.AutoTokenizer, source))


def load_policy(source: Path | str, device: torch.device, residual_dropout: float = 0.0) -> tuple[Any, Renderer]:
    """A causal language model in evaluation mode, and its renderer.

    Args:
        source: a directory or a hub name.
        device: where the weights go.
        residual_dropout: set where the family has such a dropout (appendix C.1); it acts in training mode only. Any other is off.

    Raises:
        BadInput: the model or its tokenizer is missing, weights are missing, or the family cannot be computed with.
    """
    render = load_renderer(source)
    dropout = dropouts(from_pretrained(transformers.AutoConfig, source), residual_dropout)
    model, info = from_pretrained(
        transformers.AutoModelForCausalLM, source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **dropout
    )
    must_be_whole(source, info)
    if "score.weight" in info["unexpected_keys"]:
        raise BadInput(f"{source}: is a reward model, expected a language model, as the one it was made from")
    if render.eos >= model.get_input_embeddings().num_embeddings:
        raise BadInput(f"{source}: the tokenizer's end-of-text is no token of the model; save the tokenizer the model was trained with")
    model.to(device).eval()
    use_packed_attention(model)
    check_head(model, str(source))
    return model, render


def must_be_whole(source: Path | str, info: dict[str, Any], drawn: frozenset[str] = frozenset()) -> None:
    """Refuse a model some of whose weights were in no file, and so are random numbers. `drawn`: those that are meant to be.

    Raises:
        BadInput: weights are missing.
    """
    if missing := sorted(set(info["missing_keys"]) - drawn):
        raise BadInput(f"{source}: weights are missing from the files: {', '.join(missing[:3])}")


def dropouts(config: Any, residual: float = 0.0) -> dict[str, float]:
    """Every dropout of a configuration, by name: those on the residual stream as given, all others 0."""
    rates = {name: 0.0 for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)}
    return rates | {name: residual for name in RESIDUAL_DROPOUT if name in rates}


@torch.no_grad()
def check_head(model: Any, source: str) -> None:
    """Logits made from the picked hidden states must be the model's own; a family that reworks them afterwards is refused.

    Raises:
        BadInput: they differ, or are no numbers.
    """
    batch = collate([Example([0], [1, 2])], model.device)
    own = model(input_ids=batch.tokens[None], use_cache=False).logits[0]
    ours = next_logits(model, hidden_states(model, batch))
    if not own.isfinite().all():
        raise BadInput(f"{source}: the model's logits are not finite; its weights are damaged")
    if own.shape != ours.shape or not torch.allclose(own, ours, atol=1e-4, rtol=1e-4):
        raise BadInput(f"{source}: this family changes its logits after the output layer, which is not supported yet")


def next_logits(model: Any, states: Tensor) -> Tensor:
    """Logits of the next token, only where they are needed. (N, D) -> (N, V)."""
    logits: Tensor = model.get_output_embeddings()(states)
    return logits


def completion_numbers(model: Any, batch: Batch, *measures: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """What each measure says of the logits (m, V) that predict completion tokens, and of these tokens (m,). -> (M,) each.

    Where a batch has more logits than are to be held, they are computed part by part, and once more in the backward pass.
    """

    def of(states: Tensor, targets: Tensor) -> list[Tensor]:
        logits = next_logits(model, states)
        return [measure(logits, targets) for measure in measures]

    def numbers() -> list[Tensor]:
        states = hidden_states(model, batch, "predicts")
        at_once = max(1, LOGITS_HELD // len(model.get_output_embeddings().weight))
        if len(states) <= at_once:
            return of(states, batch.targets)
        shares = zip(torch.split(states, at_once), torch.split(batch.targets, at_once), strict=True)
        parts = [checkpoint(of, *share, use_reentrant=False, preserve_rng_state=False) for share in shares]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    return enter(model, numbers)


def completion_logp(model: Any, batch: Batch) -> Tensor:
    """Log-probability of every completion token of a batch, in the order of `batch.targets`. -> (M,)."""
    return completion_numbers(model, batch, functional.token_logp)[0]


def context_length(model: Any) -> int:
    """How many tokens the model was built for."""
    config = model.config
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)


def pretraining_window(model: Any) -> int:
    """Tokens in a row of pretraining text: what the base was trained on where our `pretrain` made it, else its context, at most 2048."""
    return min(int(getattr(model.config, WINDOW, 2048)), context_length(model) - 1)


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_policy(model: Any, render: Renderer, folder: Path) -> None:
    """Write a plain Hugging Face directory: weights, configuration, tokenizer with its template, generation settings.

    Dropout belongs to the stage that trained with it: the configuration that is saved has none.
    """
    model.config.update(dropouts(model.config))
    model.generation_config.eos_token_id = render.eos
    model.generation_config.pad_token_id = render.tokenizer.pad_token_id if render.tokenizer.pad_token_id is not None else render.eos
    save_weights(model, folder)
    render.tokenizer.save_pretrained(folder)
