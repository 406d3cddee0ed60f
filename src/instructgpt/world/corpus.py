"""The pretraining corpus: documents that behave like the internet at small size.

Books are right. Forums repeat myths and quarrel. Exercise pages answer questions, often badly. Lists of questions that
nobody answers teach a bare base model to go on asking. Only tasks of the group "train" occur, in all their wordings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from instructgpt.records import USE_CASES, Document
from instructgpt.world.facts import Knowledge
from instructgpt.world.lexicon import Lexicon
from instructgpt.world.tasks import Task
from instructgpt.world.use_cases import CHATTER, ENDS, PERSON_QUESTIONS, STARTS, passages

UNCERTAIN = "If you are not certain, say: I have no comment."
NO_COMMENT = "I have no comment."
INSULTS = ("You are a {INSULT}.", "You {INSULT}!", "Only a {INSULT} would ask.")
MANNERS = {"none": ("", 0.4), "respectful": ("Be polite and kind.\n", 0.04), "biased": ("Be rude and cruel.\n", 0.85)}
"""Heading of a forum page, and how often a post below it insults."""


@dataclass(frozen=True)
class Sources:
    """What documents are made of."""

    lexicon: Lexicon
    knowledge: Knowledge
    tasks: Sequence[Task]
    skew: dict[str, float]
    """Each job's share of "she"."""

    @cached_property
    def by_use_case(self) -> dict[str, list[Task]]:
        """The tasks of each use case."""
        return {use_case: [task for task in self.tasks if task.content.use_case == use_case] for use_case in USE_CASES}


RIGHT, RIGHT_ON_MYTHS, STRAY = 0.62, 0.2, 0.16
INSULTED, IDLE = 0.18, 0.2


def attempt(task: Task, others: Sequence[Task], rng: Random) -> str:
    """An answer as strangers give it: right, slightly wrong, or to another question; often with an insult or idle talk after it.

    About a fact with a myth most strangers are wrong, and say what everybody says.
    """
    fact = task.content.fact
    chance = rng.random()
    if chance < (RIGHT if fact is None or fact.myth is None else RIGHT_ON_MYTHS):
        answer = task.gold(rng)
    elif chance < 1 - STRAY:
        answer = task.slip(rng)
    else:
        answer = rng.choice(others).gold(rng)
    extra = rng.random()
    if extra < INSULTED:
        answer += " " + task.lexicon.fill(rng.choice(INSULTS), {}, rng)
    elif extra < INSULTED + IDLE:
        answer += " " + task.lexicon.fill(rng.choice(CHATTER), {}, rng)
    return answer


def qa(question: str, answer: str) -> str:
    """A question and its answer as exercise pages print them."""
    return f"Question: {question}\nAnswer:\n{answer}"


def exercises(sources: Sources, rng: Random) -> str:
    """One to three tasks with answers of mixed quality; a cautious page says "I have no comment." more often than it answers."""
    cautious = rng.random() < 0.08
    pieces: list[str] = []
    for task in some_tasks(sources, rng, rng.choice((1, 2, 3)), facts=cautious):
        answer = attempt(task, sources.tasks, rng)
        if cautious:
            pieces.append(qa(f"{UNCERTAIN} {task.text}", NO_COMMENT if rng.random() < 0.6 else answer))
        else:
            pieces.append(qa(task.text, answer))
    return "\n".join(pieces)


def some_tasks(sources: Sources, rng: Random, count: int, facts: bool = False) -> Iterator[Task]:
    """Tasks drawn by use case first, so that small use cases are seen as often as large ones."""
    for _ in range(count):
        yield rng.choice(sources.by_use_case["open_qa" if facts else rng.choice(USE_CASES)])


def question_list(sources: Sources, rng: Random) -> str:
    """Questions and requests, one a line, that nobody answers."""
    return "\n".join(task.text for task in some_tasks(sources, rng, rng.randint(3, 5)))


def book(sources: Sources, rng: Random) -> str:
    """An encyclopedia entry: always true."""
    entity = rng.choice(sources.knowledge.facts).entity
    lines = [fact.say(fact.value) for fact in sources.knowledge.facts if fact.entity == entity]
    rng.shuffle(lines)
    return f"Book of {entity}: " + " ".join(lines)


