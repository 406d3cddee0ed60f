"""Tasks: prompts of the small world with known right answers, and instruction compliance of any answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from instructgpt.world.facts import Fact, Group
from instructgpt.world.lexicon import Lexicon


@dataclass(frozen=True)
class TaskContent:
    """A task before it has a wording. Sentences have slots; `words` fills them."""

    use_case: str
    wordings: tuple[str, ...]
    answers: tuple[str, ...]
    slot_words: Mapping[str, str]
    forms: tuple[str, ...] = ()
    """Sentences accepted as an attempt; empty: the answers themselves."""
    required_slots: tuple[str, ...] | None = None
    """Slots that an answer must fill correctly; None: all."""
    constraint: Callable[[str], bool] | None = None
    fact: Fact | None = None
    in_corpus: bool = True
    """Whether the corpus includes it among its questions."""

    def fill_wordings(self, lexicon: Lexicon) -> Iterator[tuple[str, bool]]:
        """Yield the text of each wording, and whether it is the last one, which is held out of training."""
        for index, wording in enumerate(self.wordings):
            yield lexicon.fill(wording, self.slot_words, Random(0)), index == len(self.wordings) - 1


@dataclass(frozen=True)
class WorldTask:
    text: str
    content: TaskContent
    group: Group
    heldout_wording: bool
    lexicon: Lexicon = field(repr=False)

    def gold_answer(self, rng: Random) -> str:
        while True:
            answer = self.lexicon.fill(rng.choice(self.content.answers), self.content.slot_words, rng)
            if self.content.constraint is None or self.content.constraint(answer):
                return answer

    def wrong_answer(self, rng: Random) -> str:
        """Return an answer of the right kind with an error; for a fact with a myth, the myth."""
        fact = self.content.fact
        if fact is not None and fact.myth is not None:
            return fact.to_sentence(fact.myth)
        correct_words = {slot: word for slot, word in self.content.slot_words.items() if rng.random() < 0.5}
        return self.lexicon.fill(rng.choice(self.content.forms or self.content.answers), correct_words, rng)

    def instruction_compliance(self, answer: str) -> float:
        """Return how well an answer follows the instruction, 0 to 1: form 0.4, words 0.6,
        minus a third for extra text.
        """
        content = self.content
        required = content.required_slots if content.required_slots is not None else tuple(content.slot_words)
        compliance = 0.2 * _share_true(content.slot_words[slot] in answer for slot in required) if required else 0.0
        for form in content.forms or content.answers:
            match = self.lexicon.pattern(form).match(answer)
            if match:
                words = match.groupdict()
                correct_share = _share_true(
                    words[slot] == content.slot_words[slot] for slot in required if slot in words
                )
                compliance = max(
                    compliance, (0.4 + 0.6 * correct_share) * (1.0 if match.end() == len(answer) else 0.67)
                )
        return compliance

    @property
    def max_words(self) -> int:
        return max(len(answer.split()) for answer in self.content.answers)


def _share_true(flags: Iterator[bool]) -> float:
    """Return the share of true flags; 1 for none."""
    values = list(flags)
    return sum(values) / len(values) if values else 1.0
