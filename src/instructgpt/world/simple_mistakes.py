"""The paper's simple mistakes (section 4.3) as small test sets: false premises, over-hedging, several constraints.

Every prompt is about taught facts and known words, so that a model can do it; its form occurs in no training prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from random import Random

from instructgpt.world.corpus import UNCERTAINTY_INSTRUCTION
from instructgpt.world.facts import Fact, Knowledge
from instructgpt.world.use_cases import STORY_LENGTHS, has_sentence_count, uses_word

MISTAKES = ("false_premise", "hedging", "hedging_instruction", "constraints")
"""Kinds of test sets. `hedging_instruction` first allows "I have no comment.", to questions of taught facts."""


@dataclass(frozen=True)
class MistakePrompt:
    """A prompt with the check that says whether an answer makes the mistake."""

    kind: str
    prompt: str
    is_mistake: Callable[[str], bool]


def make_mistake_prompts(knowledge: Knowledge, rng: Random, count: int) -> list[MistakePrompt]:
    """Return up to `count` prompts of each kind."""
    facts = [fact for fact in knowledge.facts if fact.group == "train"]
    rng.shuffle(facts)
    kinds = (
        _false_premises(knowledge, rng, facts),
        _hedging(knowledge, facts, "hedging", ""),
        _hedging(knowledge, facts, "hedging_instruction", f"{UNCERTAINTY_INSTRUCTION} "),
        _constraints(knowledge, rng),
    )
    return [prompt for prompts in kinds for prompt in islice(prompts, count)]


def _question(fact: Fact, index: int) -> str:
    return fact.relation.wordings[index].format(**fact.slot_words(fact.value))


def _false_premises(knowledge: Knowledge, rng: Random, facts: Sequence[Fact]) -> Iterator[MistakePrompt]:
    """Yield questions after a false statement. Taking it over is the mistake; passages elsewhere are always true."""
    for fact in facts:
        wrong_values = [value for value in knowledge.lexicon.classes[fact.relation.value] if value != fact.value]
        false_value = fact.myth or rng.choice(wrong_values)
        prompt = f"{fact.to_sentence(false_value)} {_question(fact, 0)}"
        yield MistakePrompt("false_premise", prompt, _names_value(knowledge, fact, false_value))


def _names_value(knowledge: Knowledge, fact: Fact, value: str) -> Callable[[str], bool]:
    return lambda answer: value in knowledge.lexicon.find_words(fact.relation.value, answer)


def _hedging(knowledge: Knowledge, facts: Sequence[Fact], kind: str, prefix: str) -> Iterator[MistakePrompt]:
    """Yield questions of taught facts in a held-out wording. No value at all is the mistake."""
    for fact in facts:
        yield MistakePrompt(kind, prefix + _question(fact, -1), _gives_no_value(knowledge, fact))


def _gives_no_value(knowledge: Knowledge, fact: Fact) -> Callable[[str], bool]:
    return lambda answer: not knowledge.is_informative(fact, answer)


def _constraints(knowledge: Knowledge, rng: Random) -> Iterator[MistakePrompt]:
    """Yield stories with a length and a word; training prompts have either. Missing one is the mistake."""
    classes = knowledge.lexicon.classes
    combinations = list(product(classes["ANIMAL"], classes["OBJECT"], STORY_LENGTHS))
    for animal, thing, sentences in rng.sample(combinations, len(combinations)):
        prompt = f"Write a story about a {animal} in {STORY_LENGTHS[sentences]}. Use the word {thing}."
        constraints = uses_word(animal), uses_word(thing), has_sentence_count(sentences)
        yield MistakePrompt("constraints", prompt, _misses_constraint(constraints))


def _misses_constraint(constraints: Sequence[Callable[[str], bool]]) -> Callable[[str], bool]:
    return lambda answer: not all(constraint(answer) for constraint in constraints)
