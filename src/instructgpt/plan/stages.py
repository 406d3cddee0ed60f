"""What each stage needs: the phases of a step of it, and what is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from instructgpt import functional
from instructgpt.config import StageConfig
from instructgpt.data.packing import Batch, Example, microbatches
from instructgpt.data.rankings import RankedPrompt, ranked_prompts, token_groups, tokens_in
from instructgpt.data.splits import held_out
from instructgpt.data.tokenization import Renderer, demonstration_examples
from instructgpt.errors import BadInput
from instructgpt.models.flops import FLOAT, Text, configuration
from instructgpt.models.policy import LOGITS_HELD, completion_numbers, context_length, dropouts, pretraining_window
from instructgpt.plan.context import STATED_RECORDS, Told
from instructgpt.plan.lengths import ended, read_sample, renderer, spread, stated
from instructgpt.plan.memory import adam_bytes, peak, ppo_moments, training_moments
from instructgpt.plan.meta_trace import Held, Measure, Network, logp, scores, values
from instructgpt.plan.roofline import HALF, Phase, Plan, grouped, joined, optimizer, passes, predicted_in, ring, sampling, texts_of
from instructgpt.records import Demonstration, Prompt, Ranking
from instructgpt.sampling.engine import CPU_BYTES
from instructgpt.train import ppo
from instructgpt.train.ppo import PPOConfig
from instructgpt.train.pretrain import PretrainConfig, shape_for
from instructgpt.train.reward import RewardConfig
from instructgpt.train.sft import SFTConfig, pretraining_rows

STATED_K = 4
GATHERING, ADDING = "weights gathered", "gradients added up"
"""Phases that only ranks have: for sampling, where each holds parts of the policy; before an optimizer step, where each holds all."""


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


def network_of(config: StageConfig, model: Any, measure: Measure, *, scalar: bool = False) -> Network:
    """A model as a stage with these options makes it."""
    return Network(model, measure, scalar, config.lora, config.memory)


def training(
    network: Network,
    batches: Sequence[Sequence[Example]],
    told: Told,
    names: tuple[str, str] = ("forward", "backward"),
    *,
    again: bool = False,
) -> tuple[list[Phase], Held]:
    """Forward and backward of one rank over some optimizer steps' batches, and what the largest microbatch holds.

    `again`: gradients of something else are there when a step begins.
    """
    own = [[batch[row] for row in told.fullest([len(example) for example in batch])] for batch in batches]
    groups = [grouped(batch, told.budget) for batch in own]
    held = peak(network, max(groups, key=lambda some: max(sum(map(len, group)) for group in some)), told, again=again)
    most = max(sum(map(len, group)) for some in groups for group in some)
    examples = [example for batch in own for example in batch]
    kept = held.kept * sum(map(len, examples)) / most
    count = sum(map(len, groups))
    ranks = told.ranks if told.divides(network) else 1
    phases = passes(network, texts_of(examples), predicted_in(examples), groups=count, kept=kept, ranks=ranks, names=names)
    return phases, held


def stepping(networks: Sequence[Network], told: Told, averaged: float = 0.0) -> list[Phase]:
    """What ends an optimizer step: gradients added up where every rank holds a whole model, then the optimizer. `averaged`: numbers."""
    whole = [network for network in networks if not told.divides(network)]
    shares = [(network, 1 if network in whole else 1 / told.ranks) for network in networks]
    trained = sum(share * network.shape.trained for network, share in shares)
    phase = optimizer(trained, shares[0][1] * averaged, sum(share * adam_bytes(network) for network, share in shares))
    if told.ranks == 1 or not whole:
        return [phase]
    sent = 2 * ring(FLOAT * sum(network.shape.trained for network in whole), told.ranks)
    return [Phase(ADDING, 0, 0, 0, sent=sent, calls=len(whole)), phase]


def plan_sft(config: SFTConfig, told: Told) -> Plan:
    """Supervised fine-tuning: a step is a batch of demonstrations, and its share of pretraining text."""
    model = configuration(config.base)
    model.update(dropouts(model, config.dropout))
    network = network_of(config, model, logp)
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
    phases, held = training(network, [repeated(examples, batch)], told)
    if config.pretraining:
        rows = stated(pretraining_rows(config), 1, [window_of(model)])
        both, other = training(network, [rows], told, again=True)
        phases.append(joined("pretraining text", both))
        held = max(held, other, key=lambda one: one.peak)
    moments = training_moments(network, held, told, best=config.keep == "best" and config.epochs > 1)
    step = f"an optimizer step of {batch} demonstrations"
    steps = -(-count // config.batch) * config.epochs
    return Plan(stage="sft", step=step, steps=steps, phases=phases + stepping([network], told), moments=moments, ranks=told.ranks)


def plan_pretrain(config: PretrainConfig, told: Told) -> Plan:
    """A base model from scratch: a step is a batch of windows, each taken as one document."""
    network = network_of(config, shape_for(config, config.vocabulary), logp)
    phases, held = training(network, [stated(config.batch, 1, [config.window])], told)
    step = f"an optimizer step of {config.batch} windows"
    moments = training_moments(network, held, told, best=config.keep == "best")
    phases += stepping([network], told)
    return Plan(stage="pretrain", step=step, steps=config.steps, phases=phases, moments=moments, ranks=told.ranks)


def plan_reward(config: RewardConfig, told: Told) -> Plan:
    """The reward model: a step is a batch of prompts, each computed once for all its completions."""
    model = configuration(config.base)
    network = network_of(config, model, scores, scalar=True)
    if told.stated:
        prompts = [RankedPrompt([one] * STATED_K, (), "") for one in told.examples()]
        count = told.records or STATED_RECORDS
    else:
        rankings = read_sample(Ranking, config.data, config.skip_bad)
        known = [r for r in rankings if r.cohort != "heldout" and (config.validation or not held_out(r.prompt))]
        prompts, _ = ranked_prompts(spread(known), renderer(config.base), context_of(model))
        if not prompts:
            raise BadInput("no prompt with a decided pair to train on; give more rankings, or --validation")
        count = round(len({ranking.prompt for ranking in known}))
    batch = min(config.batch, count)
    prompts = [prompts[number % len(prompts)] for number in range(batch)]
    own = [prompts[row] for row in told.fullest([tokens_in([prompt]) for prompt in prompts])]
    groups = [[example for prompt in group for example in prompt.examples] for group in token_groups(own, told.budget)]
    held = peak(network, groups, told)
    texts = [text for prompt in own for text in shared(prompt.examples)]
    most = max(sum(text.tokens for text in shared(group)) for group in groups)
    kept = held.kept * sum(text.tokens for text in texts) / most
    ranks = told.ranks if told.divides(network) else 1
    phases = [*passes(network, texts, 0, groups=len(groups), kept=kept, ranks=ranks), *stepping([network], told)]
    step = f"an optimizer step of {batch} prompts"
    steps = -(-count // config.batch) * config.epochs
    moments = training_moments(network, held, told, best=config.keep == "best")
    return Plan(stage="reward", step=step, steps=steps, phases=phases, moments=moments, ranks=told.ranks)


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
    alike = same_tokens(config.policy, config.reward)
    policy = network_of(config, model, policy_numbers)
    value = network_of(config, judge if alike else configuration(config.policy), values, scalar=True)
    reward = Network(judge, scores, scalar=True, memory=config.memory)
    reference = Network(model, policy_numbers, memory=config.memory)
    batch, notes = episodes(config, model, told)
    phases, slots, width = rollout(config, policy, [(reward, "score"), (reference, "reference"), (value, "values")], batch, told)
    steps = [batch[start : start + config.minibatch] for start in range(0, len(batch), config.minibatch)]
    both, first = training(policy, steps, told, ("policy update", ""))
    phases.append(joined("policy update", both).times(config.epochs))
    both, second = training(value, steps, told, ("value update", ""))
    phases.append(joined("value update", both).times(config.epochs))
    text = None
    if config.pretraining:
        window = window_of(model)
        both, text = training(network_of(config, model, logp), [stated(config.ptx_rows, 1, [window])], told, again=True)
        phases.append(joined("pretraining text", both).times(config.steps_an_update))
        share = phases[-1].flops / sum(phase.flops for phase in phases)
        notes.append(f"pretraining text is {share:.0%} of all FLOPs ({config.ptx_ratio:g} rows of {window} tokens an episode)")
    averaged = policy.shape.trained if config.ema else 0
    phases += [phase.times(config.steps_an_update) for phase in stepping([policy, value], told, averaged)]
    own = [len(steps[0][row]) for row in told.fullest([len(example) for example in steps[0]])]
    several = text is not None or len(list(microbatches(own, told.budget))) > 1
    held = (first, second, text)
    moments = ppo_moments(policy, value, None if alike and config.lora else reward, held, several, slots, width, told)
    step = f"an update on {config.batch} episodes"
    return Plan(stage="ppo", step=step, steps=config.updates, phases=phases, moments=moments, notes=notes, ranks=told.ranks)


def rollout(
    config: PPOConfig, policy: Network, scored_by: Sequence[tuple[Network, str]], batch: Sequence[Example], told: Told
) -> tuple[list[Phase], int, int]:
    """One rank's part of sampling a batch and of scoring it; how many rows it samples at once, and how many tokens each has room for."""
    own = [batch[row] for row in told.fullest([len(example.prompt) + config.max_tokens for example in batch])]
    prompts, completions = [len(e.prompt) for e in own], [len(e.completion) for e in own]
    number = HALF if "bf16" in config.memory else FLOAT
    width = max(prompts) + config.max_tokens - 1
    slots = slots_of(number * policy.shape.cached * width, policy.shape.vocabulary, len(own), told)
    phases = sampling(policy.shape, prompts, completions, slots, number)
    if told.divides(policy):
        phases = [Phase(GATHERING, 0, 0, 0, sent=ring(policy.shape.bytes, told.ranks), calls=len(policy.groups)), *phases]
    own = [batch[row] for row in told.fullest([len(example) for example in batch])]
    texts, groups = texts_of(own), len(grouped(own, told.budget))
    for network, name in scored_by:
        logits = 0 if network.scalar else predicted_in(own)
        ranks = told.ranks if told.divides(network) else 1
        read = [text._replace(read=1) for text in texts] if network.measure is scores else texts
        phases += passes(network, read, logits, groups=groups, ranks=ranks, names=(name, ""))[:1]
    return phases, slots, width


def slots_of(row: int, vocabulary: int, rows: int, told: Told) -> int:
    """How many of the rows are sampled at once: on a CPU as many as the engine has memory for, on CUDA all. `row`: bytes of one's cache."""
    fit = min(CPU_BYTES // row, LOGITS_HELD // vocabulary)
    return max(1, min(rows, fit)) if told.device.type == "cpu" else rows
