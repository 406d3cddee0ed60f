"""Tokens to text while they are sampled: never half a character, and never a part of a stop string."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from instructgpt.sampling.stop_strings import DecodeTokens, IncrementalDetokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class TextStream:
    """The text of one completion token by token, cut at the first stop string.

    Attributes:
        text: whole characters so far, without the stop string.
        num_emitted: characters that have been returned.
        stop_text: the stop string that ended the completion, or None.
    """

    def __init__(self, decode: DecodeTokens, stop: Sequence[str]) -> None:
        self._detokenizer, self._stop = IncrementalDetokenizer(decode), tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self.text = ""
        self.num_emitted = 0
        self.stop_text: str | None = None

    def push(self, token: int) -> str:
        """Add a token; return the text that is certain now, perhaps none. Sets `stop_text` at a stop string."""
        self._append(self._detokenizer.push(token))
        return self._take(len(self.text) if self.stop_text is not None else len(self.text) - self._num_held_back())

    def finish(self) -> str:
        """Return what was held back as the possible beginning of a stop string."""
        return self._take(len(self.text))

    def _append(self, addition: str) -> None:
        """Append text, and cut it at the first stop string."""
        start = max(0, len(self.text) - self._longest + 1)
        self.text += addition
        places = [(place, stop) for stop in self._stop if (place := self.text.find(stop, start)) >= 0]
        if places:
            place, self.stop_text = min(places)
            self.text = self.text[:place]

    def _num_held_back(self) -> int:
        """Return how many last characters may begin a stop string."""
        for count in range(min(self._longest - 1, len(self.text) - self.num_emitted), 0, -1):
            ending = self.text[-count:]
            if any(stop.startswith(ending) for stop in self._stop):
                return count
        return 0

    def _take(self, end: int) -> str:
        addition = self.text[self.num_emitted : end]
        self.num_emitted = max(self.num_emitted, end)
        return addition


class TokenTexts:
    """The text and the bytes of single tokens."""

    def __init__(self, hf_tokenizer: Any) -> None:
        self._hf_tokenizer = hf_tokenizer
        self._added = {index: token.content for index, token in hf_tokenizer.added_tokens_decoder.items()}
        self._is_byte_level = '"ByteLevel"' in hf_tokenizer.backend_tokenizer.to_str()
        self._byte_of_character = _byte_level_alphabet() if self._is_byte_level else {}

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token, a space in front included."""
        if token in self._added:
            return str(self._added[token]).encode()
        piece = self._hf_tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""  # the model has more embeddings than the tokenizer has tokens
        if self._is_byte_level:
            return bytes(self._byte_of_character[character] for character in piece)
        if match := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return str(piece).replace("\u2581", " ").encode()

    def token_text(self, token: int) -> str:
        """Return the token as text; one that is not whole characters as `bytes:\\xNN`, as OpenAI's API does."""
        encoded = self.token_bytes(token)
        try:
            return encoded.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in encoded)


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(unprintable)}
