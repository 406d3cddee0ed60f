"""What PPO maximizes: reward models and Python functions, added up with weights.

    --reward runs/reward                                         one reward model
    --reward A B --reward-weights 1 0.5                          several
    --reward runs/reward rules.py:short --reward-weights 1 0.1   a function of rules.py beside a reward model

    --reward runs/reward --group A                               the head of one group of labelers
    --reward runs/reward --group A B --group-aggregation max-min several groups, the worse off first

A function takes prompts and completions and returns one number for each completion. PPO sees only a `Reward`: the sum,
normalized and clipped where options say so.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from instructgpt.data.packing import TokenizedExample
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.comm import broadcast_from_rank0, get_dist_info
from instructgpt.errors import InputError, RunError, one_line
from instructgpt.models.group_heads import read_group_heads
from instructgpt.models.loading import add_notice
from instructgpt.models.rank0 import load_on_rank0
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.records import Prompt, PromptFields
from instructgpt.sampling.completions import SampledCompletion, retokenize_for
from instructgpt.train.configs import GroupAggregation, PPOConfig, ScoreNormalization, split_function_source

_PROBE_COMPLETIONS = ("", "Yes.")
_MIN_STD = 1e-6


class RewardFunction(Protocol):
    """A part of the reward."""

    @property
    def name(self) -> str: ...

    def score(self, completions: Sequence[SampledCompletion]) -> tuple[Tensor, int]:
        """Return the scores (B,) on the CPU, on every rank, and how many texts were cut to be scored."""
        ...


@dataclass(slots=True)
class ModelReward:
    """A reward model. It reads the sampled tokens, or their text if its tokenizer is not the policy's.

    Its own tokens of that text can exceed its context: then the text is cut from the left. Where it scores for several
    groups of labelers, their scores are aggregated.
    """

    name: str
    scorer: ScalarModel
    policy_tokenizer: PromptTokenizer
    group_aggregation: GroupAggregation = "mean"

    @property
    def reads_tokens(self) -> bool:
        return self.scorer.tokenizer.is_compatible(self.policy_tokenizer)

    def score(self, completions: Sequence[SampledCompletion]) -> tuple[Tensor, int]:
        if self.scorer.group_heads is not None:
            by_group, num_cut = self.score_by_group(completions)
            return aggregate_group_scores(by_group, self.group_aggregation), num_cut
        examples, num_cut = self._prepare(completions)
        return self.scorer.score(examples), num_cut

    def score_by_group(self, completions: Sequence[SampledCompletion]) -> tuple[dict[str, Tensor], int]:
        """Return the scores (B,) of each group, and how many texts were cut to be scored."""
        examples, num_cut = self._prepare(completions)
        return self.scorer.group_scores(examples), num_cut

    def _prepare(self, completions: Sequence[SampledCompletion]) -> tuple[list[TokenizedExample], int]:
        examples = retokenize_for(self.scorer.tokenizer, self.policy_tokenizer, completions)
        return self.scorer.truncate(examples)


def aggregate_group_scores(by_group: Mapping[str, Tensor], aggregation: GroupAggregation) -> Tensor:
    """Return the groups' mean, or the scores of the group whose mean over the batch is lowest. -> (B,).

    The second maximizes the smallest expected score of a group (MaxMin-RLHF, Chakraborty et al. 2024, algorithm 1).
    """
    if aggregation == "mean":
        return torch.stack(list(by_group.values())).mean(0)
    return min(by_group.values(), key=lambda scores: float(scores.mean()))


@dataclass(frozen=True, slots=True)
class PythonReward:
    """A user's function (prompts, completions) -> scores, called on rank 0.

    A prompt is a string, or the list of a conversation's messages ({"role", "content"}), as in TRL; a completion is a
    string. The same input must give the same scores, or a resumed run differs.
    """

    name: str
    function: Callable[[list[Any], list[str]], Iterable[float]]

    def score(self, completions: Sequence[SampledCompletion]) -> tuple[Tensor, int]:
        prompts = [to_function_input(completion.prompt) for completion in completions]
        texts = [completion.text for completion in completions]
        numbers = self._call(prompts, texts) if get_dist_info().rank == 0 else []
        return torch.tensor(broadcast_from_rank0(numbers), dtype=torch.float32), 0

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Call the function once before the run. Raises InputError if it fails, or gives anything but numbers."""
        inputs = [to_function_input(prompt) for prompt in prompts[: len(_PROBE_COMPLETIONS)]]
        try:
            self._call(inputs, list(_PROBE_COMPLETIONS[: len(inputs)]))
        except RunError as error:
            raise InputError(f"--reward {error}") from error

    def _call(self, prompts: list[Any], completions: list[str]) -> list[float]:
        try:
            scores = [float(score) for score in self.function(prompts, completions)]
        except Exception as error:  # a user's code raises anything
            raise RunError(f"{self.name}: the function failed ({one_line(error, 300)})") from error
        if len(scores) != len(completions):
            raise RunError(f"{self.name}: {len(scores)} scores for {len(completions)} completions, expected one each")
        for score, completion in zip(scores, completions, strict=True):
            if not math.isfinite(score):
                raise RunError(f"{self.name}: the score of '{one_line(completion, 80)}' is {score}, expected a number")
        return scores


