"""Stop strings: texts that end a completion as soon as they appear in it, also where they span tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

DecodeTokens = Callable[[Sequence[int]], str]
"""Tokens of a completion as text, without special tokens: `PromptTokenizer.decode`."""

_REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD_CHARACTERS = 12
"""A character has at most 4 bytes, but one wrong byte may spoil a run of them; longer runs are no text."""
_MAX_WINDOW_TOKENS = 256
"""Tokens that are decoded again for each new one; where they end in no whole character, they are no text."""


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Texts that end a completion, and how its tokens become text."""

    strings: tuple[str, ...]
    decode: DecodeTokens

    def __post_init__(self) -> None:
        if "" in self.strings:
            raise ValueError("an empty stop string would end every completion at once")


def as_stop_strings(stop: str | Sequence[str], decode: DecodeTokens) -> StopStrings | None:
    """Return one or several stop strings with the tokenizer's decoder; None without any."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    return StopStrings(strings, decode) if strings else None


class IncrementalDetokenizer:
    """Text of tokens that come one by one, as whole characters.

    Only the last tokens are decoded again, together with those before them, because a tokenizer may decode a token
    differently at the beginning of a text.
    """

    def __init__(self, decode: DecodeTokens) -> None:
        self._decode = decode
        self.tokens: list[int] = []
        self.held_back = ""
        """The end of the text that may still become a character: replacement characters."""
        self._window_start = 0
        self._context_end = 0
        """Tokens before it stand in the window as context; their text was returned."""
        self._num_returned = 0
        """Characters of the window's text that were returned."""

    def push(self, token: int) -> str:
        """Return the new text; it is empty while a character lacks bytes that the next tokens may bring."""
        self.tokens.append(token)
        text = self._decode(self.tokens[self._window_start :])
        end = max(len(text.rstrip(_REPLACEMENT_CHARACTER)), len(text) - _MAX_HELD_CHARACTERS, self._num_returned)
        if len(self.tokens) - self._window_start > _MAX_WINDOW_TOKENS:
            end = len(text)
        addition, self.held_back = text[self._num_returned : end], text[end:]
        self._num_returned = max(self._num_returned, end)
        if not self.held_back and (context := self._decode(self.tokens[self._context_end :])):
            # else the next tokens still need this context
            self._window_start, self._context_end = self._context_end, len(self.tokens)
            self._num_returned = len(context)
        return addition

    def flush(self) -> str:
        """Return what is held back, at the end of the completion."""
        addition, self.held_back = self.held_back, ""
        self._num_returned += len(addition)
        return addition


class StopMatcher:
    """Watches the tokens of one completion for stop strings. The prompt is not part of what it sees."""

    def __init__(self, stop: StopStrings) -> None:
        self._stop = stop
        self._stream = IncrementalDetokenizer(stop.decode)
        self._overlap = max(map(len, stop.strings), default=1) - 1
        self._tail = ""
        """The last characters, one fewer than the longest stop string has."""

    @property
    def count(self) -> int:
        """Tokens seen."""
        return len(self._stream.tokens)

    def push(self, token: int) -> bool:
        """Return whether the completion contains a stop string now."""
        window = self._tail + self._stream.push(token)
        self._tail = window[max(0, len(window) - self._overlap) :]
        window += self._stream.held_back  # a token may hold a stop string and the first byte of a character
        if not any(string in window for string in self._stop.strings):
            return False
        return cut_at_stop(self._stop.decode(self._stream.tokens), self._stop.strings)[1]


class StopTracker:
    """Stop matchers of the rows of a batch."""

    def __init__(self, stop: StopStrings) -> None:
        self._stop = stop
        self._matchers: dict[int, StopMatcher] = {}

    def find_stop(self, row: int, count: int, last_tokens: Sequence[int]) -> int | None:
        """Return how many tokens the row has up to the one that completes a stop string; None without one.

        Args:
            count: tokens of the row so far.
            last_tokens: the last ones, no fewer than were added since the previous call.
        """
        matcher = self._matchers.setdefault(row, StopMatcher(self._stop))
        new_tokens = last_tokens[len(last_tokens) - (count - matcher.count) :]
        return matcher.count if any(matcher.push(token) for token in new_tokens) else None

    def forget(self, row: int) -> None:
        """Free what is kept of a row that ended."""
        self._matchers.pop(row, None)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first of the stop strings, and whether there is one."""
    positions = [position for string in stop if (position := text.find(string)) >= 0]
    return (text[: min(positions)], True) if positions else (text, False)
