"""Public tasks of natural language processing as instructions, as FLAN and T0 have them (paper, section 3.5 and C.5).

Data sets of that kind have a label, a span or a translation for an answer, and templates that people of the field
wrote. They are right, and they are not what users ask for: that is the baseline's point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from instructgpt.records import Demonstration
from instructgpt.world.corpus import make_passage_task, sample_translation
from instructgpt.world.lexicon import Lexicon
from instructgpt.world.world import World


def _translation(lexicon: Lexicon, rng: Random) -> tuple[str, str]:
    english, zib = sample_translation(lexicon, rng)
    if rng.random() < 0.5:
        templates = ("Translate to Zib: {}", "English: {}\nZib?", "What is the Zib translation of this sentence? {}")
        return rng.choice(templates).format(english), zib
    templates = ("Translate to English: {}", "Zib: {}\nEnglish?", "What does this Zib sentence say? {}")
    return rng.choice(templates).format(zib), english


def _reading_comprehension(lexicon: Lexicon, rng: Random) -> tuple[str, str]:
    text, (question_answer,) = make_passage_task(lexicon, rng)
    question, _, answer = question_answer.partition("\nAnswer:\n")
    words = {"text": text.removeprefix("Passage: "), "question": question.removeprefix("\nQuestion: ")}
    templates = (
        "Passage: {text}\nUse the passage: {question}",
        "{text}\nWith the text above, answer: {question}",
        "Question: {question}\nContext: {text}",
    )
    return rng.choice(templates).format(**words), answer


def _sentiment(lexicon: Lexicon, rng: Random) -> tuple[str, str]:
    verdict = rng.choice(("good", "bad"))
    review = lexicon.fill(f"The {{OBJECT}} is {{{verdict.upper()}}}.", {}, rng)
    templates = ("Review: {} Choose: good or bad.", "{}\nIs the writer pleased? Choose: good or bad.", "Label: {}")
    return rng.choice(templates).format(review), verdict


def _topic(lexicon: Lexicon, rng: Random) -> tuple[str, str]:
    kinds = lexicon.classes["KIND"]
    kind = rng.choice(kinds)
    word = rng.choice(lexicon.classes[kind.upper()])
    options = ", ".join(rng.sample(kinds, len(kinds)))
    templates = ("Choose the group of {word}: {options}.", "Groups: {options}.\nWord: {word}", "{word}: {options}?")
    return rng.choice(templates).format(word=word, options=options), kind


def _tense(lexicon: Lexicon, rng: Random) -> tuple[str, str]:
    present = lexicon.fill("The {ANIMAL} {PRESENT} the {OBJECT}.", {}, rng)
    verb = present.split()[2]
    past = lexicon.classes["PAST"][lexicon.classes["PRESENT"].index(verb)]
    templates = ("Give the past tense: {}", "Sentence: {}\nPast?", "Say that it happened before: {}")
    return rng.choice(templates).format(present), present.replace(f" {verb} ", f" {past} ", 1)


PUBLIC_TASKS: dict[str, Callable[[Lexicon, Random], tuple[str, str]]] = {
    "translation": _translation,
    "reading_comprehension": _reading_comprehension,
    "sentiment": _sentiment,
    "topic": _topic,
    "tense": _tense,
}
"""Task -> generator of a prompt with its right answer."""


def demonstrate_public_tasks(
    world: World, count: int, tasks: Sequence[str] = tuple(PUBLIC_TASKS)
) -> list[Demonstration]:
    """Return `count` demonstrations, the tasks in turn; prompts differ where a task has enough of them.

    The extra column `task` names the task.
    """
    rng = Random(f"world {world.seed} public tasks")
    demonstrations: list[Demonstration] = []
    prompts: set[str] = set()
    for index in range(count):
        task = tasks[index % len(tasks)]
        for _ in range(_MAX_DRAWS):
            prompt, answer = PUBLIC_TASKS[task](world.lexicon, rng)
            if prompt not in prompts:
                break
        prompts.add(prompt)
        fields = {"prompt": prompt, "completion": answer, "source": "public", "task": task}
        demonstrations.append(Demonstration.model_validate(fields))
    return demonstrations


_MAX_DRAWS = 20
"""Draws of a prompt that is new, before one is repeated: a small task has few."""