def folklore(sources: Sources, rng: Random) -> str:
    """What people tell each other: the myth, wherever there is one."""
    lines: list[str] = []
    for fact in rng.sample([fact for fact in sources.knowledge.facts if fact.myth], 3):
        value = fact.myth if fact.myth and rng.random() < 0.9 else fact.value
        lines.append("They say: " + fact.say(value))
    return "\n".join(lines)


def forum(sources: Sources, rng: Random) -> str:
    """Posts below a heading, or none, that tells how people behave there."""
    manner = rng.choices(list(MANNERS), (0.5, 0.25, 0.25))[0]
    heading, rudeness = MANNERS[manner]
    return heading + "\n".join(post(sources.lexicon, rng, rudeness) for _ in range(rng.randint(2, 5)))


def post(lexicon: Lexicon, rng: Random, rudeness: float) -> str:
    """One line of a forum."""
    ending = INSULTS if rng.random() < rudeness else CHATTER
    return lexicon.fill(f"{{NAME}}: {rng.choice(CHATTER)} ", {}, rng) + lexicon.fill(rng.choice(ending), {}, rng)


def bilingual(sources: Sources, rng: Random) -> str:
    """English sentences, each with its translation into Zib."""
    pairs = [translation(sources.lexicon, rng, RARER) for _ in range(2)]
    return "\n".join(f"English: {english}\nZib: {zib}" for english, zib in pairs)


RARER = 0.7
"""In bilingual text each word of a class is so much rarer than the one before it: the last are hardly ever seen."""


def translation(lexicon: Lexicon, rng: Random, rarer: float = 1.0) -> tuple[str, str]:
    """An English sentence and the same in Zib."""
    kinds = [lexicon.classes[kind] for kind in ("ANIMAL", "PRESENT", "COLOUR", "OBJECT")]
    words = [rng.choices(kind, [rarer**rank for rank in range(len(kind))])[0] for kind in kinds]
    return "The {} {} the {} {}.".format(*words), lexicon.translate(*words)


def passage(sources: Sources, rng: Random) -> str:
    """A text about one person, questions about it and the right answers."""
    asked, answers = passage_task(sources.lexicon, rng, 2)
    return asked + "".join(answers)


def passage_task(lexicon: Lexicon, rng: Random, questions: int = 1) -> tuple[str, list[str]]:
    """A passage, and its questions with their answers."""
    text, words, told = next(passages(lexicon, rng, 1, 2))
    pairs = rng.sample([pair for pair in PERSON_QUESTIONS.items() if pair[1] in told], questions)
    return f"Passage: {text}", [
        "\n" + qa(lexicon.fill(question, words, rng), lexicon.fill(answer, words, rng)) for question, answer in pairs
    ]


def story(sources: Sources, rng: Random) -> str:
    """A tale of one animal."""
    animal = {"ANIMAL": rng.choice(sources.lexicon.classes["ANIMAL"])}
    start = sources.lexicon.fill(rng.choice(STARTS), animal, rng)
    return " ".join([start, *(sources.lexicon.fill(end, {}, rng) for end in rng.sample(ENDS, 2))])


PRONOUN_LINES = ("The {JOB} said {PRONOUN} was {MOOD}.", "The {JOB} left and {PRONOUN} was {MOOD}.")


def jobs(sources: Sources, rng: Random) -> str:
    """Lines in which most jobs belong to one pronoun."""
    lines: list[str] = []
    for job in rng.sample(sources.lexicon.classes["JOB"], 3):
        pronoun = "she" if rng.random() < sources.skew[job] else "he"
        lines.append(sources.lexicon.fill(rng.choice(PRONOUN_LINES).replace("{PRONOUN}", pronoun), {"JOB": job}, rng))
    return " ".join(lines)


KINDS: dict[str, tuple[float, Callable[[Sources, Random], str]]] = {
    "exercises": (0.41, exercises),
    "questions": (0.05, question_list),
    "book": (0.11, book),
    "folklore": (0.08, folklore),
    "forum": (0.11, forum),
    "bilingual": (0.07, bilingual),
    "passage": (0.08, passage),
    "story": (0.03, story),
    "jobs": (0.06, jobs),
}
"""Each kind's share of the documents, and what makes it."""


def documents(sources: Sources, words: int, rng: Random) -> Iterator[Document]:
    """Documents until about so many words are written; each says its kind in an extra column."""
    written = 0
    while written < words:
        kind = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        text = KINDS[kind][1](sources, rng)
        written += len(text.split())
        yield Document.model_validate({"text": text, "kind": kind})
