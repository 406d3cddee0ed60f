"""Requests of the small world's users: the ten use cases of the paper's Table 1.

A task's content is assigned to one group before sampling, and the last wording of every task is held out of training,
so neither a test prompt nor a test wording leaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from random import Random

from instructgpt.world.facts import Group, Knowledge
from instructgpt.world.lexicon import NUMBER_WORDS, Lexicon
from instructgpt.world.tasks import TaskContent, WorldTask

CLOSED_DOMAIN = ("closed_qa", "extract", "summarization")
"""Use cases whose answers must come from the prompt ("closed domain" of the paper's Table 3)."""


def sample_slots(lexicon: Lexicon, rng: Random, count: int, *slots: str) -> Iterator[dict[str, str]]:
    """Yield up to `count` distinct slot fillings."""
    combinations = [
        words
        for words in product(*(lexicon.classes[slot.rstrip("2")] for slot in slots))
        if len(set(words)) == len(words)
    ]
    for words in rng.sample(combinations, min(count, len(combinations))):
        yield dict(zip(slots, words, strict=True))


def has_sentence_count(count: int) -> Callable[[str], bool]:
    """Return a constraint: exactly `count` sentences."""
    return lambda answer: len(re.findall(r"[.!?](?:\s|$)", answer)) == count


def uses_word(word: str) -> Callable[[str], bool]:
    """Return a constraint: the word occurs."""
    return lambda answer: re.search(rf"\b{word}\b", answer) is not None


def _lists_items(count: int, forbidden: str | None = None) -> Callable[[str], bool]:
    """Return a constraint: exactly `count` different items after a colon, without the forbidden one."""

    def check(answer: str) -> bool:
        listed_items = re.findall(r"\w+", answer.partition(":")[2].replace(" and ", " "))
        return len(listed_items) == len(set(listed_items)) == count and forbidden not in listed_items

    return check


STORY_STARTS = (
    "The {ANIMAL} {PAST} the {OBJECT}.",
    "The {MOOD} {ANIMAL} went to the {HOME}.",
    "The {ANIMAL} was {MOOD} and {PAST} some {FOOD}.",
)
STORY_LENGTHS = {1: "one sentence", 2: "two sentences"}
STORY_ENDS = ("It was very {MOOD2}.", "Then it {PAST2} a {OBJECT2}.", "Then it slept in the {HOME2}.")
_STORIES = (*STORY_STARTS, *(f"{start} {end}" for start in STORY_STARTS for end in STORY_ENDS))


def _generation_tasks(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    for words in sample_slots(lexicon, rng, 240, "ANIMAL", "OBJECT"):
        wordings = tuple(
            f"{start} a {{ANIMAL}}. Use the word {{OBJECT}}."
            for start in ("Write a story about", "Tell a story about", "Make up a tale of")
        )
        stories = tuple(tale for tale in _STORIES if "{OBJECT}" in tale)
        yield TaskContent("generation", wordings, stories, words, _STORIES, ("ANIMAL",), uses_word(words["OBJECT"]))
    for words, count in product(list(sample_slots(lexicon, rng, 99, "ANIMAL")), STORY_LENGTHS):
        wordings = tuple(
            f"{start} a {{ANIMAL}} in {STORY_LENGTHS[count]}."
            for start in ("Write a story about", "Tell a story about", "Make up a tale of")
        )
        yield TaskContent("generation", wordings, _STORIES, words, constraint=has_sentence_count(count))
    for words in sample_slots(lexicon, rng, 192, "NAME", "OBJECT"):
        wordings = (
            "Write a letter to {NAME} about a {OBJECT}.",
            "Write to {NAME} about a {OBJECT}.",
            "Compose a note to {NAME} about a {OBJECT}.",
        )
        yield TaskContent(
            "generation",
            wordings,
            ("Dear {NAME}, thank you for the {OBJECT}.", "Dear {NAME}, I like the {OBJECT} in the {HOME}."),
            words,
        )
    for words in sample_slots(lexicon, rng, 96, "COLOUR", "OBJECT"):
        wordings = (
            "Write an advert for a {COLOUR} {OBJECT}.",
            "Help me sell a {COLOUR} {OBJECT}.",
            "Compose an advert for a {COLOUR} {OBJECT}.",
        )
        yield TaskContent(
            "generation",
            wordings,
            ("Buy this {GOOD} {COLOUR} {OBJECT} today.", "This {COLOUR} {OBJECT} is {GOOD}."),
            words,
        )


_TOPICS = {
    "a gift": "OBJECT",
    "a pet": "ANIMAL",
    "a dinner": "FOOD",
    "a trip": "CITY",
    "a new paint": "COLOUR",
    "a long walk": "HOME",
    "a career": "JOB",
}


def _brainstorming_tasks(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    def listing(kind: str, number: str) -> str:
        slots = [f"{{{kind}{i + 1}}}" for i in range(NUMBER_WORDS[number])]
        return f"Here are {number}: {', '.join(slots[:-1])} and {slots[-1]}."

    for topic, kind in _TOPICS.items():
        forms = tuple(listing(kind, number) for number in NUMBER_WORDS)
        for number in ("two", "three", "four"):
            wordings = (
                f"Give me {number} ideas for {topic}.",
                f"List {number} ideas for {topic}.",
                f"Suggest {number} ideas for {topic}.",
            )
            answer = (listing(kind, number),)
            yield TaskContent(
                "brainstorming", wordings, answer, {}, forms, constraint=_lists_items(NUMBER_WORDS[number])
            )
            for forbidden in rng.sample(lexicon.classes[kind], 6):
                limited = tuple(f"{wording} Do not say {forbidden}." for wording in wordings)
                yield TaskContent(
                    "brainstorming",
                    limited,
                    answer,
                    {},
                    forms,
                    constraint=_lists_items(NUMBER_WORDS[number], forbidden),
                )


CHATTER = (
    "I like the {OBJECT}.",
    "I saw a {ANIMAL} in {CITY}.",
    "My {OBJECT} is {GOOD}.",
    "This {OBJECT} is {BAD}.",
    "I am {MOOD} now.",
    "I want some {FOOD}.",
)
"""Posts without a request. The last one is held out of training prompts."""


def _chat_tasks(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    for words in sample_slots(lexicon, rng, 60, "NAME", "OBJECT"):
        posts = tuple(f"{{NAME}}: {line}" for line in (*rng.sample(CHATTER[:-1], 2), CHATTER[-1]))
        wordings = tuple(lexicon.fill(post, words, rng) for post in posts)
        replies = tuple(f"{{NAME}}: {one} {two.replace('}', '2}')}" for one, two in product(CHATTER, CHATTER))
        yield TaskContent("chat", wordings, replies, {}, in_corpus=False)
    for words in sample_slots(lexicon, rng, 192, "NAME", "OBJECT"):
        verb, feeling = rng.choice((("lost", "sorry"), ("broke", "sorry"), ("found", "glad"), ("got", "glad")))
        wordings = tuple(
            f"{{NAME}} says: I {verb} my {{OBJECT}}. {ask}"
            for ask in ("Reply to {NAME}.", "Reply politely.", "Answer {NAME} politely.")
        )
        answers = (
            f"Hello {{NAME}}, I am {feeling} about your {{OBJECT}}.",
            f"I am {feeling} to hear about the {{OBJECT}}, {{NAME}}.",
        )
        yield TaskContent("chat", wordings, answers, words)


def _rewrite_tasks(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    for words in sample_slots(lexicon, rng, 200, "ANIMAL", "PRESENT", "OBJECT"):
        past = lexicon.classes["PAST"][lexicon.classes["PRESENT"].index(words["PRESENT"])]
        wordings = tuple(
            f"{ask}: The {{ANIMAL}} {words['PRESENT']} the {{OBJECT}}."
            for ask in ("Rewrite in the past", "Put into the past", "Change to the past")
        )
        slots = {"ANIMAL": words["ANIMAL"], "PAST": past, "OBJECT": words["OBJECT"]}
        yield TaskContent("rewrite", wordings, ("The {ANIMAL} {PAST} the {OBJECT}.",), slots)
    for words in sample_slots(lexicon, rng, 200, "NAME", "OBJECT", "INSULT"):
        wordings = tuple(
            f"{ask}: Give me the {{OBJECT}}, {{NAME}}, you {{INSULT}}!"
            for ask in ("Rewrite politely", "Make this polite", "Say this kindly")
        )
        answer_words = {slot: words[slot] for slot in ("NAME", "OBJECT")}
        answers = ("Please give me the {OBJECT}, {NAME}.", "Could you give me the {OBJECT}, {NAME}?")
        yield TaskContent(
            "rewrite", tuple(lexicon.fill(wording, words, rng) for wording in wordings), answers, answer_words
        )


_PERSON_SENTENCES = (
    "{NAME} lives in {CITY}.",
    "{NAME} likes {FOOD}.",
    "{NAME} is a {JOB}.",
    "{NAME} has a {COLOUR} {OBJECT}.",
)
_PERSON_SLOTS = ("CITY", "FOOD", "JOB", "COLOUR", "OBJECT")
PERSON_QUESTIONS = {
    "Where does {NAME} live?": _PERSON_SENTENCES[0],
    "What does {NAME} like?": _PERSON_SENTENCES[1],
    "What is the job of {NAME}?": _PERSON_SENTENCES[2],
    "What does {NAME} have?": _PERSON_SENTENCES[3],
}


def sample_passages(
    lexicon: Lexicon, rng: Random, count: int, sentence_count: int
) -> Iterator[tuple[str, dict[str, str], tuple[str, ...]]]:
    """Sample passages about one person, each with its words and sentences. Every word class occurs once."""
    for _ in range(count):
        words = {slot: rng.choice(lexicon.classes[slot]) for slot in ("NAME", *_PERSON_SLOTS)}
        facts = tuple(rng.sample(_PERSON_SENTENCES, sentence_count))
        yield lexicon.fill(" ".join(facts), words, rng), words, facts


def _closed_qa_tasks(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    for passage, words, facts in sample_passages(lexicon, rng, 350, 2):
        question, answer = rng.choice(
            [(question, answer) for question, answer in PERSON_QUESTIONS.items() if answer in facts]
        )
        wordings = tuple(f"{ask} {passage} {question}" for ask in ("Read this:", "Here is a text:", "Look at this:"))
        yield TaskContent("closed_qa", wordings, (f"The text says that {answer}",), _words_in_sentence(words, answer))


def _words_in_sentence(words: Mapping[str, str], sentence: str) -> dict[str, str]:
    return {slot: word for slot, word in words.items() if f"{{{slot}}}" in sentence}


def _extract_tasks(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    for passage, words, facts in sample_passages(lexicon, rng, 350, 1):
        kind = rng.choice([slot for slot in _PERSON_SLOTS if any(f"{{{slot}}}" in sentence for sentence in facts)])
        wordings = tuple(f"{ask} the {kind.lower()}: {passage}" for ask in ("Find", "Extract", "Pick out"))
        yield TaskContent("extract", wordings, (f"The {kind.lower()} is {{{kind}}}.",), {kind: words[kind]})


def _summarization_tasks(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    for _ in range(350):
        words = {slot: rng.choice(lexicon.classes[slot]) for slot in ("NAME", "CITY", "JOB")}
        facts = rng.sample((_PERSON_SENTENCES[0], _PERSON_SENTENCES[2]), 2)
        passage = lexicon.fill(" ".join(facts), words, rng)
        wordings = tuple(f"{ask}: {passage}" for ask in ("Summarize this", "Sum up this text", "Shorten this text"))
        yield TaskContent("summarization", wordings, ("In short, {NAME} is a {JOB} from {CITY}.",), words)


def _classification_tasks(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    for verdict, kind in (("good", "GOOD"), ("bad", "BAD")):
        for words in sample_slots(lexicon, rng, 60, "OBJECT", kind):
            wordings = tuple(
                f"{ask} The {{OBJECT}} is {{{kind}}}."
                for ask in ("Is this review good or bad?", "Good or bad review?", "Judge this review:")
            )
            yield TaskContent(
                "classification",
                tuple(lexicon.fill(wording, words, rng) for wording in wordings),
                ("The review is {VERDICT}.",),
                {"VERDICT": verdict},
            )
    for kind in lexicon.classes["KIND"]:
        for word in lexicon.classes[kind.upper()]:
            wordings = (
                f"Which group does the word {word} belong to?",
                f"Which kind of word is {word}?",
                f"Sort the word {word} into a group.",
            )
            yield TaskContent("classification", wordings, ("It belongs to the group {KIND}.",), {"KIND": kind})


def _has_commas(count: int, answer: str) -> bool:
    return answer.count(",") == count


def _other_tasks(lexicon: Lexicon, rng: Random) -> Iterator[TaskContent]:
    for words, number in product(
        list(sample_slots(lexicon, rng, 40, "ANIMAL")) + list(sample_slots(lexicon, rng, 40, "OBJECT")),
        ("two", "three", "four"),
    ):
        slot = next(iter(words))
        wordings = tuple(
            f"{ask} {{{slot}}} {number} times." for ask in ("Say the word", "Repeat the word", "Type the word")
        )
        forms = tuple("Here it is: " + ", ".join([f"{{{slot}}}"] * n) + "." for n in NUMBER_WORDS.values())
        repetitions = NUMBER_WORDS[number]
        exact = "Here it is: " + ", ".join([f"{{{slot}}}"] * repetitions) + "."
        constraint = partial(_has_commas, repetitions - 1)
        yield TaskContent("other", wordings, (exact,), words, forms, constraint=constraint)


_TASK_BUILDERS = (
    _generation_tasks,
    _brainstorming_tasks,
    _chat_tasks,
    _rewrite_tasks,
    _summarization_tasks,
    _classification_tasks,
    _other_tasks,
    _closed_qa_tasks,
    _extract_tasks,
)


def make_tasks(knowledge: Knowledge, rng: Random) -> dict[str, WorldTask]:
    """Return every task of the ten use cases by its prompt text."""
    tasks: dict[str, WorldTask] = {}
    for builder in _TASK_BUILDERS:
        for content in builder(knowledge.lexicon, rng):
            add_tasks(
                tasks, content, rng.choices(("train", "validation", "test"), (0.76, 0.06, 0.18))[0], knowledge.lexicon
            )
    for fact in knowledge.facts:
        relation = fact.relation
        content = TaskContent(
            "open_qa",
            relation.wordings,
            (relation.statement,),
            fact.slot_words(fact.value),
            required_slots=(relation.entity,),
            fact=fact,
        )
        add_tasks(tasks, content, fact.group, knowledge.lexicon)
    return tasks


def add_tasks(tasks: dict[str, WorldTask], content: TaskContent, group: Group, lexicon: Lexicon) -> None:
    """Add a task for each wording of a content."""
    for text, is_heldout in content.fill_wordings(lexicon):
        tasks.setdefault(text, WorldTask(text, content, group, is_heldout, lexicon))
