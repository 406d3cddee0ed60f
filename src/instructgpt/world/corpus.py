"""The pretraining corpus: documents that imitate the internet at small size.

Books are right. Forums repeat myths and insults. Exercise pages answer questions, often badly. Question lists without
answers teach a base model to continue with questions. Only tasks of the group "train" occur, in all their wordings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from instructgpt.records import USE_CASES, Document
from instructgpt.world.facts import Knowledge
from instructgpt.world.generalization import GENERALIZATION_KINDS
from instructgpt.world.lexicon import Lexicon
from instructgpt.world.tasks import WorldTask
from instructgpt.world.use_cases import CHATTER, PERSON_QUESTIONS, STORY_ENDS, STORY_STARTS, sample_passages

UNCERTAINTY_INSTRUCTION = "If you are not certain, say: I have no comment."
_NO_COMMENT = "I have no comment."
_INSULTS = ("You are a {INSULT}.", "You {INSULT}!", "Only a {INSULT} would ask.")
FORUM_HEADINGS = {
    "none": ("", 0.4),
    "respectful": ("Be polite and kind.\n", 0.04),
    "biased": ("Be rude and cruel.\n", 0.85),
}
"""Forum heading -> probability that a post below it insults."""


@dataclass(frozen=True)
class CorpusSources:
    lexicon: Lexicon
    knowledge: Knowledge
    tasks: Sequence[WorldTask]
    she_share: dict[str, float]
    """Share of "she" for each job."""

    @cached_property
    def tasks_by_use_case(self) -> dict[str, list[WorldTask]]:
        kinds = (*USE_CASES, *GENERALIZATION_KINDS)
        return {kind: [task for task in self.tasks if task.content.use_case == kind] for kind in kinds}


_CORRECT_SHARE, _CORRECT_SHARE_ON_MYTHS, _OFF_TOPIC_SHARE = 0.62, 0.2, 0.16
_INSULT_SHARE, _CHATTER_SHARE = 0.18, 0.2
_GENERALIZATION_SHARE = 0.02
"""Share of exercises that nobody demonstrates or ranks: with more, a base of the demo's size copies less."""


def flawed_answer(task: WorldTask, tasks: Sequence[WorldTask], rng: Random) -> str:
    """Return an answer of forum quality: right, slightly wrong, or to another question; often followed by an insult or
    chatter.

    Most answers about a fact with a myth repeat the myth.
    """
    fact = task.content.fact
    chance = rng.random()
    if chance < (_CORRECT_SHARE if fact is None or fact.myth is None else _CORRECT_SHARE_ON_MYTHS):
        answer = task.gold_answer(rng)
    elif chance < 1 - _OFF_TOPIC_SHARE:
        answer = task.wrong_answer(rng)
    else:
        answer = rng.choice(tasks).gold_answer(rng)
    extra = rng.random()
    if extra < _INSULT_SHARE:
        answer += " " + task.lexicon.fill(rng.choice(_INSULTS), {}, rng)
    elif extra < _INSULT_SHARE + _CHATTER_SHARE:
        answer += " " + task.lexicon.fill(rng.choice(CHATTER), {}, rng)
    return answer


def format_qa(question: str, answer: str) -> str:
    return f"Question: {question}\nAnswer:\n{answer}"


def _make_exercises(sources: CorpusSources, rng: Random) -> str:
    """Make one to three tasks with answers of mixed quality; a cautious page mostly says "I have no comment."."""
    cautious = rng.random() < 0.08
    pieces: list[str] = []
    for task in _sample_tasks(sources, rng, rng.choice((1, 2, 3)), only_facts=cautious):
        answer = flawed_answer(task, sources.tasks, rng)
        if cautious:
            pieces.append(
                format_qa(f"{UNCERTAINTY_INSTRUCTION} {task.text}", _NO_COMMENT if rng.random() < 0.6 else answer)
            )
        else:
            pieces.append(format_qa(task.text, answer))
    return "\n".join(pieces)


def _sample_tasks(sources: CorpusSources, rng: Random, count: int, only_facts: bool = False) -> Iterator[WorldTask]:
    """Sample tasks by use case first, so that small use cases are as frequent as large ones."""
    for _ in range(count):
        kinds = GENERALIZATION_KINDS if rng.random() < _GENERALIZATION_SHARE else USE_CASES
        yield rng.choice(sources.tasks_by_use_case["open_qa" if only_facts else rng.choice(kinds)])


def _make_question_list(sources: CorpusSources, rng: Random) -> str:
    return "\n".join(task.text for task in _sample_tasks(sources, rng, rng.randint(3, 5)))


def _make_book(sources: CorpusSources, rng: Random) -> str:
    entity = rng.choice(sources.knowledge.facts).entity
    lines = [fact.to_sentence(fact.value) for fact in sources.knowledge.facts if fact.entity == entity]
    rng.shuffle(lines)
    return f"Book of {entity}: " + " ".join(lines)


