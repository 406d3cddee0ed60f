"""The plan of each stage: phases of a step and peak memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from instructgpt import functional
from instructgpt.config import StageConfig
from instructgpt.data.packing import PackedBatch, TokenizedExample, microbatches
from instructgpt.data.rankings import RankedPrompt, count_ranking_tokens, prompt_microbatches, tokenize_rankings
from instructgpt.data.splits import is_heldout
from instructgpt.data.tokenization import PromptTokenizer, tokenize_demonstrations
from instructgpt.errors import InputError
from instructgpt.formatting import format_left_out
from instructgpt.models.families import check_supported
from instructgpt.models.flops import BF16_BYTES, FLOAT_BYTES, SequenceShape
from instructgpt.models.loading import load_model_config
from instructgpt.models.policy import (
    context_length,
    dropout_settings,
    per_token_outputs,
    pretraining_sequence_length,
)
from instructgpt.plan.context import SYNTHETIC_RECORDS, PlanContext
from instructgpt.plan.lengths import (
    geometric_lengths,
    load_plan_tokenizer,
    read_stage_records,
    sample_evenly,
    synthetic_examples,
)
from instructgpt.plan.memory import (
    adam_bytes,
    count_decode_rows,
    ppo_fixed_parts,
    ppo_peaks,
    trace_largest_microbatch,
    training_peaks,
)
from instructgpt.plan.meta_trace import ForwardFn, PeakMemory, TracedModel, forward_logp, forward_scores, forward_values
from instructgpt.plan.roofline import (
    Phase,
    Plan,
    count_predicted_tokens,
    forward_backward_phases,
    merge_phases,
    optimizer_phase,
    ring_bytes,
    sampling_phases,
    sequence_shapes,
    split_microbatches,
)
from instructgpt.records import Demonstration, Prompt, Ranking
from instructgpt.train import ppo
from instructgpt.train.configs import PPOConfig, PretrainConfig, RewardConfig, SFTConfig, split_function_source
from instructgpt.train.pretrain import build_llama_config
from instructgpt.train.sft import mix_rows_per_step, select_turns

_SYNTHETIC_K = 4
GATHER_PHASE, ALL_REDUCE_PHASE = "weights gathered", "gradients added up"
"""Phases of several ranks: gathering a sharded policy for sampling,
all-reducing replicated gradients before an optimizer step.
"""


def plan_stage(config: StageConfig, context: PlanContext) -> Plan:
    """Plan a stage.

    Raises:
        InputError: a model or data is missing, or the stage has no plan.
    """
    if isinstance(config, SFTConfig):
        return _plan_sft(config, context)
    if isinstance(config, RewardConfig):
        return _plan_reward(config, context)
    if isinstance(config, PPOConfig):
        return _plan_ppo(config, context)
    if isinstance(config, PretrainConfig):
        return _plan_pretrain(config, context)
    raise InputError(f"plan: there is no plan for the stage '{config.stage}'")


def _load_config(source: Path | str, *, reward: bool = False) -> Any:
    """Load the configuration of a model, and refuse it where the stage would."""
    config = load_model_config(source)
    check_supported(config, source, reward=reward)
    return config


def _context_length(config: Any) -> int:
    return context_length(SimpleNamespace(config=config))


def _window_length(config: Any) -> int:
    """Return the length of a row of pretraining text."""
    return pretraining_sequence_length(SimpleNamespace(config=config))


def _cycle_examples(examples: Sequence[TokenizedExample], count: int) -> list[TokenizedExample]:
    """Repeat a sample up to `count` examples; repetitions get distinct prompts."""
    size = len(examples)
    return [
        TokenizedExample([number, *examples[number % size].prompt_ids[1:]], examples[number % size].completion_ids)
        for number in range(count)
    ]


def _traced_model(config: StageConfig, model: Any, forward_fn: ForwardFn, *, scalar: bool = False) -> TracedModel:
    return TracedModel(model, forward_fn, scalar, config.lora, config.memory)


def _training_phases(
    model: TracedModel,
    batches: Sequence[Sequence[TokenizedExample]],
    context: PlanContext,
    phase_names: tuple[str, str] = ("forward", "backward"),
    *,
    accumulate: bool = False,
) -> tuple[list[Phase], PeakMemory]:
    """Return forward and backward of one rank over some optimizer steps, and the memory of the largest microbatch."""
    rank_batches = [
        [batch[row] for row in context.busiest_rank_rows([len(example) for example in batch])] for batch in batches
    ]
    step_microbatches = [split_microbatches(batch, context.budget) for batch in rank_batches]
    memory = trace_largest_microbatch(
        model,
        max(step_microbatches, key=lambda some: max(sum(map(len, group)) for group in some)),
        context,
        accumulate=accumulate,
    )
    largest_tokens = max(sum(map(len, group)) for some in step_microbatches for group in some)
    examples = [example for batch in rank_batches for example in batch]
    saved_bytes = memory.saved_for_backward * sum(map(len, examples)) / largest_tokens
    microbatch_count = sum(map(len, step_microbatches))
    ranks = context.ranks if context.shards(model) else 1
    phases = forward_backward_phases(
        model,
        sequence_shapes(examples),
        count_predicted_tokens(examples),
        microbatch_count=microbatch_count,
        saved_bytes=saved_bytes,
        ranks=ranks,
        phase_names=phase_names,
    )
    return phases, memory


def optimizer_phases(models: Sequence[TracedModel], context: PlanContext, ema_parameters: float = 0.0) -> list[Phase]:
    """Return the end of an optimizer step: all-reduce of replicated gradients, then the optimizer."""
    replicated = [network for network in models if not context.shards(network)]
    shares = [(network, 1 if network in replicated else 1 / context.ranks) for network in models]
    trained = sum(share * network.shape.trainable_parameters for network, share in shares)
    phase = optimizer_phase(
        trained, shares[0][1] * ema_parameters, sum(share * adam_bytes(network) for network, share in shares)
    )
    if context.ranks == 1 or not replicated:
        return [phase]
    bytes_sent = 2 * ring_bytes(
        FLOAT_BYTES * sum(network.shape.trainable_parameters for network in replicated), context.ranks
    )
    return [Phase(ALL_REDUCE_PHASE, 0, 0, 0, bytes_sent=bytes_sent, calls=len(replicated)), phase]


def _plan_sft(config: SFTConfig, context: PlanContext) -> Plan:
    model_config = _load_config(config.base)
    model_config.get_text_config().update(dropout_settings(model_config, config.dropout))
    model = _traced_model(config, model_config, forward_logp)
    if context.has_lengths:
        examples, count = context.examples(), context.records or SYNTHETIC_RECORDS
    else:
        records = read_stage_records(Demonstration, config.data, config.skip_bad)
        records = records if config.validation else [record for record in records if not is_heldout(record.prompt)]
        if not records:
            raise InputError("no demonstrations to train on; give more, or --validation")
        records = select_turns(records, config.learn)
        examples, _ = tokenize_demonstrations(
            sample_evenly(records), load_plan_tokenizer(config.base), _context_length(model_config)
        )
        count = len(records)
    batch = min(config.batch, count)
    phases, memory = _training_phases(model, [_cycle_examples(examples, batch)], context)
    if config.pretraining:
        rows = synthetic_examples(mix_rows_per_step(config), 1, [_window_length(model_config)])
        ptx_phases, ptx_memory = _training_phases(model, [rows], context, accumulate=True)
        phases.append(merge_phases("pretraining text", ptx_phases))
        memory = max(memory, ptx_memory, key=lambda one: one.peak)
    peaks = training_peaks(model, memory, context, keeps_best=config.keep == "best" and config.epochs > 1)
    step = f"an optimizer step of {batch} demonstrations"
    steps = -(-count // config.batch) * config.epochs
    return Plan(
        stage="sft",
        step=step,
        steps=steps,
        phases=phases + optimizer_phases([model], context),
        memory_peaks=peaks,
        notes=[f"the model: {model.path(context.device)}"],
        ranks=context.ranks,
    )


def _plan_pretrain(config: PretrainConfig, context: PlanContext) -> Plan:
    model = _traced_model(config, build_llama_config(config, config.vocabulary), forward_logp)
    phases, memory = _training_phases(model, [synthetic_examples(config.batch, 1, [config.window])], context)
    step = f"an optimizer step of {config.batch} windows"
    peaks = training_peaks(model, memory, context, keeps_best=config.keep == "best")
    phases += optimizer_phases([model], context)
    return Plan(stage="pretrain", step=step, steps=config.steps, phases=phases, memory_peaks=peaks, ranks=context.ranks)


def _plan_reward(config: RewardConfig, context: PlanContext) -> Plan:
    model_config = _load_config(config.base, reward=True)
    model = _traced_model(config, model_config, forward_scores, scalar=True)
    if context.has_lengths:
        prompts = [RankedPrompt([one] * _SYNTHETIC_K, (), "") for one in context.examples()]
        count = context.records or SYNTHETIC_RECORDS
    else:
        rankings = read_stage_records(Ranking, config.data, config.skip_bad)
        training_rankings = [
            r for r in rankings if r.cohort != "heldout" and (config.validation or not is_heldout(r.prompt))
        ]
        length = _context_length(model_config)
        prompts, left_out = tokenize_rankings(
            sample_evenly(training_rankings), load_plan_tokenizer(config.base), length
        )
        if not prompts:
            reason = format_left_out(left_out, length)
            raise InputError(
                f"no prompt with a decided pair to train on ({reason}); add rankings, or give --validation"
            )
        count = round(len({ranking.prompt for ranking in training_rankings}))
    batch = min(config.batch, count)
    prompts = [prompts[number % len(prompts)] for number in range(batch)]
    rank_prompts = [
        prompts[row] for row in context.busiest_rank_rows([count_ranking_tokens([prompt]) for prompt in prompts])
    ]
    step_microbatches = [
        [example for prompt in group for example in prompt.examples]
        for group in prompt_microbatches(rank_prompts, context.budget)
    ]
    memory = trace_largest_microbatch(model, step_microbatches, context)
    sequences = [text for prompt in rank_prompts for text in _dedupe_prompts(prompt.examples)]
    largest_tokens = max(sum(text.tokens for text in _dedupe_prompts(group)) for group in step_microbatches)
    saved_bytes = memory.saved_for_backward * sum(text.tokens for text in sequences) / largest_tokens
    ranks = context.ranks if context.shards(model) else 1
    phases = [
        *forward_backward_phases(
            model, sequences, 0, microbatch_count=len(step_microbatches), saved_bytes=saved_bytes, ranks=ranks
        ),
        *optimizer_phases([model], context),
    ]
    step = f"an optimizer step of {batch} prompts"
    steps = -(-count // config.batch) * config.epochs
    peaks = training_peaks(model, memory, context, keeps_best=config.keep == "best")
    return Plan(stage="reward", step=step, steps=steps, phases=phases, memory_peaks=peaks, ranks=context.ranks)


def _dedupe_prompts(examples: Sequence[TokenizedExample]) -> list[SequenceShape]:
    prompts = {tuple(example.prompt_ids) for example in examples}
    return [
        *(SequenceShape(len(prompt), output_tokens=0) for prompt in prompts),
        *(SequenceShape(len(e.completion_ids), len(e.prompt_ids), output_tokens=1) for e in examples),
    ]


def _forward_policy(model: Any, batch: PackedBatch) -> Any:
    return per_token_outputs(model, batch, functional.token_logp, ppo.entropy_no_grad)[0]


def _synthetic_episodes(
    config: PPOConfig, policy_config: Any, context: PlanContext
) -> tuple[list[TokenizedExample], list[str]]:
    """Return a batch of episodes of the expected lengths, and notes about these."""
    mean = context.completion_tokens or config.max_tokens
    lengths = geometric_lengths(mean, config.max_tokens, config.batch)
    note = (
        f"completions taken to be {sum(lengths) / len(lengths):.0f} tokens long on average, at most {config.max_tokens}"
    )
    notes = [note if context.completion_tokens else f"{note}; --completion-tokens states a mean"]
    if context.prompt_tokens is not None:
        return synthetic_examples(config.batch, context.prompt_tokens, lengths), notes
    records = sample_evenly(read_stage_records(Prompt, config.prompts, config.skip_bad))
    tokenizer = load_plan_tokenizer(config.policy)
    max_prompt_tokens = _context_length(policy_config) - config.max_tokens
    fitting_prompts = [
        tokens for record in records if len(tokens := tokenizer.encode_prompt(record)) <= max_prompt_tokens
    ]
    if not fitting_prompts:
        raise InputError(
            f"none of the prompts leaves room for --max-tokens {config.max_tokens} in a context of "
            f"{_context_length(policy_config)} tokens"
        )
    return [
        TokenizedExample([row, *fitting_prompts[row % len(fitting_prompts)][1:]], [0] * length)
        for row, length in enumerate(lengths)
    ], notes


def _tokenizers_match(policy: str, reward: str) -> bool:
    """Return whether both tokenizers match; a missing one counts as matching."""
    try:
        policy_tokenizer, reward_tokenizer = (
            PromptTokenizer(load_plan_tokenizer(policy).hf_tokenizer),
            load_plan_tokenizer(reward),
        )
    except InputError:
        return True
    return policy_tokenizer.is_compatible(reward_tokenizer)


@dataclass(frozen=True, slots=True)
class _FrozenModels:
    """The models of PPO that only score."""

    reference: TracedModel
    rewards: list[TracedModel]
    unshared: list[TracedModel]  # those with weights of their own, beside the reference that LoRA does without


def _ppo_models(config: PPOConfig) -> tuple[TracedModel, TracedModel, _FrozenModels]:
    """Return policy, value model and frozen models."""
    sources = [source for source in config.reward if not split_function_source(source)]
    value_source = next((source for source in sources if _tokenizers_match(config.policy, source)), None)
    if config.value_init == "policy":
        value_source = None
    policy = _traced_model(config, _load_config(config.policy), _forward_policy)
    value_config = load_model_config(value_source) if value_source else _load_config(config.policy, reward=True)
    value = _traced_model(config, value_config, forward_values, scalar=True)
    rewards = {
        source: TracedModel(load_model_config(source), forward_scores, scalar=True, memory=config.memory)
        for source in sources
    }
    reference = TracedModel(load_model_config(config.reference or config.policy), _forward_policy, memory=config.memory)
    unshared = [model for source, model in rewards.items() if not (config.lora and source == value_source)]
    unshared += [reference] if config.lora and config.reference else []
    return policy, value, _FrozenModels(reference, list(rewards.values()), unshared)


def _plan_ppo(config: PPOConfig, context: PlanContext) -> Plan:
    policy_config = _load_config(config.policy)
    policy, value, frozen = _ppo_models(config)
    batch, notes = _synthetic_episodes(config, policy_config, context)
    notes.insert(0, f"the policy: {policy.path(context.device)}")
    fixed = ppo_fixed_parts(policy, value, frozen.unshared, context)
    phases, decode_rows, row_tokens = _rollout_phases(
        config,
        policy,
        [*((reward, "score") for reward in frozen.rewards), (frozen.reference, "reference"), (value, "values")],
        batch,
        fixed,
        context,
    )
    num_sampled = -(-len(batch) // context.ranks)
    if decode_rows < num_sampled:
        notes.append(f"{decode_rows} of {num_sampled} episodes are sampled at once")
    scoring = [phase for phase in phases if phase.name == "score"]
    if len(scoring) > 1:
        phases = [merge_phases("score", scoring), *(phase for phase in phases if phase.name != "score")]
    minibatches = [batch[start : start + config.minibatch] for start in range(0, len(batch), config.minibatch)]
    pass_phases, policy_memory = _training_phases(policy, minibatches, context, ("policy update", ""))
    phases.append(merge_phases("policy update", pass_phases).scale(config.epochs))
    pass_phases, value_memory = _training_phases(value, minibatches, context, ("value update", ""))
    phases.append(merge_phases("value update", pass_phases).scale(config.epochs))
    ptx_memory = None
    if config.pretraining:
        window = _window_length(policy_config)
        pass_phases, ptx_memory = _training_phases(
            _traced_model(config, policy_config, forward_logp),
            [synthetic_examples(config.ptx_rows_per_step, 1, [window])],
            context,
            accumulate=True,
        )
        phases.append(merge_phases("pretraining text", pass_phases).scale(config.optimizer_steps_per_update))
        share = phases[-1].flops / sum(phase.flops for phase in phases)
        notes.append(
            f"pretraining text is {share:.0%} of all FLOPs ({config.ptx_ratio:g} rows of {window} tokens an episode)"
        )
    ema_parameters = policy.shape.trainable_parameters if config.ema else 0
    phases += [
        phase.scale(config.optimizer_steps_per_update)
        for phase in optimizer_phases([policy, value], context, ema_parameters)
    ]
    rank_lengths = [
        len(minibatches[0][row]) for row in context.busiest_rank_rows([len(example) for example in minibatches[0]])
    ]
    accumulate = ptx_memory is not None or len(list(microbatches(rank_lengths, context.budget))) > 1
    memory = (policy_memory, value_memory, ptx_memory)
    peaks = ppo_peaks(policy, value, frozen.unshared, memory, accumulate, decode_rows, row_tokens, context)
    step = f"an update on {config.batch} episodes"
    return Plan(
        stage="ppo",
        step=step,
        steps=config.updates,
        phases=phases,
        memory_peaks=peaks,
        notes=notes,
        ranks=context.ranks,
    )


def _rollout_phases(
    config: PPOConfig,
    policy: TracedModel,
    scored_by: Sequence[tuple[TracedModel, str]],
    batch: Sequence[TokenizedExample],
    fixed: Mapping[str, float],
    context: PlanContext,
) -> tuple[list[Phase], int, int]:
    """Return the sampling and scoring phases of one rank, the rows decoded at once, and their token slots."""
    rank_episodes = [
        batch[row]
        for row in context.busiest_rank_rows([len(example.prompt_ids) + config.max_tokens for example in batch])
    ]
    prompts, completions = [len(e.prompt_ids) for e in rank_episodes], [len(e.completion_ids) for e in rank_episodes]
    element_bytes = BF16_BYTES if "bf16" in config.memory else FLOAT_BYTES
    row_tokens = max(prompts) + config.max_tokens - 1
    decode_rows = count_decode_rows(policy, fixed, row_tokens, len(rank_episodes), context)
    phases = sampling_phases(policy.shape, prompts, completions, decode_rows, element_bytes)
    if context.shards(policy):
        phases = [
            Phase(
                GATHER_PHASE,
                0,
                0,
                0,
                bytes_sent=ring_bytes(
                    FLOAT_BYTES * policy.gather_sizes[0] + policy.gather_bytes * sum(policy.gather_sizes[1:]),
                    context.ranks,
                ),
                calls=len(policy.gather_sizes),
            ),
            *phases,
        ]
    rank_episodes = [batch[row] for row in context.busiest_rank_rows([len(example) for example in batch])]
    sequences, microbatch_count = sequence_shapes(rank_episodes), len(split_microbatches(rank_episodes, context.budget))
    for model, name in scored_by:
        logits = 0 if model.scalar else count_predicted_tokens(rank_episodes)
        ranks = context.ranks if context.shards(model) else 1
        read_sequences = (
            [text._replace(output_tokens=1) for text in sequences] if model.forward_fn is forward_scores else sequences
        )
        phases += forward_backward_phases(
            model, read_sequences, logits, microbatch_count=microbatch_count, ranks=ranks, phase_names=(name, "")
        )[:1]
    return phases, decode_rows, row_tokens
