"""Other people's reward models: transformers' sequence classifiers with one label, as their own forward pass scores.

A decoder whose head reads the last token is computed as our own reward models are, packed and at every token. For any
other classifier (an encoder such as DeBERTa, a head with layers of its own) the stock forward pass scores whole texts;
such a model has no output at every token, so it cannot be the start of a value model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from instructgpt.data.packing import PackedBatch, TokenizedExample, collate
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import InputError, one_line
from instructgpt.models.families import named_context
from instructgpt.models.loading import count_adapter_labels, find_model_files, from_pretrained, load_hf_tokenizer
from instructgpt.models.packed_attention import hidden_states
from instructgpt.records import PromptFields

_PROBE_TOKENS = 5
_PROBE_TOLERANCE = 1e-4


class PairTokenizer(PromptTokenizer):
    """The tokenizer of an encoder without a chat template: prompt and completion as its pair of texts.

    Such a format has no end of text, so that a truncated completion reads like a finished one.
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer
        self.eos: int = hf_tokenizer.sep_token_id
        self.bos: int | None = hf_tokenizer.cls_token_id
        self.end_of_turn: int = self.eos
        self.stop_tokens: tuple[int, ...] = (self.eos,)

    def encode_prompt(self, prompt: PromptFields | str) -> list[int]:
        return self._encode(prompt if isinstance(prompt, str) else prompt.prompt)

    def encode_completion(self, text: str, *, finished: bool = True) -> list[int]:  # noqa: ARG002
        return self._encode("", text)[len(self._encode("")) :]

    def check_prompt(self, record: PromptFields) -> None:
        """Accept every conversation: it is read as text."""

    def _encode(self, *texts: str) -> list[int]:
        tokens: list[int] = self.hf_tokenizer(*texts, split_special_tokens=True)["input_ids"]
        return tokens

    def is_compatible(self, tokenizer: PromptTokenizer) -> bool:
        return self is tokenizer


def load_pair_tokenizer(source: Path | str) -> PairTokenizer | None:
    """Load the tokenizer of an encoder; None where it has a chat template, or no tokens around a pair of texts."""
    hf_tokenizer = load_hf_tokenizer(source)
    is_pair = hf_tokenizer.cls_token_id is not None and hf_tokenizer.sep_token_id is not None
    return PairTokenizer(hf_tokenizer) if is_pair and hf_tokenizer.chat_template is None else None


def is_one_label_classifier(source: Path | str) -> bool:
    """Return whether a model is a sequence classifier with one label, from its configuration or its adapter's head.

    Raises:
        InputError: it cannot be read, or it is a classifier with several labels.
    """
    files = find_model_files(source)
    config = from_pretrained(transformers.AutoConfig, files.base)
    adapter_labels = count_adapter_labels(files)
    if adapter_labels is not None:
        config.num_labels = adapter_labels
    elif not any("SequenceClassification" in name for name in config.architectures or ()):
        return False
    if config.num_labels != 1:
        names = ", ".join(str(config.id2label[index]) for index in range(min(config.num_labels, 4)))
        labels = f"{names}, …" if config.num_labels > 4 else names
        raise InputError(
            f"{source}: is a classifier with {config.num_labels} labels ({labels}), expected a reward model, "
            "a classifier with one label"
        )
    return True


def get_token_head(model: Any) -> nn.Linear | None:
    """Return the linear head that gives one number a token; None where the family has no such head."""
    head = getattr(model, "score", None)
    return head if isinstance(head, nn.Linear) and head.out_features == 1 else None


@torch.no_grad()
def has_token_scores(model: Any, source: Path | str) -> bool:
    """Return whether the head at the last token of a causal trunk gives the score of the stock forward pass.

    Raises:
        InputError: the stock forward pass fails, or gives anything but one finite number a text.
    """
    pad = model.config.pad_token_id
    tokens = [token for token in range(_PROBE_TOKENS + 1) if token != pad][:_PROBE_TOKENS]
    batch, prefix = (collate([TokenizedExample(tokens[:2], tokens[2:end])], model.device) for end in (None, -1))
    try:
        expected = classifier_scores(model, batch)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = f"the classifier cannot score a text ({one_line(error, 200)})"
        raise InputError(f"{source}: {reason}; choose another reward model") from error
    if expected.shape != (1,) or not expected.isfinite().all():
        raise InputError(f"{source}: the classifier's score is no finite number; its weights are damaged")
    head = get_token_head(model)
    if head is None:
        return False
    states, prefix_states = hidden_states(model, batch), hidden_states(model, prefix)
    is_causal = torch.allclose(states[:-1], prefix_states, atol=_PROBE_TOLERANCE, rtol=_PROBE_TOLERANCE)
    return is_causal and torch.allclose(head(states[-1:])[:, 0], expected, atol=_PROBE_TOLERANCE, rtol=_PROBE_TOLERANCE)


def classifier_scores(model: Any, batch: PackedBatch, separator: int | None = None) -> Tensor:
    """Return the scores of a batch's examples by the model's own forward pass. -> (B,).

    Only texts of equal length, with as many end tokens, are computed together, so there is no padding that a family
    could treat in its own way.
    With a `separator` token, and where the model knows token types, the second text of a pair begins after its first.
    """
    span_of_end = {span.end - 1: span for span in batch.spans}
    rows = []
    for position in batch.last_positions.tolist():
        span = span_of_end[position]
        parts = (span,) if span.prompt is None else (span.prompt, span)
        rows.append(_end_with_eos(model, torch.cat([batch.input_ids[part.start : part.end] for part in parts])))
    if not rows:  # an idle rank runs a sharded model too
        unread = _forward(model, batch.input_ids[None, :1], None).flatten()
        return unread[:0]
    rows_by_length: dict[tuple[int, int], list[int]] = {}
    for row, tokens in enumerate(rows):
        # without a padding token, stock code refuses more than one row, and rows with different numbers of end tokens
        ends = int((tokens == model.config.eos_token_id).sum()) if model.config.is_encoder_decoder else 0
        key = (len(tokens), ends) if model.config.pad_token_id is not None else (-row, 0)
        rows_by_length.setdefault(key, []).append(row)
    order = [row for group in rows_by_length.values() for row in group]
    outputs = [
        _forward(model, torch.stack([rows[row] for row in group]), separator) for group in rows_by_length.values()
    ]
    inverse = torch.tensor(order).argsort().to(batch.input_ids.device)
    return torch.cat(outputs).flatten()[inverse]


def _end_with_eos(model: Any, tokens: Tensor) -> Tensor:
    """Return the tokens with the end token where T5, BART and their like read the score: a text cut off has none."""
    if not model.config.is_encoder_decoder:
        return tokens
    eos = model.config.eos_token_id
    if eos is None or tokens[-1] == eos:
        return tokens
    room = (named_context(model.config) or len(tokens) + 1) - 1
    return torch.cat([tokens[-room:], tokens.new_tensor([eos])])


def _forward(model: Any, input_ids: Tensor, separator: int | None) -> Tensor:
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if separator is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        is_separator = (input_ids == separator).long()
        inputs["token_type_ids"] = (is_separator.cumsum(1) - is_separator > 0).long()
    logits: Tensor = model(**inputs).logits
    return logits
