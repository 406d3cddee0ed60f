"""Conversations written as one text with role marks, such as Anthropic's "Human: … Assistant: …".

A mark is a role name with a colon where a paragraph begins; in a transcript without blank lines, where a line begins.
The first mark fixes the form of all: "Human: hi" is followed by "Assistant:", "### Human: hi" by "### Assistant:".
Other role words stay in the text. Where the roles do not alternate, a mark may be part of a text; nothing is split.
"""

from __future__ import annotations

import itertools
import re

from instructgpt.records import Message

_FIRST_MARK = re.compile(r"(?P<prefix>(?:### ?)?)(?P<user>Human|User|HUMAN|USER):(?=\s|$)")
_ASSISTANT_NAMES = "Assistant|ASSISTANT|AI"
_PARAGRAPH_START, _LINE_START = r"(?:\A|\n[ \t]*\n\s*?)", r"(?:\A|\n[ \t]*)"

SPLIT_NOTE = "a transcript, split into turns where a paragraph (or line) begins with a role mark"
INNER_MARK_NOTE = "a transcript with a role word at a line start inside a turn, kept as text of that turn"
NO_ALTERNATION_NOTE = "a transcript kept as text: its roles do not alternate, so a role mark may be part of a text"
NO_MARKS_NOTE = "text without role marks, kept as text: what both sides begin with is the prompt"


class TranscriptError(ValueError):
    """A text with role marks that cannot be split without a guess."""


def parse_transcript(text: str) -> tuple[Message, ...] | None:
    """Return the turns of a transcript, user first, or None if the text does not begin with a user's mark.

    Raises TranscriptError if the roles do not alternate.
    """
    text = text.strip()
    first = _FIRST_MARK.match(text)
    if first is None:
        return None
    for start in (_PARAGRAPH_START, _LINE_START):
        marks = _find_marks(text, first, start)
        if len(marks) > 1 or start == _LINE_START:
            break
    roles = ["user" if mark["role"] == first["user"] else "assistant" for mark in marks]
    if len(marks) < 2:
        return None
    if any(role == following for role, following in itertools.pairwise(roles)):
        raise TranscriptError(NO_ALTERNATION_NOTE)
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple(
        Message.model_validate({"role": role, "content": text[mark.end() : end].strip()})
        for role, mark, end in zip(roles, marks, ends, strict=True)
    )


def _find_marks(text: str, first: re.Match[str], start: str) -> list[re.Match[str]]:
    """Return the marks of the transcript's form; the first assistant's name in it is the only one."""
    pattern = f"{start}{re.escape(first['prefix'])}(?P<role>{first['user']}|{_ASSISTANT_NAMES}):(?=\\s|$)"
    marks = list(re.finditer(pattern, text))
    assistant = next((mark["role"] for mark in marks if mark["role"] != first["user"]), None)
    return [mark for mark in marks if mark["role"] in (first["user"], assistant)]


def has_inner_mark(turns: tuple[Message, ...]) -> bool:
    """Return whether a line inside a turn begins with a role word, which was not taken for a mark."""
    pattern = rf"(?m)^[ \t]*(?:### ?)?(?:Human|User|HUMAN|USER|{_ASSISTANT_NAMES}):"
    return any(re.search(pattern, turn.content) for turn in turns)


def transcript_notes(turns: tuple[Message, ...]) -> list[str]:
    """Return what to report of a transcript that was split."""
    return [SPLIT_NOTE, INNER_MARK_NOTE] if has_inner_mark(turns) else [SPLIT_NOTE]
