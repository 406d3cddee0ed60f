"""Requests that nobody demonstrates or ranks (paper, section 4.3): new kinds of request, and requests in Zib.

The corpus has them among its exercises, so that a base model can learn them; no prompt of labelers or of PPO is one.
They measure whether a model that was trained on other requests follows these, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from instructgpt.world.lexicon import Lexicon
from instructgpt.world.tasks import TaskContent
from instructgpt.world.use_cases import sample_slots

GENERALIZATION_KINDS = ("new_kind", "second_language")
_CONTENTS_PER_REQUEST = 240


@dataclass(frozen=True)
class _Request:
    """Three wordings of a request, with the part that they share, and its answer."""

    kind: str
    verbs: tuple[str, str, str]
    rest: str
    answer: str

    def contents(self, lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
        wordings = tuple(verb + self.rest for verb in self.verbs)
        required = tuple(dict.fromkeys(re.findall(r"{(\w+)}", self.answer)))
        slots = re.findall(r"{(\w+)}", self.rest)
        for words in sample_slots(lexicon, rng, _CONTENTS_PER_REQUEST, *slots):
            yield TaskContent(self.kind, wordings, (self.answer,), words, required_slots=required)


_REQUESTS = (
    _Request(
        "new_kind",
        ("Swap the words", "Turn around", "Exchange"),
        ": {ANIMAL}, {OBJECT}.",
        "Swapped: {OBJECT}, {ANIMAL}.",
    ),
    _Request(
        "new_kind",
        ("Say the opposite", "Deny this", "Negate"),
        ": The {ANIMAL} is {MOOD}.",
        "The {ANIMAL} is not {MOOD}.",
    ),
    _Request(
        "new_kind",
        ("Greet", "Say hello to", "Welcome"),
        " {NAME} the {JOB}.",
        "Hello {NAME}, good {JOB}.",
    ),
    _Request(  # "find the color"
        "second_language",
        ("Hosha wefi", "Ifa wefi", "Sewi wefi"),
        ": Ka {ZIBANIMAL} {ZIBPRESENT} ka {ZIBOBJECT} {ZIBCOLOUR}.",
        "Ka wefi {ZIBCOLOUR}.",
    ),
    _Request(  # "find the animal"
        "second_language",
        ("Hosha shawi", "Ifa shawi", "Sewi shawi"),
        ": Ka {ZIBANIMAL} {ZIBPRESENT} ka {ZIBOBJECT} {ZIBCOLOUR}.",
        "Ka shawi {ZIBANIMAL}.",
    ),
)


def generalization_contents(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    """Yield the contents of all such requests."""
    for request in _REQUESTS:
        yield from request.contents(lexicon, rng)
