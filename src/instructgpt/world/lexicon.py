"""Words of the small world, and sentences with slots: one notation that generates and recognizes text.

"The {ANIMAL} saw a {OBJECT}." is filled to make text and compiled to a pattern to recognize it. A number distinguishes
two slots of one class: {FOOD} and {FOOD2}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random

_ENGLISH_WORDS = {
    "NAME": "Anna Boris Clara David Emma Felix Greta Henry Irene Jacob",
    "ANIMAL": "fox bear hawk wolf swan horse goat duck mouse lion tiger frog crow snake rabbit camel",
    "FOOD": "bread cheese rice honey corn fish grass milk roots fruit beans cake",
    "COLOUR": "red blue green white black yellow brown pink",
    "HOME": "forest river cave desert garden lake valley swamp barn hill",
    "JOB": "nurse baker pilot teacher farmer judge painter doctor",
    "OBJECT": "lamp clock hat boat chair book drum ring coat key",
    "MOOD": "happy sad tired hungry calm proud",
    "GOOD": "lovely superb great splendid",
    "BAD": "awful dull terrible boring",
    "NUMBER": "two three four five",
    "PRESENT": "eats sees finds wants likes carries buys hides",
    "PAST": "ate saw found wanted liked carried bought hid",
    "INSULT": "dolt lout nitwit clod dunce twit",
    "VERDICT": "good bad",
    "KIND": "animal food colour name job",
}
"""Word classes; PRESENT and PAST are the same verbs in the same order."""

_TRANSLATED = ("ANIMAL", "COLOUR", "PRESENT", "OBJECT")
"""Classes with a Zib word for each word; the Zib words of ANIMAL are the class ZIBANIMAL."""
NUMBER_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5}
_SLOT_PATTERN = re.compile(r"\{([A-Z]+)(\d*)\}")


@dataclass(frozen=True)
class Lexicon:
    """All words by class, and the invented second language, Zib."""

    classes: Mapping[str, tuple[str, ...]]
    zib: Mapping[str, str]
    _patterns: dict[str, re.Pattern[str]] = field(default_factory=dict, repr=False, compare=False)

    def fill(self, sentence: str, fixed_words: Mapping[str, str], rng: Random) -> str:
        """Fill every slot of a sentence: from `fixed_words`,
        else with a random word of the class that is not used yet.
        """
        words = dict(fixed_words)

        def word(slot: re.Match[str]) -> str:
            name = slot[1] + slot[2]
            if name not in words:
                used = {value for key, value in words.items() if key.startswith(slot[1])}
                words[name] = rng.choice([candidate for candidate in self.classes[slot[1]] if candidate not in used])
            return words[name]

        return _SLOT_PATTERN.sub(word, sentence)

    def pattern(self, sentence: str) -> re.Pattern[str]:
        """Return a pattern that matches the sentence with any words of the right classes, each slot a named group."""
        if sentence not in self._patterns:
            self._patterns[sentence] = re.compile("".join(self._pieces(sentence)))
        return self._patterns[sentence]

    def _pieces(self, sentence: str) -> Iterator[str]:
        end, names = 0, set[str]()
        for slot in _SLOT_PATTERN.finditer(sentence):
            yield re.escape(sentence[end : slot.start()])
            name = slot[1] + slot[2]
            yield f"(?P={name})" if name in names else f"(?P<{name}>{'|'.join(self.classes[slot[1]])})"
            names.add(name)
            end = slot.end()
        yield re.escape(sentence[end:]) + r"(?!\w)"

    def find_words(self, kind: str, text: str) -> set[str]:
        return set(self._words[kind].findall(text))

    @cached_property
    def _words(self) -> dict[str, re.Pattern[str]]:
        return {kind: re.compile(rf"\b(?:{'|'.join(words)})\b") for kind, words in self.classes.items()}

    def translate(self, animal: str, verb: str, color: str, thing: str) -> str:
        """Translate "The {ANIMAL} {PRESENT} the {COLOUR} {OBJECT}." into Zib, where adjectives follow nouns."""
        return "Ka {} {} ka {} {}.".format(*(self.zib[word] for word in (animal, verb, thing, color)))


def make_lexicon(rng: Random) -> Lexicon:
    """Build the fixed English words, and invent lands, cities and Zib from the rng."""
    used_words = {word for words in _ENGLISH_WORDS.values() for word in words.lower().split()}
    lands = [
        word.capitalize()
        for word in _invent_words(rng, 24, "bdglmnrtvz", ("nia", "land", "via", "stan", "dor"), used_words)
    ]
    cities = [
        word.capitalize()
        for word in _invent_words(rng, 24, "fhjkmpstwz", ("kan", "pol", "burg", "mar", "ton"), used_words)
    ]
    classes = {kind: tuple(words.split()) for kind, words in _ENGLISH_WORDS.items()} | {
        "LAND": tuple(lands),
        "CITY": tuple(cities),
    }
    translated = [word for kind in _TRANSLATED for word in classes[kind]]
    zib_words = _invent_words(rng, len(translated), "bdgklmnprtvz", ("u", "em", "or", "il", "as"), used_words)
    zib = dict(zip(translated, zib_words, strict=True))
    classes |= {f"ZIB{kind}": tuple(zib[word] for word in classes[kind]) for kind in _TRANSLATED}
    return Lexicon(classes, zib)


def _invent_words(
    rng: Random, count: int, consonants: str, endings: tuple[str, ...], used_words: set[str]
) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        word = (
            rng.choice(consonants)
            + rng.choice("aeiou")
            + rng.choice(consonants) * rng.randrange(2)
            + rng.choice(endings)
        )
        if word not in used_words and len(word) > 3:
            used_words.add(word)
            words.append(word)
    return words
