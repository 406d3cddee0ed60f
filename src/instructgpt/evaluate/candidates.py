"""Completions for labelers to rank: K of each prompt, most of them from the policy, some from the base model.

The paper's labelers ranked between 4 and 9 completions of a prompt, mostly of SFT policies (section 3.5, appendix A).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from instructgpt.config import StageConfig
from instructgpt.evaluate.ask import Subject, answers
from instructgpt.models.load import pick_device
from instructgpt.records import Completion, Prompt, read_records, write_records
from instructgpt.world import World

SPREAD = 6
"""K goes from 4 to 9: six different numbers, taken in turn."""


class CandidatesConfig(StageConfig):
    """What is sampled for labelers in the small world."""

    stage: ClassVar[str] = "candidates"

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
        """The completions of each prompt, from all parts. Identical ones are shown to labelers once."""
        grouped: dict[str, dict[tuple[str, str], Completion]] = defaultdict(dict)
        for file in sorted(folder.glob(pattern)):
            for completion in read_records(Completion, file):
                grouped[completion.prompt].setdefault((completion.completion, completion.finish), completion)
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
    asked: dict[str, list[str]] = {"policy": [], "prompted": []}
    prompts = sorted({prompt.text for prompt in read_records(Prompt, config.prompts)})
    for number, prompt in enumerate(prompts[config.part :: config.parts]):
        count = config.least + number % SPREAD
        from_base = round(count * config.base_share)
        asked["policy"] += [prompt] * (count - from_base)
        asked["prompted"] += [prompt] * from_base
    made = []
    for subject in subjects:
        seed = config.seed * config.parts + config.part
        made += answers(subject, asked[subject.name], max_tokens=config.max_tokens, seed=seed, temperature=1.0)
    if config.strays:
        made += stray_answers(made)
    write_records(config.out, made)
    return config.out


def stray_answers(made: Sequence[Completion]) -> list[Completion]:
    """For each prompt the policy's answer to another one, best of the same ending: about the same thing, but to another question.

    A policy hardly ever answers another question, so a reward model that never saw it done prices it wrongly, and PPO finds that out.
    """
    first: dict[str, Completion] = {}
    for completion in made:
        if completion.model == "policy":
            first.setdefault(completion.prompt, completion)
    alike = sorted(first, key=lambda prompt: (prompt.split()[-1], prompt))  # neighbours end with the same word where any do
    return [
        first[other].model_copy(update={"prompt": prompt, "model": "stray"})
        for prompt, other in zip(alike, [*alike[1:], *alike[:1]], strict=True)
    ]
