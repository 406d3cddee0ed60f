"""Reward models and value models: a backbone, a scalar head, and the offset that centers demonstrations on 0.

They are transformers' sequence classifiers with one label, so stock tools load them. Stock heads have no bias and would
silently drop the offset, so `config.json` and the metadata of the weights hold it, and `ScalarModel` subtracts it.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from torch import Tensor, nn

from instructgpt.data.packing import PackedBatch, TokenizedExample, collate, microbatches_by_prompt, token_budget
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.comm import call_sharded, gather_in_order, get_model_dist_info, pad_steps, shard_by_length
from instructgpt.errors import InputError
from instructgpt.io import serialize_safetensors_header
from instructgpt.models.last_layer_subset import TokenSelection
from instructgpt.models.lora import BaseModelView, add_lora, save_weights
from instructgpt.models.packed_attention import hidden_states, use_packed_attention
from instructgpt.models.policy import check_no_missing_weights, context_length, from_pretrained, load_tokenizer
from instructgpt.models.precision import compute_device

SCORE_OFFSET_KEY = "score_offset"
_PAD_TOKEN = "<|pad|>"


@dataclass(slots=True)
class ScalarModel:
    """A backbone with a scalar head, its tokenizer, and the offset that is subtracted from the head's output."""

    model: Any
    tokenizer: PromptTokenizer
    offset: float = 0.0

    def token_outputs(self, batch: PackedBatch, select: TokenSelection | None = None) -> Tensor:
        """Return the head's output at the selected tokens, or at all, in float32: scores, or values. -> (m,)."""

        def forward() -> Tensor:
            outputs: Tensor = self.model.score(hidden_states(self.model, batch, select))
            return outputs

        return call_sharded(self.model, forward)[:, 0].float() - self.offset

    def sequence_scores(self, batch: PackedBatch) -> Tensor:
        """Return the score of each example: the output at its last token, found by position. -> (B,)."""
        return self.token_outputs(batch, "last_positions")

    @torch.no_grad()
    def score(self, examples: Sequence[TokenizedExample]) -> Tensor:
        """Return the scores of examples, computed in microbatches that do not change them. -> (B,) on the CPU.

        Raises:
            InputError: an example is longer than the context.
        """
        device, max_length = compute_device(self.model), context_length(self.model)
        longest_example = max(map(len, examples), default=0)
        if longest_example > max_length:
            length = f"a prompt with its completion has {longest_example} tokens"
            raise InputError(f"{length}, but the reward model's context is {max_length}; shorten them")
        dist_info = get_model_dist_info(self.model)
        indices = shard_by_length([len(example) for example in examples], dist_info)
        local_examples = [examples[row] for row in indices]
        scores = torch.empty(len(local_examples))
        for rows in pad_steps(microbatches_by_prompt(local_examples, token_budget(device)), dist_info):
            scores[rows] = self.sequence_scores(collate([local_examples[row] for row in rows], device)).cpu()
        return torch.tensor(gather_in_order(indices, scores.tolist(), len(examples), dist_info))


def _get_scalar_head(model: Any, source: str) -> nn.Linear:
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        reason = "transformers has no sequence classifier with a linear 'score' head for this family"
        raise InputError(f"{source}: {reason}")
    return head


def new_reward_model(base: Path | str, device: torch.device, seed: int) -> ScalarModel:
    """Create an untrained reward model: a policy's backbone, a head from N(0, 1/(D + 1)) (Huang et al. 2023, detail 8).

    The tokenizer gets its own padding token: stock code finds the last token by it, and would stop at an end-of-text.

    Raises:
        InputError: the base cannot be loaded, or its family has no stock classifier.
    """
    tokenizer = load_tokenizer(base)
    model, loading_info = from_pretrained(
        transformers.AutoModelForSequenceClassification,
        base,
        dtype=torch.float32,
        use_safetensors=True,
        num_labels=1,
        output_loading_info=True,
    )
    check_no_missing_weights(base, loading_info, frozenset({"score.weight", "score.bias"}))
    head = _get_scalar_head(model, str(base))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / math.sqrt(head.in_features + 1))
        if head.bias is not None:
            head.bias.zero_()
    if tokenizer.hf_tokenizer.pad_token_id is None or tokenizer.hf_tokenizer.pad_token_id == tokenizer.eos:
        tokenizer.hf_tokenizer.add_special_tokens({"pad_token": _PAD_TOKEN})
        vocab_size = model.get_input_embeddings().num_embeddings
        if len(tokenizer.hf_tokenizer) > vocab_size:
            model.resize_token_embeddings(len(tokenizer.hf_tokenizer), mean_resizing=False)
            torch.nn.init.zeros_(model.get_input_embeddings().weight[vocab_size:])
    model.config.pad_token_id = tokenizer.hf_tokenizer.pad_token_id
    model.config.problem_type = "regression"
    model.to(device).eval()
    use_packed_attention(model)
    return ScalarModel(model, tokenizer)


