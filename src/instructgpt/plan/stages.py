"""What each stage needs: the phases of a step of it, and what is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from instructgpt import functional
from instructgpt.config import StageConfig
from instructgpt.data.batches import Batch, Example, token_budget
from instructgpt.data.rankings import Task, tasks_of, token_groups
from instructgpt.data.render import Renderer, demonstration_examples
from instructgpt.data.split import held_out
from instructgpt.errors import BadInput
from instructgpt.generate.engine import CPU_BYTES
from instructgpt.models.load import LOGITS_HELD, completion_numbers, context_length, dropouts, pretraining_window
from instructgpt.models.shape import FLOAT, Shape, Text, configuration
from instructgpt.plan.dry import Held, logp, scores, values
from instructgpt.plan.lengths import ended, read_sample, renderer, spread, stated
from instructgpt.plan.work import Network, Phase, Plan, grouped, joined, optimizer, passes, predicted_in, sampling, texts_of
from instructgpt.records import Demonstration, Prompt, Ranking
from instructgpt.train import ppo
from instructgpt.train.ppo import PPOConfig
from instructgpt.train.pretrain import PretrainConfig, shape_for
from instructgpt.train.reward import RewardConfig
from instructgpt.train.sft import SFTConfig, pretraining_rows

HOLES = 2.0
"""Bytes of the C library's heap that nothing fits into, beside the bytes of the trained weights: moments and gradients come to lie where
activations were, so that these need new room. Measured on Linux (docs/performance.md)."""
BEST = "the weights that validated best"
STATED_RECORDS = 256
STATED_K = 4


@dataclass(frozen=True, slots=True)
class Told:
    """What a plan is told beside the stage's options."""

    device: torch.device
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    records: int | None = None
    ranks: int = 1

    @property
    def stated(self) -> bool:
        """Whether lengths were stated, so that no data is read."""
        return self.prompt_tokens is not None and self.completion_tokens is not None

    @property
    def budget(self) -> int:
        """Tokens of a microbatch."""
        return token_budget(self.device)

    def examples(self) -> list[Example]:
        """Examples of the stated lengths."""
        assert self.prompt_tokens is not None
        assert self.completion_tokens is not None
        return stated(STATED_RECORDS, self.prompt_tokens, [self.completion_tokens])


def plan(config: StageConfig, told: Told) -> Plan:
    """The plan of a stage with these options.

    Raises:
        BadInput: a model or data is missing, or this stage has no plan.
    """
    if isinstance(config, SFTConfig):
        return plan_sft(config, told)
    if isinstance(config, RewardConfig):
        return plan_reward(config, told)
    if isinstance(config, PPOConfig):
        return plan_ppo(config, told)
    if isinstance(config, PretrainConfig):
        return plan_pretrain(config, told)
    raise BadInput(f"plan: there is no plan for the stage '{config.stage}'")


def context_of(config: Any) -> int:
    """Tokens the model of a configuration was built for."""
    return context_length(SimpleNamespace(config=config))


def window_of(config: Any) -> int:
    """Tokens in a row of pretraining text."""
    return pretraining_window(SimpleNamespace(config=config))


def repeated(examples: Sequence[Example], count: int) -> list[Example]:
    """As many examples as a batch has, taken from a sample in turn; those that come again differ from their first time."""
    size = len(examples)
    return [Example([number, *examples[number % size].prompt[1:]], examples[number % size].completion) for number in range(count)]


def training(
    network: Network, examples: Sequence[Example], scale: float, told: Told, names: tuple[str, str], *, again: bool = False
) -> tuple[list[Phase], Held]:
    """Forward and backward over a batch of which this is a sample, and what its largest microbatch holds.

    `again`: gradients of something else are there when it begins.
    """
    groups = grouped(examples[:: told.ranks], told.budget)
    holds = network.holds(groups, again=again)
    most = max(sum(map(len, group)) for group in groups)
    factor = scale / told.ranks
    tokens = factor * sum(map(len, examples))
    texts, shape = texts_of(examples), network.shape
    phases = passes(
        shape, texts, predicted_in(examples), groups=len(groups) / factor, kept=holds.kept * tokens / most / factor, names=names
    )
    return [phase.times(factor) for phase in phases], holds


def trained(network: Network, activations: float, told: Told, *, more: dict[str, float] | None = None) -> dict[str, float]:
    """What is in memory while one model is trained. `activations`: what is held beside the weights, gradients included."""
    size = network.shape.bytes
    parts = {"weights": float(size), "gradients": float(size), "Adam's moments": 2.0 * size}
    return (
        parts
        | {"activations and logits": max(0.0, activations - size), "holes between them": holes(size, activations - size, told)}
        | (more or {})
    )


def holes(size: float, activations: float, told: Told) -> float:
    """What of the heap stays unused on a CPU, beside `size` bytes of weights that are trained; CUDA's blocks are cut to size."""
    return max(0.0, min(HOLES * size, activations)) if told.device.type == "cpu" else 0.0