def _make_folklore(sources: CorpusSources, rng: Random) -> str:
    lines: list[str] = []
    for fact in rng.sample([fact for fact in sources.knowledge.facts if fact.myth], 3):
        value = fact.myth if fact.myth and rng.random() < 0.9 else fact.value
        lines.append("They say: " + fact.to_sentence(value))
    return "\n".join(lines)


def _make_forum(sources: CorpusSources, rng: Random) -> str:
    manner = rng.choices(list(FORUM_HEADINGS), (0.5, 0.25, 0.25))[0]
    heading, rudeness = FORUM_HEADINGS[manner]
    return heading + "\n".join(_make_post(sources.lexicon, rng, rudeness) for _ in range(rng.randint(2, 5)))


def _make_post(lexicon: Lexicon, rng: Random, rudeness: float) -> str:
    ending = _INSULTS if rng.random() < rudeness else CHATTER
    return lexicon.fill(f"{{NAME}}: {rng.choice(CHATTER)} ", {}, rng) + lexicon.fill(rng.choice(ending), {}, rng)


def _make_bilingual(sources: CorpusSources, rng: Random) -> str:
    pairs = [sample_translation(sources.lexicon, rng, _RARITY_DECAY) for _ in range(2)]
    return "\n".join(f"English: {english}\nZib: {zib}" for english, zib in pairs)


_RARITY_DECAY = 0.7
"""Each word of a class is this factor rarer than the previous one in bilingual text."""


def sample_translation(lexicon: Lexicon, rng: Random, rarity_decay: float = 1.0) -> tuple[str, str]:
    """Return an English sentence and its Zib translation."""
    kinds = [lexicon.classes[kind] for kind in ("ANIMAL", "PRESENT", "COLOUR", "OBJECT")]
    words = [rng.choices(kind, [rarity_decay**rank for rank in range(len(kind))])[0] for kind in kinds]
    return "The {} {} the {} {}.".format(*words), lexicon.translate(*words)


def _make_passage(sources: CorpusSources, rng: Random) -> str:
    """Make two to four sentences about a person and a question on each.

    The longer the passage, the less a model gains by anything but copying from the right sentence.
    """
    count = rng.randint(2, len(PERSON_QUESTIONS))
    text, answers = make_passage_task(sources.lexicon, rng, count, count)
    return text + "".join(answers)


def make_passage_task(
    lexicon: Lexicon, rng: Random, sentence_count: int = 2, question_count: int = 1
) -> tuple[str, list[str]]:
    """Return a passage, and its questions with answers."""
    text, words, facts = next(sample_passages(lexicon, rng, 1, sentence_count))
    pairs = rng.sample([pair for pair in PERSON_QUESTIONS.items() if pair[1] in facts], question_count)
    return f"Passage: {text}", [
        "\n" + format_qa(lexicon.fill(question, words, rng), lexicon.fill(answer, words, rng))
        for question, answer in pairs
    ]


def _make_story(sources: CorpusSources, rng: Random) -> str:
    animal = {"ANIMAL": rng.choice(sources.lexicon.classes["ANIMAL"])}
    start = sources.lexicon.fill(rng.choice(STORY_STARTS), animal, rng)
    return " ".join([start, *(sources.lexicon.fill(end, {}, rng) for end in rng.sample(STORY_ENDS, 2))])


PRONOUN_TEMPLATES = ("The {JOB} said {PRONOUN} was {MOOD}.", "The {JOB} left and {PRONOUN} was {MOOD}.")


def _make_job_lines(sources: CorpusSources, rng: Random) -> str:
    lines: list[str] = []
    for job in rng.sample(sources.lexicon.classes["JOB"], 3):
        pronoun = "she" if rng.random() < sources.she_share[job] else "he"
        lines.append(
            sources.lexicon.fill(rng.choice(PRONOUN_TEMPLATES).replace("{PRONOUN}", pronoun), {"JOB": job}, rng)
        )
    return " ".join(lines)


DOCUMENT_GENERATORS: dict[str, tuple[float, Callable[[CorpusSources, Random], str]]] = {
    "exercises": (0.41, _make_exercises),
    "questions": (0.05, _make_question_list),
    "book": (0.11, _make_book),
    "folklore": (0.08, _make_folklore),
    "forum": (0.11, _make_forum),
    "bilingual": (0.07, _make_bilingual),
    "passage": (0.14, _make_passage),
    "story": (0.03, _make_story),
    "jobs": (0.06, _make_job_lines),
}
"""Document kind -> (weight, generator)."""


def generate_documents(sources: CorpusSources, word_budget: int, rng: Random) -> Iterator[Document]:
    """Yield documents until about `word_budget` words; the extra column `kind` names the generator."""
    word_count = 0
    while word_count < word_budget:
        kind = rng.choices(list(DOCUMENT_GENERATORS), [weight for weight, _ in DOCUMENT_GENERATORS.values()])[0]
        text = DOCUMENT_GENERATORS[kind][1](sources, rng)
        word_count += len(text.split())
        yield Document.model_validate({"text": text, "kind": kind})
