"""Pretraining text: documents to one long line of tokens, cut into full windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor

from instructgpt.data.packing import Example, rows_of_stream
from instructgpt.data.tokenization import Renderer
from instructgpt.errors import BadInput
from instructgpt.records import Document, Skipped, read_records

END_OF_TEXT = "<|endoftext|>"
ENCODE_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Corpus:
    """Windows of pretraining tokens. Documents follow each other with an end-of-text token between."""

    tokens: Tensor  # (windows, T + 1) int32: T tokens and the one after them
    eos: int
    seed: int

    def __len__(self) -> int:
        return len(self.tokens)

    def windows(self, first: int, count: int) -> Tensor:
        """Windows number `first` to `first + count` of an endless, reshuffled stream. -> (count, T + 1) int64."""
        return self.tokens[rows_of_stream(first, count, len(self), self.seed)].long()

    def examples(self, first: int, count: int) -> list[Example]:
        """The same windows as examples. Every token but a window's first is predicted once, from its own document alone.

        A document begins at the end-of-text before it: the last token to predict of one is the first that the next one sees.
        """
        rows = self.windows(first, count).tolist()
        return [Example(row[:1], row[1:], tuple(i for i, token in enumerate(row) if token == self.eos and i > 0)) for row in rows]


def documents(paths: Iterable[Path], skipped: Skipped | None = None) -> Iterator[str]:
    """Texts of the files, one after the other."""
    for path in paths:
        for document in read_records(Document, path, skipped):
            yield document.text


def read_corpus(
    texts: Iterable[str], render: Renderer, window: int, seed: int, most_windows: int | None = None, name: str = "the corpus"
) -> Corpus:
    """Tokenise documents into windows, reading no further than needed.

    Args:
        texts: the documents; render: the tokenizer; window: T; seed: of the order of windows.
        most_windows: stop reading when there are as many.
        name: what an error calls the texts.

    Raises:
        BadInput: there is not even one window of text.
    """
    width = window + 1
    parts: list[Tensor] = []
    have = 0
    for block in _blocks(_pieces(texts), ENCODE_AT_ONCE):
        ids = render.tokenizer([piece for piece, _ in block], add_special_tokens=False)["input_ids"]
        for tokens, (_, ends) in zip(ids, block, strict=True):
            parts.append(torch.tensor([*tokens, render.eos] if ends else tokens, dtype=torch.int32))
            have += len(parts[-1])
        if most_windows is not None and have >= most_windows * width:
            break
    if have < width:
        raise BadInput(f"{name} has {have} tokens, less than one window of {width}; give more text, or a smaller window")
    line = torch.cat(parts)
    count = len(line) // width
    return Corpus(line[: count * width].view(count, width)[:most_windows], render.eos, seed)


def _pieces(texts: Iterable[str], size: int = 50_000) -> Iterator[tuple[str, bool]]:
    """Documents in pieces of about `size` characters, cut at line ends, so that no book is tokenised at once; and which are last."""
    for text in texts:
        start = 0
        while len(text) - start > size:
            end = text.rfind("\n", start, start + size) + 1 or start + size
            yield text[start:end], False
            start = end
        yield text[start:], True


def _blocks(pieces: Iterable[tuple[str, bool]], size: int) -> Iterator[list[tuple[str, bool]]]:
    block: list[tuple[str, bool]] = []
    for piece in pieces:
        block.append(piece)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of a given size, trained on text: no text is out of its reach."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    start = (END_OF_TEXT, model.token_to_id(END_OF_TEXT))  # every text begins as documents of the corpus do: after an end-of-text
    model.post_processor = tokenizers.processors.TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[start])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)


def hold_out_documents(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Documents for training and, evenly spread among them, a share held out for validation; a few long ones are cut first."""
    every = max(2, round(1 / share))
    if len(texts) < every:
        texts = [piece for piece, _ in _pieces(texts, max(1, sum(map(len, texts)) // every))]
    return [text for i, text in enumerate(texts) if i % every], [text for i, text in enumerate(texts) if i % every == 0]