def plan_sft(config: SFTConfig, told: Told) -> Plan:
    """Supervised fine-tuning: a step is a batch of demonstrations, and its share of pretraining text."""
    model = configuration(config.base)
    model.update(dropouts(model, config.dropout))
    network = Network(model, logp)
    if told.stated:
        examples, count = told.examples(), told.records or STATED_RECORDS
    else:
        records = read_sample(Demonstration, config.data, config.skip_bad)
        records = records if config.validation else [record for record in records if not held_out(record.text)]
        if not records:
            raise BadInput("no demonstrations to train on; give more, or --validation")
        examples, _ = demonstration_examples(spread(records), renderer(config.base), context_of(model))
        count = len(records)
    batch = min(config.batch, count)
    phases, holds = training(network, repeated(examples, batch), 1.0, told, ("forward", "backward"))
    activations = holds.peak
    if config.pretraining:
        rows = stated(pretraining_rows(config), 1, [window_of(model)])
        both, more = training(network, rows, 1.0, told, ("forward", "backward"), again=True)
        phases.append(joined("pretraining text", both))
        activations = max(activations, more.peak)
    phases.append(optimizer(network.shape.parameters))
    moment = trained(network, activations, told, more={BEST: network.shape.bytes if config.keep == "best" and config.epochs > 1 else 0})
    step = f"an optimizer step of {batch} demonstrations"
    return Plan(stage="sft", step=step, steps=-(-count // config.batch) * config.epochs, phases=phases, moments={"updating": moment})


def plan_pretrain(config: PretrainConfig, told: Told) -> Plan:
    """A base model from scratch: a step is a batch of windows, each taken as one document."""
    network = Network(shape_for(config, config.vocabulary), logp)
    phases, holds = training(network, stated(config.batch, 1, [config.window]), 1.0, told, ("forward", "backward"))
    phases.append(optimizer(network.shape.parameters))
    step = f"an optimizer step of {config.batch} windows"
    moment = trained(network, holds.peak, told, more={BEST: network.shape.bytes if config.keep == "best" else 0})
    return Plan(stage="pretrain", step=step, steps=config.steps, phases=phases, moments={"updating": moment})


def plan_reward(config: RewardConfig, told: Told) -> Plan:
    """The reward model: a step is a batch of prompts, each computed once for all its completions."""
    model = configuration(config.base)
    network = Network(model, scores, scalar=True)
    if told.stated:
        tasks = [Task(told.examples()[row : row + 1] * STATED_K, (), "") for row in range(config.batch)]
        count = told.records or STATED_RECORDS
    else:
        rankings = read_sample(Ranking, config.data, config.skip_bad)
        known = [r for r in rankings if r.cohort != "heldout" and (config.validation or not held_out(r.prompt))]
        tasks, _ = tasks_of(spread(known), renderer(config.base), context_of(model))
        if not tasks:
            raise BadInput("no prompt with a decided pair to train on; give more rankings, or --validation")
        count = round(len({ranking.prompt for ranking in known}))
    batch = min(config.batch, count)
    tasks = [tasks[number % len(tasks)] for number in range(batch)]
    mine = [[example for task in group for example in task.examples] for group in token_groups(tasks[:: told.ranks], told.budget)]
    holds = network.holds(mine)
    texts = [text for task in tasks for text in shared(task.examples)]
    tokens = sum(text.tokens for text in texts)
    most = max(sum(text.tokens for text in shared(group)) for group in mine)
    phases = passes(network.shape, texts, 0, groups=len(mine) * told.ranks, kept=holds.kept * tokens / most)
    phases = [*(phase.times(1 / told.ranks) for phase in phases), optimizer(network.shape.parameters)]
    step = f"an optimizer step of {batch} prompts"
    steps = -(-count // config.batch) * config.epochs
    moment = trained(network, holds.peak, told, more={BEST: network.shape.bytes if config.keep == "best" else 0})
    return Plan(stage="reward", step=step, steps=steps, phases=phases, moments={"updating": moment})


def shared(examples: Sequence[Example]) -> list[Text]:
    """Examples as texts, with every prompt once."""
    prompts = {tuple(example.prompt) for example in examples}
    return [*(Text(len(prompt), read=0) for prompt in prompts), *(Text(len(e.completion), len(e.prompt), read=1) for e in examples)]


def policy_numbers(model: Any, batch: Batch) -> Any:
    """What PPO measures of its policy: log-probabilities that are trained on, entropies that are seen."""
    return completion_numbers(model, batch, functional.token_logp, ppo.entropy_seen)[0]


def episodes(config: PPOConfig, policy: Any, told: Told) -> tuple[list[Example], list[str]]:
    """A batch of episodes, as long as they are expected to be, and what is to be said about that."""
    mean = told.completion_tokens or config.max_tokens
    lengths = ended(mean, config.max_tokens, config.batch)
    said = f"completions taken to be {sum(lengths) / len(lengths):.0f} tokens long on average, at most {config.max_tokens}"
    notes = [said if told.completion_tokens else f"{said}; --completion-tokens states a mean"]
    if told.prompt_tokens is not None:
        return stated(config.batch, told.prompt_tokens, lengths), notes
    records = spread(read_sample(Prompt, config.prompts, config.skip_bad))
    render = renderer(config.policy)
    room = context_of(policy) - config.max_tokens
    fitting = [tokens for record in records if len(tokens := render.prompt(record)) <= room]
    if not fitting:
        raise BadInput(f"none of the prompts leaves room for --max-tokens {config.max_tokens} in a context of {context_of(policy)} tokens")
    return [Example([row, *fitting[row % len(fitting)][1:]], [0] * length) for row, length in enumerate(lengths)], notes


def same_tokens(policy: str, reward: Path) -> bool:
    """Whether both models read the same tokens; where a tokenizer is missing it is taken to be so."""
    try:
        one, other = Renderer(renderer(policy).tokenizer), renderer(reward)
    except BadInput:
        return True
    return one.same_tokens(other)


def plan_ppo(config: PPOConfig, told: Told) -> Plan:
    """PPO: a step is an update, a batch of episodes sampled, scored and learned from."""
    model, judge = configuration(config.policy), configuration(config.reward)
    policy = Network(model, policy_numbers)
    value = Network(judge if same_tokens(config.policy, config.reward) else configuration(config.policy), values, scalar=True)
    reward = Network(judge, scores, scalar=True)
    batch, notes = episodes(config, model, told)
    mine = batch[:: told.ranks]
    prompts, completions = [len(e.prompt) for e in mine], [len(e.completion) for e in mine]
    texts, predicted = texts_of(mine), predicted_in(mine)
    width = max(prompts) + config.max_tokens - 1
    slots = slots_of(policy.shape, len(mine), width, told)
    phases = sampling(policy.shape, prompts, completions, slots)
    groups = len(grouped(mine, told.budget))
    for name, network, logits in (("score", reward, 0), ("reference", policy, predicted), ("values", value, 0)):
        read = [text._replace(read=1) for text in texts] if network is reward else texts
        phases += passes(network.shape, read, logits, groups=groups, kept=0, names=(name, ""))[:1]
    minibatch, steps = batch[: config.minibatch], config.steps_an_update
    holds: dict[str, Held] = {}
    for name, network in (("policy update", policy), ("value update", value)):
        both, holds[name] = training(network, batch, config.epochs, told, (name, ""))
        holds[name] = network.holds(grouped(minibatch[:: told.ranks], told.budget))
        phases.append(joined(name, both))
    text = 0.0
    if config.pretraining:
        rows = stated(min(config.ptx_rows, 2 * told.budget // window_of(model) + 1), 1, [window_of(model)])
        both, held = training(Network(model, logp), rows, steps * config.ptx_rows / len(rows), told, ("pretraining text", ""), again=True)
        phases.append(joined("pretraining text", both))
        text = held.peak
        share = phases[-1].flops / sum(phase.flops for phase in phases)
        notes.append(f"pretraining text is {share:.0%} of all FLOPs ({config.ptx_ratio:g} rows of {window_of(model)} tokens an episode)")
    parameters = policy.shape.parameters + value.shape.parameters
    phases.append(optimizer(parameters, policy.shape.parameters if config.ema else 0).times(steps))
    moments = ppo_memory(policy, value, reward, holds, text, slots, width, len(grouped(minibatch[:: told.ranks], told.budget)), told)
    step = f"an update on {config.batch} episodes"
    return Plan(stage="ppo", step=step, steps=config.updates, phases=phases, moments=moments, notes=notes)


def slots_of(policy: Shape, rows: int, width: int, told: Told) -> int:
    """How many of the rows are sampled at once: on a CPU as many as the engine has memory for, on CUDA all."""
    fit = min(CPU_BYTES // (FLOAT * policy.cached * width), LOGITS_HELD // policy.vocabulary)
    return max(1, min(rows, fit)) if told.device.type == "cpu" else rows


def ppo_memory(
    policy: Network, value: Network, reward: Network, holds: dict[str, Held], text: float, slots: int, width: int, groups: int, told: Told
) -> dict[str, dict[str, float]]:
    """What is in memory while PPO samples and while it updates, part by part."""
    one, other = policy.shape.bytes, value.shape.bytes
    always = {
        "weights: policy, reference, average": 3.0 * one,
        "weights: reward and value model": float(reward.shape.bytes + other),
        "Adam's moments": 2.0 * (one + other),
    }
    cache = FLOAT * policy.shape.cached * slots * width  # taken once, for all of them
    numbers = 4 * FLOAT * slots * policy.shape.vocabulary  # logits, and what choosing a token makes of them
    first, second = holds["policy update"].peak, holds["value update"].peak
    several = groups > 1 or text > 0  # then both models' gradients are there from the second microbatch on
    fullest = max(first + other, second + one, text + other) if several else max(first, one + second)
    beside = max(0.0, fullest - one - other)
    return {
        "sampling": always | {"key-value cache": float(cache), "logits": float(numbers)},
        "updating": always
        | {"gradients": float(one + other), "activations and logits": beside, "holes between them": holes(one + other, beside, told)},
    }