def to_function_input(prompt: PromptFields) -> str | list[dict[str, Any]]:
    """Return what a reward function gets: the text of a prompt, or the messages of a conversation."""
    if prompt.messages is None:
        return prompt.prompt
    return [message.model_dump(exclude_none=True) for message in prompt.messages]


@dataclass(slots=True)
class RunningMoments:
    """Mean and variance of all scores so far (Chan et al. 1983, updated a batch at a time)."""

    count: float = 0.0
    mean: float = 0.0
    sum_of_squares: float = 0.0  # of deviations from the mean

    def update(self, values: Tensor) -> None:
        batch = values.double()
        count, mean = len(batch), float(batch.mean())
        delta, total = mean - self.mean, self.count + count
        self.sum_of_squares += float(((batch - mean) ** 2).sum()) + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        return math.sqrt(self.sum_of_squares / self.count) if self.count else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of B completions."""

    total: Tensor  # (B,) what PPO sees, before the penalty of truncated completions
    raw: Tensor  # (B,) the weighted sum, before normalization and clipping
    parts: dict[str, Tensor]  # (B,) of each reward function, as it gave them
    num_cut: int  # texts cut from the left, over all reward models

    def metrics(self) -> dict[str, float]:
        """Return means and standard deviations of the parts where there are several, and the texts cut."""
        is_single = len(self.parts) == 1 and torch.equal(next(iter(self.parts.values())), self.raw)
        numbers = {"scores/texts_cut": float(self.num_cut)} if self.num_cut else {}
        for name, scores in self.parts.items() if not is_single else ():
            numbers |= {
                f"scores/{name}/mean": float(scores.mean()),
                f"scores/{name}/std": float(scores.std(correction=0)),
            }
        return numbers


@dataclass(slots=True)
class Reward:
    """A weighted sum of reward functions, optionally normalized by running moments, then clipped."""

    functions: tuple[RewardFunction, ...]
    weights: tuple[float, ...]
    normalization: ScoreNormalization = "none"
    clip: float = 0.0  # scores beyond -clip and clip are cut to them; 0: none are
    moments: RunningMoments = field(default_factory=RunningMoments)

    @classmethod
    def from_model(cls, scorer: ScalarModel, policy_tokenizer: PromptTokenizer) -> Reward:
        """Return one reward model as the whole reward."""
        return cls((ModelReward("reward", scorer, policy_tokenizer),), (1.0,))

    def score(self, completions: Sequence[SampledCompletion], *, update_moments: bool = True) -> Scores:
        """Score completions. All ranks call it with the same ones.

        Args:
            completions: B of them.
            update_moments: False leaves the running moments as they are, for completions that train nothing.
        """
        parts, num_cut = dict[str, Tensor](), 0
        total = torch.zeros(len(completions))
        for function, weight in zip(self.functions, self.weights, strict=True):
            if isinstance(function, ModelReward) and function.scorer.group_heads is not None:
                by_group, cut = function.score_by_group(completions)
                parts |= {f"{function.name}/{group}": scores for group, scores in by_group.items()}
                parts[function.name] = aggregate_group_scores(by_group, function.group_aggregation)
            else:
                parts[function.name], cut = function.score(completions)
            total = total + weight * parts[function.name]
            num_cut += cut
        return Scores(total=self._transform(total, update_moments), raw=total, parts=parts, num_cut=num_cut)

    def _transform(self, scores: Tensor, update_moments: bool) -> Tensor:
        if self.normalization != "none":
            if update_moments:
                self.moments.update(scores)
            mean = self.moments.mean if self.normalization == "standardize" else 0.0
            scores = (scores - mean) / max(self.moments.std, _MIN_STD)
        return scores.clamp(-self.clip, self.clip) if self.clip else scores

    def models(self) -> Iterator[ModelReward]:
        """Yield the parts that are reward models."""
        yield from (function for function in self.functions if isinstance(function, ModelReward))

    def state_dict(self) -> dict[str, float]:
        return asdict(self.moments)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.moments = RunningMoments(**state)


def reward_inputs(sources: Sequence[str]) -> dict[str, str]:
    """Return the inputs of a run by name, for its record: directories and files, which are hashed."""
    files = [str(parts[0]) if (parts := split_function_source(source)) else source for source in sources]
    if len(files) == 1:
        return {"reward": files[0]}
    return {f"reward {name}": file for name, file in zip(unique_names(sources), files, strict=True)}


def unique_names(sources: Sequence[str]) -> list[str]:
    """Return the last part of each source, or all of it where that is not unique."""
    names = [f"{parts[0].stem}:{parts[1]}" if (parts := split_function_source(s)) else Path(s).name for s in sources]
    return [name if names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]


def load_function(source: str) -> Callable[[list[Any], list[str]], Iterable[float]]:
    """Load FILE.py:function.

    Raises:
        InputError: there is no such file or function, or the file does not run.
    """
    parts = split_function_source(source)
    assert parts is not None
    file, name = parts
    if not file.is_file():
        raise InputError(f"--reward {source}: no such file {file}")
    spec = importlib.util.spec_from_file_location(f"instructgpt_reward_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's code raises anything
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise InputError(f"--reward {source}: {file} does not run ({reason})") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        names = sorted(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        raise InputError(f"--reward {source}: {file} has no function '{name}'; it has: {', '.join(names) or 'none'}")
    reward_function: Callable[[list[Any], list[str]], Iterable[float]] = function
    return reward_function


def _load_scorer(source: str, device: torch.device, groups: Sequence[str]) -> ScalarModel:
    """Load a reward model that scores for these groups, where it has heads of groups at all."""
    if groups and not read_group_heads(source):
        scorer = load_reward_model(source, device)
        add_notice(scorer.model, "it has no heads of groups, so --group does not change its score")
        return scorer
    return load_reward_model(source, device, groups)


def load_reward(
    config: PPOConfig,
    policy_tokenizer: PromptTokenizer,
    device: torch.device,
    prepare: Callable[[ModelReward], None],
) -> Reward:
    """Load the reward models and functions of a run; `prepare` gets each model before the next is read."""
    functions: list[RewardFunction] = []
    has_groups = False
    for source, name in zip(config.reward, unique_names(config.reward), strict=True):
        if split_function_source(source):
            functions.append(PythonReward(name, load_function(source)))
            continue
        scorer = load_on_rank0(_load_scorer, source, device, config.group)
        part = ModelReward(name, scorer, policy_tokenizer, config.group_aggregation)
        has_groups = has_groups or bool(scorer.groups)
        prepare(part)
        functions.append(part)
    if config.group and not has_groups:
        raise InputError(
            f"--group {' '.join(config.group)}: no --reward has heads of groups; train one with "
            "'instructgpt reward --groups'"
        )
    weights = config.reward_weights or (1.0,) * len(functions)
    return Reward(tuple(functions), tuple(weights), config.score_normalization, config.score_clip)