def load_reward_model(source: Path | str, device: torch.device) -> ScalarModel:
    """Load a trained reward model with its offset.

    Raises:
        InputError: weights of the head are missing, or the offset is.
    """
    tokenizer = load_tokenizer(source)
    model, loading_info = from_pretrained(
        transformers.AutoModelForSequenceClassification,
        source,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
    )
    if loading_info["missing_keys"]:
        missing = ", ".join(sorted(loading_info["missing_keys"])[:3])
        reason = f"not a reward model, weights are missing from the files: {missing}"
        raise InputError(f"{source}: {reason}; train one with 'instructgpt reward'")
    _get_scalar_head(model, str(source))
    config_offset = getattr(model.config, SCORE_OFFSET_KEY, None)
    weights_offset = read_score_offset(Path(source)) if Path(source).is_dir() else config_offset
    if config_offset is None or weights_offset is None:
        reason = "no recorded offset that centers demonstrations on 0"
        raise InputError(f"{source}: {reason}; 'instructgpt reward' records one")
    if abs(config_offset - weights_offset) > 1e-6:
        offsets = f"config.json says the offset is {config_offset}, the weights say {weights_offset}"
        raise InputError(f"{source}: {offsets}; the files belong to two models")
    model.to(device).eval()
    use_packed_attention(model)
    return ScalarModel(model, tokenizer, float(config_offset))


def new_value_model(reward_model: ScalarModel) -> ScalarModel:
    """Create a value model from a copy of the reward model's weights (paper, appendix C.4)."""
    return ScalarModel(copy.deepcopy(reward_model.model), reward_model.tokenizer, reward_model.offset)


def value_model_from_adapter(reward_model: ScalarModel, rank: int, seed: int) -> tuple[ScalarModel, ScalarModel]:
    """Create a value model as adapters and a head over a reward model's weights. Return it and that reward model."""
    value_model = ScalarModel(add_lora(reward_model.model, rank, seed), reward_model.tokenizer, reward_model.offset)
    return value_model, ScalarModel(BaseModelView(value_model.model), reward_model.tokenizer, reward_model.offset)


def read_score_offset(folder: Path) -> float | None:
    """Return the offset in the metadata of the weights, or None."""
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as weights:
            metadata = weights.metadata() or {}
        return float(metadata[SCORE_OFFSET_KEY]) if SCORE_OFFSET_KEY in metadata else None
    return None


def save_reward_model(reward_model: ScalarModel, folder: Path) -> None:
    """Write a directory for `AutoModelForSequenceClassification`, with the offset in config and weights."""
    setattr(reward_model.model.config, SCORE_OFFSET_KEY, reward_model.offset)
    save_weights(reward_model.model, folder)
    reward_model.tokenizer.hf_tokenizer.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        _write_safetensors_metadata(path, {SCORE_OFFSET_KEY: repr(reward_model.offset)})


def _write_safetensors_metadata(path: Path, metadata: dict[str, str]) -> None:
    # a safetensors file is 8 bytes of header length, a JSON header, the tensors. The library writes metadata in an
    # order that changes from run to run; the same seed must give the same bytes
    content = path.read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data_start])
    header["__metadata__"] = header.get("__metadata__", {}) | metadata
    path.write_bytes(serialize_safetensors_header(header) + content[data_start:])
