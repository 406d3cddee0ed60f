"""Pretraining text: documents tokenized into one line and cut into full windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import Tensor

from instructgpt.data.packing import TokenizedExample, stream_indices
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import InputError
from instructgpt.records import Document, SkippedLines, read_records

_END_OF_TEXT = "<|endoftext|>"
_ENCODE_CHUNK_SIZE = 500


@dataclass(frozen=True, slots=True)
class Corpus:
    """Windows of pretraining tokens; documents are separated by end-of-text.

    Where the tokenizer has a beginning-of-text, every document and every window begins with it.
    """

    tokens: Tensor  # (windows, T + 1) int32: T tokens and the one after them
    document_start: int  # beginning-of-text, or the end-of-text before a document where there is none
    seed: int

    def __len__(self) -> int:
        return len(self.tokens)

    def windows(self, start: int, count: int) -> Tensor:
        """Return windows `start` to `start + count` of an endless, reshuffled stream: (count, T + 1) int64."""
        return self.tokens[stream_indices(start, count, len(self), self.seed)].long()

    def examples(self, start: int, count: int) -> list[TokenizedExample]:
        """Return the same windows as examples. Every token but the first is predicted once, from its own document.

        A document begins at its beginning-of-text, or at the end-of-text before it: the last target of one document is
        the first input of the next.
        """
        rows = self.windows(start, count).tolist()
        return [
            TokenizedExample(
                row[:1], row[1:], tuple(i for i, token in enumerate(row) if token == self.document_start and i > 0)
            )
            for row in rows
        ]


def iter_documents(paths: Iterable[Path], skipped: SkippedLines | None = None) -> Iterator[str]:
    for path in paths:
        for document in read_records(Document, path, skipped):
            yield document.text


def build_corpus(
    texts: Iterable[str],
    tokenizer: PromptTokenizer,
    window: int,
    seed: int,
    max_windows: int | None = None,
    name: str = "the corpus",
) -> Corpus:
    """Tokenize documents into windows, reading no further than needed.

    Args:
        window: T, tokens of a window.
        seed: seed of the window order.
        max_windows: stop after this many.
        name: name of the texts in errors.

    Raises:
        InputError: not even one window of text.
    """
    windows = join_windows(iter_windows(texts, tokenizer, window, max_windows, name))
    return Corpus(windows, document_start(tokenizer), seed)


def document_start(tokenizer: PromptTokenizer) -> int:
    """Return the token that documents begin with: beginning-of-text, or the end-of-text before them."""
    return tokenizer.eos if tokenizer.bos is None else tokenizer.bos


def iter_windows(
    texts: Iterable[str],
    tokenizer: PromptTokenizer,
    window: int,
    max_windows: int | None = None,
    name: str = "the corpus",
) -> Iterator[Tensor]:
    """Yield windows (n, window + 1) int32 as documents are tokenized; arguments and errors as for `build_corpus`."""
    width = window + 1
    bos = None if tokenizer.bos in (None, tokenizer.eos) else tokenizer.bos
    num_tokens, num_windows, at_start = 0, 0, True
    rest = torch.empty(0, dtype=torch.int32)
    for block in _chunked(_split_documents(texts), _ENCODE_CHUNK_SIZE):
        ids = tokenizer.hf_tokenizer([piece for piece, _ in block], add_special_tokens=False)["input_ids"]
        chunks = [rest]
        for tokens, (_, is_last) in zip(ids, block, strict=True):
            start = [bos] if at_start and bos is not None else []
            chunks.append(torch.tensor([*start, *tokens, *([tokenizer.eos] if is_last else [])], dtype=torch.int32))
            num_tokens += len(chunks[-1])
            at_start = is_last
        windows, rest = _cut_windows(torch.cat(chunks), width, bos)
        windows = windows if max_windows is None else windows[: max_windows - num_windows]
        num_windows += len(windows)
        yield windows
        if num_windows == max_windows:
            break
    if num_tokens < width:
        raise InputError(
            f"{name} has {num_tokens} tokens, less than one window of {width}; give more text, or a smaller window"
        )


def join_windows(blocks: Iterable[Tensor]) -> Tensor:
    """Return all blocks of `iter_windows` as one tensor."""
    return torch.cat(list(blocks))


def _cut_windows(tokens: Tensor, width: int, bos: int | None) -> tuple[Tensor, Tensor]:
    """Cut a stream of tokens into rows; a row that starts within a document begins with `bos`.

    Returns the rows (windows, width), and the tokens behind them, which begin the next row.
    """
    if bos is None:
        num_windows = len(tokens) // width
        return tokens[: num_windows * width].view(num_windows, width), tokens[num_windows * width :]
    starts_document = (tokens == bos).tolist()
    begins: list[int] = []
    position = 0
    while position < len(tokens) and position + width - (not starts_document[position]) <= len(tokens):
        begins.append(position)
        position += width - (not starts_document[position])
    rows = torch.full((len(begins), width), bos, dtype=tokens.dtype)
    for row, begin in zip(rows, begins, strict=True):
        count = width - (not starts_document[begin])
        row[width - count :] = tokens[begin : begin + count]
    return rows, tokens[position:]


def _split_documents(texts: Iterable[str], size: int = 50_000) -> Iterator[tuple[str, bool]]:
    """Yield documents in pieces of about `size` characters, cut at line ends,
    and whether a piece is a document's last.
    """
    for text in texts:
        start = 0
        while len(text) - start > size:
            end = text.rfind("\n", start, start + size) + 1 or start + size
            yield text[start:end], False
            start = end
        yield text[start:], True


def _chunked(pieces: Iterable[tuple[str, bool]], size: int) -> Iterator[list[tuple[str, bool]]]:
    block: list[tuple[str, bool]] = []
    for piece in pieces:
        block.append(piece)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE tokenizer, which can encode any text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos_token = (
        _END_OF_TEXT,
        tokenizer.token_to_id(_END_OF_TEXT),
    )  # every text begins as documents of the corpus do: after an end-of-text
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{_END_OF_TEXT} $A", special_tokens=[bos_token]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END_OF_TEXT, bos_token=_END_OF_TEXT
    )


def hold_out_documents(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Return training documents and an evenly spread held-out share; if there are few, long ones are cut first."""
    interval = max(2, round(1 / share))
    if len(texts) < interval:
        texts = [piece for piece, _ in _split_documents(texts, max(1, sum(map(len, texts)) // interval))]
    return [text for i, text in enumerate(texts) if i % interval], [
        text for i, text in enumerate(texts) if i % interval == 0
    ]
