"""Reward models and value models: a backbone, a scalar head, and the offset that centers demonstrations on 0.

They are transformers' sequence classifiers with one label, so stock tools load ours and we load anybody's. Stock heads
have no bias and would silently drop the offset, so `config.json` and the metadata of the weights hold it, and
`ScalarModel` subtracts it. Where other people's models record none, it is measured on demonstrations, or is 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch
import transformers
from torch import Tensor, nn

from instructgpt.data.packing import PackedBatch, TokenizedExample, collate, microbatches_by_prompt, token_budget
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.comm import call_sharded, gather_in_order, get_model_dist_info, pad_steps, shard_by_length
from instructgpt.errors import InputError
from instructgpt.io import serialize_safetensors_header
from instructgpt.models.classifier import (
    classifier_scores,
    get_token_head,
    has_token_scores,
    is_one_label_classifier,
    load_pair_tokenizer,
)
from instructgpt.models.flop_count import count_outputs
from instructgpt.models.group_heads import (
    HeadsOfGroups,
    add_to_head,
    describe_group_head,
    select_groups,
    stack_heads,
)
from instructgpt.models.last_layer_subset import TokenSelection
from instructgpt.models.loading import add_notice, load_model
from instructgpt.models.lora import BaseModelView, add_lora, save_weights
from instructgpt.models.packed_attention import hidden_states
from instructgpt.models.policy import (
    check_no_missing_weights,
    check_tokenizer_fits,
    context_length,
    load_tokenizer,
    prepare_model,
)
from instructgpt.models.precision import compute_device
from instructgpt.models.sharding import copy_model
from instructgpt.records import Demonstration
from instructgpt.run.timing import PHASE_TIMER

SCORE_OFFSET_KEY = "score_offset"
OffsetSource = Literal["recorded", "measured", "none"]
_PAD_TOKEN = "<|pad|>"


@dataclass(slots=True)
class ScalarModel:
    """A backbone with a scalar head, its tokenizer, and the offset that is subtracted from the head's output."""

    model: Any
    tokenizer: PromptTokenizer
    offset: float = 0.0
    offset_source: OffsetSource = "recorded"
    has_token_outputs: bool = True  # False: only the stock forward pass of a whole text gives the score
    groups: tuple[str, ...] = ()  # of labelers, whose scores it gives; none: those of all labelers
    group_heads: HeadsOfGroups | None = None  # of several groups

    @property
    def context(self) -> int:
        """Longest text in tokens."""
        length = context_length(self.model)
        return length if self.has_token_outputs else min(length, self.tokenizer.hf_tokenizer.model_max_length)

    def token_outputs(self, batch: PackedBatch, select: TokenSelection | None = None) -> Tensor:
        """Return the head's output at the selected tokens, or at all, in float32: scores, or values. -> (m,)."""

        def forward() -> Tensor:
            states = hidden_states(self.model, batch, select)
            count_outputs(self.model, len(states), head_size=1)
            outputs: Tensor = self.model.score(states)
            return outputs

        return call_sharded(self.model, forward)[:, 0].float() - self.offset

    def sequence_scores(self, batch: PackedBatch) -> Tensor:
        """Return the score of each example: the output at its last token, found by position. -> (B,)."""
        if self.has_token_outputs:
            return self.token_outputs(batch, "last_positions")
        separator = self.tokenizer.hf_tokenizer.sep_token_id
        PHASE_TIMER.has_uncounted_passes = True  # of a family whose shape is not known
        return call_sharded(self.model, classifier_scores, self.model, batch, separator).float() - self.offset

    @torch.no_grad()
    def score(self, examples: Sequence[TokenizedExample]) -> Tensor:
        """Return the scores of examples, computed in microbatches that do not change them. -> (B,) on the CPU.

        Raises:
            InputError: an example is longer than the context.
        """
        return self._compute_in_microbatches(examples, self.sequence_scores)

    @torch.no_grad()
    def score_with_head_inputs(self, examples: Sequence[TokenizedExample]) -> tuple[Tensor, Tensor]:
        """Return scores and what the head reads at each last token, in one pass. -> (B,), (B, D) on the CPU.

        Raises:
            InputError: an example is longer than the context.
        """
        assert self.has_token_outputs

        def compute(batch: PackedBatch) -> Tensor:
            def forward() -> Tensor:
                states = hidden_states(self.model, batch, "last_positions")
                return torch.cat([self.model.score(states).float(), states.float()], dim=1)

            return call_sharded(self.model, forward)

        outputs = self._compute_in_microbatches(examples, compute)
        return outputs[:, 0] - self.offset, outputs[:, 1:]

    def group_scores(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        """Return the scores of each of `group_heads`, (B,) on the CPU. Raises InputError as `score` does."""
        assert self.group_heads is not None
        return self.group_heads.scores(self.score_with_head_inputs(examples)[1])

    def _compute_in_microbatches(
        self, examples: Sequence[TokenizedExample], compute: Callable[[PackedBatch], Tensor]
    ) -> Tensor:
        device, max_length = compute_device(self.model), self.context
        longest_example = max(map(len, examples), default=0)
        if longest_example > max_length:
            length = f"a prompt with its completion has {longest_example} tokens"
            raise InputError(f"{length}, but the reward model's context is {max_length}; shorten them")
        dist_info = get_model_dist_info(self.model)
        indices = shard_by_length([len(example) for example in examples], dist_info)
        local_examples = [examples[row] for row in indices]
        outputs: list[Any] = [None] * len(local_examples)
        for rows in pad_steps(microbatches_by_prompt(local_examples, token_budget(device)), dist_info):
            computed = compute(collate([local_examples[row] for row in rows], device)).cpu().numpy()
            for row, output in zip(rows, computed, strict=True):
                outputs[row] = output
        return torch.from_numpy(np.array(gather_in_order(indices, outputs, len(examples), dist_info), np.float32))

    def truncate(self, examples: Sequence[TokenizedExample]) -> tuple[list[TokenizedExample], int]:
        """Cut examples that exceed the context from the left, and return how many were cut.

        A beginning-of-text token stays: encoders read the score there, and decoders were trained with it.
        """
        too_long = [row for row, example in enumerate(examples) if len(example) > self.context]
        fitting = list(examples)
        for row in too_long:
            ids = [*examples[row].prompt_ids, *examples[row].completion_ids]
            kept_start = [self.tokenizer.bos] if ids[0] == self.tokenizer.bos else []
            completion_ids = examples[row].completion_ids[-(self.context - len(kept_start)) :]
            num_prompt_ids = self.context - len(kept_start) - len(completion_ids)
            prompt_ids = examples[row].prompt_ids[-num_prompt_ids:] if num_prompt_ids else []
            fitting[row] = TokenizedExample([*kept_start, *prompt_ids], completion_ids)
        return fitting, len(too_long)

    def measure_offset(self, demonstrations: Sequence[Demonstration]) -> None:
        """Set the offset to the mean score of demonstrations, those that are too long cut from the left."""
        encode = self.tokenizer.encode_example
        examples = [encode(demonstration, demonstration.completion) for demonstration in demonstrations]
        self.offset, self.offset_source = 0.0, "measured"
        self.offset = float(self.score(self.truncate(examples)[0]).mean())


def _require_token_head(model: Any, source: Path | str) -> nn.Linear:
    head = get_token_head(model)
    if head is None:
        reason = "transformers has no sequence classifier with a linear 'score' head for this family"
        raise InputError(f"{source}: {reason}")
    return head


def new_reward_model(base: Path | str, device: torch.device, seed: int) -> ScalarModel:
    """Create a reward model to train: a policy's backbone, a head from N(0, 1/(D + 1)) (Huang et al. 2023, detail 8).

    Where the base is itself a reward model, its head stays as it is, bias included. The tokenizer gets its own padding
    token: stock code finds the last token by it, and would stop at an end-of-text.

    Raises:
        InputError: the base cannot be loaded, has several labels, or its family has no stock classifier.
    """
    if is_one_label_classifier(base):
        reward_model = load_reward_model(base, device)
        if reward_model.has_token_outputs:
            _add_padding_token(reward_model.model, reward_model.tokenizer)
        return reward_model
    tokenizer = load_tokenizer(base)
    model, loading_info = load_model(
        transformers.AutoModelForSequenceClassification, base, reward=True, changes={"num_labels": 1}
    )
    check_no_missing_weights(base, loading_info, frozenset({"score.weight", "score.bias"}))
    head = _require_token_head(model, base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / math.sqrt(head.in_features + 1))
        if head.bias is not None:
            head.bias.zero_()
    check_tokenizer_fits(tokenizer, model, base)
    _add_padding_token(model, tokenizer)
    model.config.problem_type = "regression"
    model.to(device).eval()
    prepare_model(model, base)
    return ScalarModel(model, tokenizer)


def _add_padding_token(model: Any, tokenizer: PromptTokenizer) -> None:
    """Give a model and its tokenizer a padding token that no text contains, unless they have one."""
    if tokenizer.hf_tokenizer.pad_token_id is None or tokenizer.hf_tokenizer.pad_token_id == tokenizer.eos:
        tokenizer.hf_tokenizer.add_special_tokens({"pad_token": _PAD_TOKEN})
        vocab_size = model.get_input_embeddings().num_embeddings
        if len(tokenizer.hf_tokenizer) > vocab_size:
            model.resize_token_embeddings(len(tokenizer.hf_tokenizer), mean_resizing=False)
            torch.nn.init.zeros_(model.get_input_embeddings().weight[vocab_size:])
    model.config.pad_token_id = tokenizer.hf_tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.hf_tokenizer.pad_token_id


def load_reward_model(source: Path | str, device: torch.device, groups: Sequence[str] = ()) -> ScalarModel:
    """Load a reward model of any family, with the offset that it records, or with 0.

    Args:
        source: a directory or a hub name.
        device: where it computes.
        groups: groups of labelers. The head of one replaces the shared head; those of several become `group_heads`.

    Raises:
        InputError: weights of the head are missing, it has several labels, it records two different offsets, or it has
            no head of a group.
    """
    is_one_label_classifier(source)
    model, loading_info = load_model(transformers.AutoModelForSequenceClassification, source, check=False)
    if loading_info["missing_keys"]:
        missing = ", ".join(sorted(loading_info["missing_keys"])[:3])
        reason = f"not a reward model, weights are missing from the files: {missing}"
        raise InputError(f"{source}: {reason}; train one with 'instructgpt reward'")
    _load_head_bias(model, source, loading_info["unexpected_keys"])
    model.to(device).eval()
    has_token_outputs = has_token_scores(model, source)
    pair_tokenizer = None if has_token_outputs else load_pair_tokenizer(source)
    tokenizer = pair_tokenizer or load_tokenizer(source)
    if has_token_outputs:
        prepare_model(model, source)
    offset = _read_recorded_offset(model, source)
    offset_source: OffsetSource = "none" if offset is None else "recorded"
    reward_model = ScalarModel(model, tokenizer, offset or 0.0, offset_source, has_token_outputs)
    if groups:
        _use_group_heads(reward_model, source, groups)
    return reward_model


def _use_group_heads(reward_model: ScalarModel, source: Path | str, groups: Sequence[str]) -> None:
    """Score as groups do: with the head of one, or with `group_heads` of several beside the shared one."""
    shared = get_token_head(reward_model.model)
    heads = select_groups(source, groups, 0 if shared is None else shared.in_features)
    assert shared is not None
    for group, head in zip(groups, heads, strict=True):
        add_notice(reward_model.model, describe_group_head(group, head))
    reward_model.groups = tuple(groups)
    if len(groups) == 1:
        add_to_head(shared, heads[0])
        reward_model.offset, reward_model.offset_source = heads[0].score_offset, "recorded"
    else:
        reward_model.group_heads = stack_heads(shared, groups, heads)


def _load_head_bias(model: Any, source: Path | str, unexpected_keys: Collection[str]) -> None:
    """Load the bias of a head whose stock class has none; other weights of a head that nothing reads are an error."""
    head, ignored = get_token_head(model), sorted(key for key in unexpected_keys if key.startswith("score."))
    if not ignored:
        return
    for path in sorted(Path(source).glob("*.safetensors")) if ignored == ["score.bias"] else ():
        with safetensors.safe_open(path, framework="pt") as weights:
            if head is not None and "score.bias" in weights.keys():  # noqa: SIM118  (a file, not a dictionary)
                head.bias = nn.Parameter(weights.get_tensor("score.bias").to(head.weight.dtype))
                return
    names = ", ".join(ignored[:3])
    raise InputError(
        f"{source}: transformers has no place for weights of the head ({names}); its scores would be wrong"
    )


def _read_recorded_offset(model: Any, source: Path | str) -> float | None:
    """Return the offset of config.json and of the weights' metadata; one of them suffices, since stock tools drop one.

    Raises:
        InputError: the two differ.
    """
    config_offset = getattr(model.config, SCORE_OFFSET_KEY, None)
    weights_offset = read_score_offset(Path(source)) if Path(source).is_dir() else None
    if config_offset is None or weights_offset is None:
        return weights_offset if config_offset is None else float(config_offset)
    if abs(config_offset - weights_offset) > 1e-6:
        offsets = f"config.json says the offset is {config_offset}, the weights say {weights_offset}"
        raise InputError(f"{source}: {offsets}; the files belong to two models")
    return float(config_offset)


def center_scores(reward_model: ScalarModel, name: str, demonstrations: Sequence[Demonstration]) -> str | None:
    """Measure a missing offset on demonstrations, and return a message where it is measured, missing or already there.

    Args:
        reward_model: gets the offset.
        name: what the message calls it.
        demonstrations: labelers' demonstrations, or none.
    """
    if reward_model.offset_source == "recorded":
        return f"{name}: the recorded offset is used, not --demonstrations" if demonstrations else None
    if demonstrations:
        reward_model.measure_offset(demonstrations)
        return f"{name}: offset {reward_model.offset:.4f}, measured on {len(demonstrations)} demonstrations"
    return (
        f"{name}: records no offset that centers demonstrations on 0, so 0 is used; "
        "measure one with --demonstrations where the zero of its scores matters"
    )


def value_model_from_copy(
    reward_model: ScalarModel, *, memory: Collection[str] = ()
) -> tuple[ScalarModel, ScalarModel]:
    """Make a reward model the value model that trains from its weights (paper, appendix C.4).

    Return it and a frozen copy, the reward model from now on.
    """
    frozen = replace(reward_model, model=copy_model(reward_model.model, trainable=False, memory=memory))
    return ScalarModel(reward_model.model.requires_grad_(True), reward_model.tokenizer, reward_model.offset), frozen


def value_model_from_adapter(reward_model: ScalarModel, rank: int, seed: int) -> tuple[ScalarModel, ScalarModel]:
    """Create a value model as adapters and a head over a reward model's weights. Return it and that reward model."""
    value_model = ScalarModel(add_lora(reward_model.model, rank, seed), reward_model.tokenizer, reward_model.offset)
    return value_model, replace(reward_model, model=BaseModelView(value_model.model))


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
