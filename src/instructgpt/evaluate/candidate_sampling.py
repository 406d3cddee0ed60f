"""Sample the completions that labelers rank: K per prompt, most from the policy, some from the prompted base model.

The paper's labelers ranked 4 to 9 completions per prompt, mostly from SFT policies (section 3.5, appendix A).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instructgpt.evaluate.configs import CandidatesConfig
from instructgpt.evaluate.inference import EvaluatedModel, generate_answers
from instructgpt.models.policy import pick_device
from instructgpt.records import Completion, Prompt, read_records, write_records
from instructgpt.world import World

_DISTINCT_LIST_SIZES = 6
"""K cycles through six values, 4 to 9."""


def read_candidate_parts(folder: Path, pattern: str) -> list[list[Completion]]:
    """Return the candidate lists of all part files. Identical completions in a list are merged."""
    lists: dict[tuple[str, int], dict[tuple[str, str], Completion]] = defaultdict(dict)
    for file in sorted(folder.glob(pattern)):
        for completion in read_records(Completion, file):
            key = (completion.completion, completion.finish)
            lists[candidate_list_key(completion)].setdefault(key, completion)
    return [list(completions.values()) for completions in lists.values() if len(completions) > 1]


def sample_candidate_completions(config: CandidatesConfig, world_seed: int) -> Path:
    """Sample this part's completions, unless its file exists. Returns the file."""
    if config.out.exists():
        return config.out
    device = pick_device(config.device)
    sources = list_candidate_sources(config)
    requests: dict[str, list[tuple[str, int]]] = {source.name: [] for source in sources}
    list_keys = sorted(enumerate_occurrences(prompt.prompt for prompt in read_records(Prompt, config.prompts)))
    carried = dict.fromkeys((source.name for source in sources), 0.0)
    for index, list_key in enumerate(list_keys[config.part :: config.parts]):
        count = config.least + index % _DISTINCT_LIST_SIZES
        for name, source_count in _split_by_share(count, sources, carried).items():
            requests[name] += [list_key] * source_count
    completions = []
    for source in sources:
        add_few_shot_prefix = World(world_seed).few_shot_prompt if source.prompted else None
        model = EvaluatedModel.load(source.name, Path(source.model), device, add_few_shot_prefix)
        seed = config.seed * config.parts + config.part
        prompts = [prompt for prompt, _ in requests[source.name]]
        model_completions = generate_answers(model, prompts, max_tokens=config.max_tokens, seed=seed, temperature=1.0)
        completions += [
            completion.model_copy(update={"round": occurrence})
            for completion, (_, occurrence) in zip(model_completions, requests[source.name], strict=True)
        ]
    if config.strays:
        completions += build_distractors(completions, config.policy_name)
    write_records(config.out, completions)
    return config.out


@dataclass(frozen=True, slots=True)
class CandidateSource:
    """A model that writes candidates, and its share of them; the first source writes what the others leave."""

    name: str
    model: str
    share: float = 0.0
    prompted: bool = False


def list_candidate_sources(config: CandidatesConfig) -> list[CandidateSource]:
    """Return the newest policy, the earlier models that are there and have a share, and the prompted base model."""
    sources = [CandidateSource(config.policy_name, config.policy)]
    if config.previous is not None and config.previous_share:
        sources.append(CandidateSource(config.previous_name, config.previous, config.previous_share))
    if config.start is not None and config.start_share:
        sources.append(CandidateSource("start", config.start, config.start_share))
    return [*sources, CandidateSource("prompted", config.base, config.base_share, prompted=True)]


def _split_by_share(count: int, sources: Sequence[CandidateSource], carried: dict[str, float]) -> dict[str, int]:
    """Split the K completions of a prompt; fractions are carried to the next prompt, so that small shares count too.

    The base model's number is rounded for each prompt.
    """
    counts: dict[str, int] = {}
    for source in sources[1:]:
        if source.prompted:
            counts[source.name] = round(count * source.share)
        else:
            carried[source.name] += count * source.share
            counts[source.name] = int(carried[source.name])
            carried[source.name] -= counts[source.name]
    return {sources[0].name: max(0, count - sum(counts.values()))} | counts


def enumerate_occurrences(prompts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield each prompt with the number of its earlier occurrences: a repeated prompt gets its own candidate list."""
    counts: Counter[str] = Counter()
    for prompt in prompts:
        yield prompt, counts[prompt]
        counts[prompt] += 1


def candidate_list_key(completion: Completion) -> tuple[str, int]:
    """Return (prompt, occurrence), which identifies the list a completion is ranked in."""
    return completion.prompt, int((completion.model_extra or {}).get("round", 0))


def build_distractors(completions: Sequence[Completion], policy: str = "policy") -> list[Completion]:
    """Return, for each list, the policy's answer to a neighboring prompt, preferably one with the same last word.

    A policy rarely answers a different question. A reward model that never saw such an answer can overrate it, and PPO
    exploits that.
    """
    policy_answers: dict[tuple[str, int], Completion] = {}
    for completion in completions:
        if completion.model == policy:
            policy_answers.setdefault(candidate_list_key(completion), completion)
    # sorting by the last word makes neighbors of prompts about the same thing
    neighbors = sorted(policy_answers, key=lambda key: (key[1], key[0].split()[-1], key[0]))
    return [
        policy_answers[neighbor].model_copy(update={"prompt": prompt, "round": occurrence, "model": "stray"})
        for (prompt, occurrence), neighbor in zip(neighbors, [*neighbors[1:], *neighbors[:1]], strict=True)
        if neighbor[0] != prompt
    ]
