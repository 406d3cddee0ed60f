"""Reward models and value models: a trunk and a scalar head, and the offset that centres demonstrations on 0.

They are transformers' own sequence classifiers with one label, so any stock tool loads them. Stock heads have no bias
and would drop the offset without a word (a known trap), so it is kept in `config.json` and in the metadata of the
weights, applied here, and a reward model without it is refused.
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

from instructgpt.data.packing import Batch, Example, by_prompt, collate, token_budget
from instructgpt.data.tokenization import Renderer
from instructgpt.distributed.comm import collect, enter, in_step, ranks_of, share
from instructgpt.errors import BadInput
from instructgpt.io import safetensors_head
from instructgpt.models.lora import WithoutAdapters, save_weights, with_adapters
from instructgpt.models.packed_attention import Read, hidden_states, use_packed_attention
from instructgpt.models.policy import context_length, from_pretrained, load_renderer, must_be_whole

OFFSET = "score_offset"
PAD = "<|pad|>"


@dataclass(slots=True)
class ScalarModel:
    """A trunk with a scalar head, its renderer, and what is subtracted from what the head says."""

    model: Any
    render: Renderer
    offset: float = 0.0

    def per_token(self, batch: Batch, read: Read | None = None) -> Tensor:
        """One number for each token of a batch that is read, or for all, in float32. -> (m,). For a value model: the value after it."""

        def raw() -> Tensor:
            numbers: Tensor = self.model.score(hidden_states(self.model, batch, read))
            return numbers

        return enter(self.model, raw)[:, 0].float() - self.offset

    def last(self, batch: Batch) -> Tensor:
        """The score of each example: the number at its last token, found by position. -> (B,)."""
        return self.per_token(batch, "last")

    @torch.no_grad()
    def score(self, examples: Sequence[Example]) -> Tensor:
        """Scores of examples, whatever the batch they are computed in. -> (B,) on the CPU.

        Raises:
            BadInput: an example does not fit the context.
        """
        device, context = self.model.device, context_length(self.model)
        longest = max(map(len, examples), default=0)
        if longest > context:
            raise BadInput(f"a prompt with its completion has {longest} tokens, but the reward model's context is {context}; shorten them")
        ranks = ranks_of(self.model)
        mine = share([len(example) for example in examples], ranks)
        own = [examples[row] for row in mine]
        scores = torch.empty(len(own))
        for rows in in_step(by_prompt(own, token_budget(device)), ranks):
            scores[rows] = self.last(collate([own[row] for row in rows], device)).cpu()
        return torch.tensor(collect(mine, scores.tolist(), len(examples), ranks))


def head_of(model: Any, source: str) -> nn.Linear:
    """The scalar head.

    Raises:
        BadInput: the family has none of the stock kind.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise BadInput(f"{source}: transformers has no sequence classifier with a linear 'score' head for this family")
    return head


def new_reward_model(base: Path | str, device: torch.device, seed: int) -> ScalarModel:
    """A reward model about to be trained: trunk of a policy, head drawn from N(0, 1 / (D + 1)) (Huang et al. 2023, detail 8).

    The tokenizer gets a padding token of its own, so that stock code, which looks for padding by its id, never mistakes
    the end-of-text for it.

    Raises:
        BadInput: the base cannot be loaded or has no stock classifier.
    """
    render = load_renderer(base)
    model, info = from_pretrained(
        transformers.AutoModelForSequenceClassification,
        base, dtype=torch.float32, use_safetensors=True, num_labels=1, output_loading_info=True,
    )  # fmt: skip
    must_be_whole(base, info, frozenset({"score.weight", "score.bias"}))
    head = head_of(model, str(base))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / math.sqrt(head.in_features + 1))
        if head.bias is not None:
            head.bias.zero_()
    if render.tokenizer.pad_token_id is None or render.tokenizer.pad_token_id == render.eos:
        render.tokenizer.add_special_tokens({"pad_token": PAD})
        known = model.get_input_embeddings().num_embeddings
        if len(render.tokenizer) > known:
            model.resize_token_embeddings(len(render.tokenizer), mean_resizing=False)
            torch.nn.init.zeros_(model.get_input_embeddings().weight[known:])
    model.config.pad_token_id = render.tokenizer.pad_token_id
    model.config.problem_type = "regression"
    model.to(device).eval()
    use_packed_attention(model)
    return ScalarModel(model, render)


def load_reward_model(source: Path | str, device: torch.device) -> ScalarModel:
    """A trained reward model with its offset.

    Raises:
        BadInput: the head's weights are not in the files, or no offset was recorded.
    """
    render = load_renderer(source)
    model, info = from_pretrained(
        transformers.AutoModelForSequenceClassification, source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise BadInput(f"{source}: not a reward model, weights are missing from the files: {missing}; train one with 'instructgpt reward'")
    head_of(model, str(source))
    offset = getattr(model.config, OFFSET, None)
    recorded = recorded_offset(Path(source)) if Path(source).is_dir() else offset
    if offset is None or recorded is None:
        raise BadInput(f"{source}: no recorded offset that centres demonstrations on 0; train with 'instructgpt reward', which records one")
    if abs(offset - recorded) > 1e-6:
        raise BadInput(f"{source}: config.json says the offset is {offset}, the weights say {recorded}; the files are of two models")
    model.to(device).eval()
    use_packed_attention(model)
    return ScalarModel(model, render, float(offset))


def new_value_model(reward: ScalarModel) -> ScalarModel:
    """A value model started from the reward model: its own copy of the weights (paper, appendix C.4)."""
    return ScalarModel(copy.deepcopy(reward.model), reward.render, reward.offset)


def adapted_value_model(reward: ScalarModel, rank: int, seed: int) -> tuple[ScalarModel, ScalarModel]:
    """A value model that is an adapter and a head over the reward model's weights; and the reward model, which lies under it."""
    value = ScalarModel(with_adapters(reward.model, rank, seed), reward.render, reward.offset)
    return value, ScalarModel(WithoutAdapters(value.model), reward.render, reward.offset)


def recorded_offset(folder: Path) -> float | None:
    """The offset in the metadata of the weights, or None."""
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as weights:
            metadata = weights.metadata() or {}
        return float(metadata[OFFSET]) if OFFSET in metadata else None
    return None


def save_reward_model(reward: ScalarModel, folder: Path) -> None:
    """Write a directory that `AutoModelForSequenceClassification` loads, with the offset in config and weights."""
    setattr(reward.model.config, OFFSET, reward.offset)
    save_weights(reward.model, folder)
    reward.render.tokenizer.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        add_metadata(file, {OFFSET: repr(reward.offset)})


def add_metadata(file: Path, words: dict[str, str]) -> None:
    """Write words into the header of a safetensors file: eight bytes of length, JSON, then the numbers, which stay as they are.

    The library's own writer puts them in another order each time, so that two runs of one seed would not leave the same bytes.
    """
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = header.get("__metadata__", {}) | words
    file.write_bytes(safetensors_head(header) + content[start:])
