"""Completions for labelers to rank: K of each prompt, most of them from the policy, some from the base model.

The paper's labelers ranked between 4 and 9 completions of a prompt, mostly of SFT policies (section 3.5, appendix A).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import WITHOUT_TRAINING, StageConfig
from instructgpt.evaluate.inference import Subject, answers
from instructgpt.models.policy import pick_device
from instructgpt.records import Completion, Prompt, read_records, write_records
from instructgpt.world import World

SPREAD = 6
"""K goes from 4 to 9: six different numbers, taken in turn."""


class CandidatesConfig(StageConfig):
    """What is sampled for labelers in the small world."""

    stage: ClassVar[str] = "candidates"
    lacks: ClassVar[frozenset[str]] = WITHOUT_TRAINING

    policy: str = Field(description="the policy most completions come from")
    base: str = Field(description="the base model, prompted, that the others come from")
    prompts: Path = Field(description="prompts")
    least: int = Field(4, ge=2, description="fewest completions of a prompt")
    base_share: float = Field(0.2, ge=0, le=1, description="share of completions from the prompted base model")
    strays: bool = Field(True, description="also show an answer to a neighbouring prompt, so that fitting the question is learned")
    max_tokens: int = Field(32, ge=1, description="where a completion is cut off")
    part: int = Field(0, ge=0, description="which part of the prompts")
    parts: int = Field(1, ge=1, description="how many parts there are")

    @staticmethod
    def read_parts(folder: Path, pattern: str) -> list[list[Completion]]:
        """Lists of completions to rank, from all parts: one for each time a prompt was asked. Identical ones are shown once."""
        grouped: dict[tuple[str, int], dict[tuple[str, str], Completion]] = defaultdict(dict)
        for file in sorted(folder.glob(pattern)):
            for completion in read_records(Completion, file):
                grouped[list_of(completion)].setdefault((completion.completion, completion.finish), completion)
        return [list(different.values()) for different in grouped.values() if len(different) > 1]


def gather_candidates(config: CandidatesConfig, world_seed: int) -> Path:
    """Sample this part's completions, unless they are already there. Returns the file."""
    if config.out.exists():
        return config.out
    device = pick_device(config.device)
    subjects = (
        Subject.load("policy", Path(config.policy), device),
        Subject.load("prompted", Path(config.base), device, World(world_seed).primed),
    )
    asked: dict[str, list[tuple[str, int]]] = {"policy": [], "prompted": []}
    lists = sorted(numbered(prompt.text for prompt in read_records(Prompt, config.prompts)))
    for number, one in enumerate(lists[config.part :: config.parts]):
        count = config.least + number % SPREAD
        from_base = round(count * config.base_share)
        asked["policy"] += [one] * (count - from_base)
        asked["prompted"] += [one] * from_base
    made = []
    for subject in subjects:
        seed = config.seed * config.parts + config.part
        prompts = [prompt for prompt, _ in asked[subject.name]]
        said = answers(subject, prompts, max_tokens=config.max_tokens, seed=seed, temperature=1.0)
        made += [one.model_copy(update={"round": turn}) for one, (_, turn) in zip(said, asked[subject.name], strict=True)]
    if config.strays:
        made += stray_answers(made)
    write_records(config.out, made)
    return config.out


def numbered(prompts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Each prompt with how often it came before: a prompt that users send again gets another list of completions."""
    seen: Counter[str] = Counter()
    for prompt in prompts:
        yield prompt, seen[prompt]
        seen[prompt] += 1


def list_of(completion: Completion) -> tuple[str, int]:
    """The list a completion is ranked in: its prompt, and which time that was asked."""
    return completion.prompt, int((completion.model_extra or {}).get("round", 0))


def stray_answers(made: Sequence[Completion]) -> list[Completion]:
    """For each list the policy's answer to another prompt, best of the same ending: about the same thing, but to another question.

    A policy hardly ever answers another question, so a reward model that never saw it done prices it wrongly, and PPO finds that out.
    """
    first: dict[tuple[str, int], Completion] = {}
    for completion in made:
        if completion.model == "policy":
            first.setdefault(list_of(completion), completion)
    alike = sorted(first, key=lambda one: (one[1], one[0].split()[-1], one[0]))  # neighbours end with the same word where any do
    return [
        first[other].model_copy(update={"prompt": prompt, "round": turn, "model": "stray"})
        for (prompt, turn), other in zip(alike, [*alike[1:], *alike[:1]], strict=True)
        if other[0] != prompt
    ]
