"""Stage 3: PPO against the reward model, and PPO-ptx (section 3.5, equation 2, appendix C.3 to C.4).

    instructgpt ppo --policy runs/start --reward runs/reward --prompts prompts.jsonl --out runs/ppo
    instructgpt ppo … --pretraining corpus.jsonl --ptx-coef 27.8 --out runs/ppo_ptx

An episode is a prompt and one completion; the environment is a bandit. The frozen copy of the starting policy is the
reference of the KL penalty. The value model is a separate network that starts from the reward model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from math import sqrt
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from instructgpt import functional
from instructgpt.config import StageConfig
from instructgpt.data.packing import Example, collate, microbatches, rows_of_stream, shuffled, token_budget
from instructgpt.data.pretraining_text import Corpus, documents, read_corpus
from instructgpt.distributed.comm import Ranks, collect, in_step, own_part, ranks_of, share
from instructgpt.distributed.launch import PATIENCE, launch
from instructgpt.errors import BadInput, RunFailed
from instructgpt.models.flops import shape_from
from instructgpt.models.lora import WithoutAdapters, has_adapters, trained_part, with_adapters
from instructgpt.models.policy import completion_numbers, context_length, load_policy, parameters, pretraining_window, save_policy
from instructgpt.models.precision import need_less
from instructgpt.models.reward_model import ScalarModel, adapted_value_model, load_reward_model, new_reward_model, new_value_model
from instructgpt.models.sharding import shard, whole
from instructgpt.models.stage_flops import pretraining_flops, update_flops
from instructgpt.records import Prompt, Skipped, read_all
from instructgpt.run.directory import Run
from instructgpt.run.lineage import by_name
from instructgpt.run.timing import PHASES
from instructgpt.train.optim import adam, descend, device_of, language_loss, load_state, state_of
from instructgpt.train.ppo_metrics import LARGEST, Alarms, sample_rows, show_samples, update_metrics
from instructgpt.train.rollout import PARITY, PARITY_BF16, Models, Rollout, check_parity, roll_out, values_of

ADAM_EPS = 1e-5
"""PyTorch's Adam takes larger early steps than the paper's; a larger epsilon mends it (Huang et al. 2023, detail 20)."""
WARMUP_UPDATES = 10
SAMPLES_KEPT = 128
"""Episodes of each update that samples.jsonl keeps."""
PARITY_EVERY = 50


class PPOConfig(StageConfig):
    """PPO and PPO-ptx. Defaults are the paper's; what it leaves open is in docs/choices.md."""

    stage: ClassVar[str] = "ppo"

    policy: str = Field(description="where the policy starts, and the frozen reference: an SFT model, best with pretraining text mixed in")
    reward: Path = Field(description="the reward model; the value model starts from it too")
    prompts: tuple[Path, ...] = Field(description="prompts")
    pretraining: tuple[Path, ...] = Field((), description="pretraining text; with it this is PPO-ptx")
    episodes: int = Field(256_000, ge=1, description="completions sampled in the whole run")
    batch: int = Field(512, ge=1, description="episodes sampled between updates")
    minibatch: int = Field(64, ge=1, description="episodes in one optimizer step")
    epochs: int = Field(1, ge=1, description="passes over a batch")
    lr: float = Field(5e-6, gt=0, description="learning rate of the policy, constant after the warm-up")
    value_lr: float = Field(9e-6, gt=0, description="learning rate of the value model")
    kl_coef: float = Field(0.02, ge=0, description="beta of equation 2, a penalty on every token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation; nothing is discounted")
    clip: float = Field(0.2, gt=0, description="clip range of the ratio and of the value")
    max_tokens: int = Field(256, ge=1, description="where a completion is cut off")
    eos_penalty: float = Field(1.0, ge=0, description="subtracted from the score of a completion that was cut off")
    ema: float = Field(0.992, ge=0, lt=1, description="decay of the averaged weights, which are what is saved; 0 saves the last ones")
    ptx_coef: float = Field(27.8, ge=0, description="gamma of equation 2, with --pretraining")
    ptx_reduction: Literal["token", "sequence"] = Field("token", description="mean loss a token, or summed over a row, mean over rows")
    ptx_ratio: float = Field(8.0, gt=0, description="rows of pretraining text for each episode")
    skip_bad: bool = Field(False, description="leave bad lines out and count them")
    processes: int = Field(1, ge=1, description="ranks on this machine that divide models and batches; torchrun starts its own")
    patience: float = Field(PATIENCE, gt=0, description="seconds after which a rank that does not answer is taken for dead")

    def inert(self) -> Iterator[str]:
        """Options of ptx do nothing without pretraining text, and text does nothing with a coefficient of 0."""
        for name in ("ptx_coef", "ptx_reduction", "ptx_ratio"):
            if name in self.model_fields_set and not self.pretraining:
                yield f"--{name.replace('_', '-')} has no effect without --pretraining"
        if self.pretraining and self.ptx_coef == 0:
            yield "--pretraining has no effect with --ptx-coef 0"
        if self.batch % self.minibatch:
            yield f"--batch {self.batch} is not a multiple of --minibatch {self.minibatch}"
        if self.episodes % self.batch:
            yield f"--episodes {self.episodes} is not a multiple of --batch {self.batch}: {self.updates * self.batch or self.batch} is"

    @property
    def updates(self) -> int:
        """Batches in the whole run."""
        return self.episodes // self.batch

    @property
    def warmup(self) -> int:
        """Updates over which the learning rates rise: ten, or a fifth of a short run."""
        return min(WARMUP_UPDATES, self.updates // 5)

    @property
    def steps_an_update(self) -> int:
        """Optimizer steps on one batch of episodes."""
        return self.epochs * self.batch // self.minibatch

    @property
    def bf16(self) -> bool:
        """Whether log-probabilities carry the rounding of bf16."""
        return "bf16" in self.memory

    @property
    def ptx_rows(self) -> int:
        """Rows of pretraining text in one optimizer step."""
        return max(1, round(self.ptx_ratio * self.minibatch))


def main(config: PPOConfig) -> Path:
    """Train the policy, in as many processes as were asked for. Returns the directory."""
    launch(train, config, config.processes, config.patience)
    return config.out


def train(config: PPOConfig) -> None:
    """One rank's part of the stage, start to end."""
    parents: dict[str, Path | str] = {"policy": config.policy, "reward": config.reward}
    run = Run.start(config, parents | by_name(prompts=config.prompts, pretraining=config.pretraining))
    if run.finished:
        return
    models = load_models(config, run)
    prompts, text = load_data(config, models, run)
    divide(models, config)
    networks = {"policy": models.policy, "value": models.value.model}
    optimizers = {name: adam(model, eps=ADAM_EPS, memory=config.memory) for name, model in networks.items()}
    trained = {name: trained_part(model) for name, model in networks.items()} | {"average": models.average}
    alarms = Alarms()
    state = run.restore()
    if state:
        load_state(state, trained, optimizers)
        alarms = Alarms(**state["alarms"])

    for number in range(state["step"] if state else 0, config.updates):
        asked = [prompts[row] for row in rows_of_stream(number * config.batch, config.batch, len(prompts), config.seed)]
        rollout, metrics = update(models, optimizers, text, asked, number, config)
        metrics["episode"] = float((number + 1) * config.batch)
        run.log(number + 1, config.updates, metrics, show=("objective/scores", "objective/kl", "policy/entropy_avg", "completion/length"))
        rows_shown = sample_rows(rollout, models.render, number + 1, config.kl_coef, SAMPLES_KEPT)
        run.samples(rows_shown)
        show_samples(run, rows_shown)
        alarms.check(metrics)
        run.checkpoint(number + 1, lambda: state_of(trained, optimizers, alarms=alarms.state()))
    if text is not None:
        seconds = {name: sums["seconds"] for name, sums in PHASES.summary().items()}
        run.say(f"pretraining text took {seconds.get('pretraining text', 0) / max(1e-9, sum(seconds.values())):.0%} of the time")
    sizes = {"parameters": parameters(models.policy), "trained": parameters(models.average)}
    averaged = with_average(models)
    run.finish(lambda folder: save_policy(averaged, models.render, folder), episodes=config.updates * config.batch, **sizes)


def update(
    models: Models,
    optimizers: Mapping[str, torch.optim.Optimizer],
    text: Corpus | None,
    asked: list[Prompt],
    number: int,
    config: PPOConfig,
) -> tuple[Rollout, dict[str, float]]:
    """One batch of episodes: sample them, assign credit, improve. Returns them, and what was seen on the way.

    Raises:
        RunFailed: a number cannot be right.
    """
    seed = config.seed * 1_000_003 + number
    rollout = roll_out(models, asked, max_tokens=config.max_tokens, eos_penalty=config.eos_penalty, seed=seed)  # 1. sample and score
    parity = {"val/parity": check_parity(models, rollout, config.bf16)} if number % PARITY_EVERY == 0 else {}
    rewards = functional.shaped_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, config.kl_coef)
    advantages, returns = functional.gae(rewards, rollout.values, rollout.mask, config.lam)  # 2. assign credit
    advantages[rollout.mask] = functional.standardised(advantages[rollout.mask])
    steps: list[dict[str, float]] = []
    factor = functional.linear_warmup(number, config.warmup)
    for rows in minibatches(config, seed):  # 3. improve
        optimizer_step = number * config.steps_an_update + len(steps)
        steps.append(improve(models, rollout, advantages, returns, rows, config.clip))
        check_step(steps, config.bf16)
        if text is not None:
            steps[-1]["loss/ptx_avg"] = pretraining_step(models, text, optimizer_step, config)
        steps[-1]["gradient_norm/policy"] = descend(optimizers["policy"], config.lr * factor)
        steps[-1]["gradient_norm/value"] = descend(optimizers["value"], config.value_lr * factor)
        with PHASES("optimizer"):
            move_average(models.average, trained_part(models.policy), config.ema)
    return rollout, update_metrics(rollout, returns, steps, config.kl_coef) | parity | {"lr": config.lr * factor}


def load_models(config: PPOConfig, run: Run) -> Models:
    """The four models. Dropout is off in all of them, so that sampling and training see the same policy.

    With adapters they are two: the reference is the policy without its adapters, the reward model the value model without.
    """
    device = device_of(run)
    policy, render = load_policy(config.policy, device)
    reward = load_reward_model(config.reward, device)
    for model in (policy, reward.model):
        need_less(model, config.memory)
    reward.model.requires_grad_(False)
    value, reward = value_and_reward(config, reward, run, shared=reward.render.same_tokens(render))
    if config.lora:
        policy = with_adapters(policy, config.lora, config.seed)
        reference: Any = WithoutAdapters(policy)
    else:
        reference = copy.deepcopy(policy).requires_grad_(False)
    return Models(policy, reference, value, reward, copy.deepcopy(trained_part(policy)).requires_grad_(False), render)


def value_and_reward(config: PPOConfig, reward: ScalarModel, run: Run, *, shared: bool) -> tuple[ScalarModel, ScalarModel]:
    """The value model, which starts from the reward model where policy and reward model share their tokens; and the reward model."""
    if shared:
        run.say("the value model starts from the reward model")
        if config.lora:
            return adapted_value_model(reward, config.lora, config.seed)
        value = new_value_model(reward)
        value.model.requires_grad_(True)
        return value, reward
    value = new_reward_model(config.policy, reward.model.device, config.seed)
    torch.nn.init.zeros_(value.model.score.weight)
    need_less(value.model, config.memory)
    value.model = with_adapters(value.model, config.lora, config.seed)
    run.say("the reward model has another tokenizer and reads text; the value model starts from the policy, its head from 0")
    return value, reward


def divide(models: Models, config: PPOConfig) -> None:
    """Divide all weights among the ranks, once each. An average of adapters is made of them as they are divided."""
    everything = (models.policy, models.reference, models.value.model, models.reward.model)
    shard(*(model for model in everything if isinstance(model, torch.nn.Module)), memory=config.memory)
    if has_adapters(models.policy):
        models.average = copy.deepcopy(trained_part(models.policy)).requires_grad_(False)
    else:
        shard(models.average, memory=config.memory)


def load_data(config: PPOConfig, models: Models, run: Run) -> tuple[list[Prompt], Corpus | None]:
    """Prompts that leave room for a completion, and pretraining text; says what was left out.

    Raises:
        BadInput: no prompt fits.
    """
    skipped = Skipped(config.skip_bad)
    prompts = read_all(Prompt, config.prompts, skipped)
    context = min(context_length(models.policy), context_length(models.value.model))
    room, room_to_score = context - config.max_tokens, context_length(models.reward.model) - config.max_tokens
    fitting = [
        prompt
        for prompt in prompts
        if len(models.render.prompt(prompt)) <= room and len(models.reward.render.prompt(prompt)) <= room_to_score
    ]
    run.facts["left_out"] = {"prompts too long": len(prompts) - len(fitting), "bad lines": len(skipped.reasons)}
    if not fitting:
        raise BadInput(
            f"none of the {len(prompts)} prompts leaves room for --max-tokens {config.max_tokens} in a context of "
            f"{min(context, context_length(models.reward.model))} tokens"
        )
    run.say(f"{len(fitting)} prompts; left out: {run.facts['left_out']}; {config.updates} updates of {config.batch} episodes")
    if not config.pretraining:
        return fitting, None
    rows, window = config.steps_an_update * config.ptx_rows, pretraining_window(models.policy)
    shapes = [shape_from(model) for model in (models.policy, models.value.model, models.reward.model)]
    longest = [Example(models.render.prompt(prompt), [0] * config.max_tokens) for prompt in fitting[: config.batch]]
    others = sum(update_flops(shapes[0], shapes[1], shapes[2], longest, config.epochs).values()) * config.batch / len(longest)
    of_text = 1 / (1 + others / pretraining_flops(shapes[0], rows, window))
    run.say(f"pretraining text: {config.ptx_ratio:g} rows of {window} tokens an episode, at least {of_text:.0%} of all FLOPs")
    return fitting, read_corpus(documents(config.pretraining), models.render, window, config.seed, config.updates * rows)


def minibatches(config: PPOConfig, seed: int) -> Iterator[Tensor]:
    """Rows of the rollout for each optimizer step, shuffled anew in each epoch. Each is (minibatch,)."""
    for epoch in range(config.epochs):
        order = shuffled(config.batch, seed, epoch)
        for start in range(0, config.batch, config.minibatch):
            yield torch.tensor(order[start : start + config.minibatch])


def improve(models: Models, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Tensor, clip: float) -> dict[str, float]:
    """Accumulate the PPO gradients of one minibatch. Real tokens are picked out first; after that nothing needs a mask.

    Losses are means over the minibatch's real tokens, however it is split into microbatches. Returns what was seen.
    """
    device, ranks = models.policy.device, ranks_of(models.policy)
    total = int(rollout.mask[rows].sum())
    sums: dict[str, float] = {}
    mine = rows[share([len(rollout.examples[row]) for row in rows], ranks)]
    for group in in_step(microbatches([len(rollout.examples[row]) for row in mine], token_budget(device)), ranks):
        picked = mine[group]
        real = rollout.mask[picked]
        batch = collate([rollout.examples[row] for row in picked], device)
        old_logp, old_values = rollout.logp[picked][real].to(device), rollout.values[picked][real].to(device)
        with PHASES("policy update", len(batch.tokens)):
            logp, entropies = completion_numbers(models.policy, batch, functional.token_logp, entropy_seen)
            policy_losses = functional.clipped_policy_losses(logp, old_logp, advantages[picked][real].to(device), clip)
            (policy_losses.sum() / total).backward()  # type: ignore[no-untyped-call]
        with PHASES("value update", len(batch.tokens)):
            values = values_of(models.value, batch)
            value_losses = functional.clipped_value_losses(values, old_values, returns[picked][real].to(device), clip)
            (value_losses.sum() / total).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            log_ratio = logp - old_logp
            seen = {
                "loss/policy_avg": policy_losses,
                "loss/value_avg": value_losses,
                "policy/approxkl_avg": 0.5 * log_ratio**2,
                "policy/clipfrac_avg": ((log_ratio.exp() - 1).abs() > clip).float(),
                "policy/entropy_avg": entropies,
                "val/clipfrac_avg": ((values - old_values).abs() > clip).float(),
                "val/ratio": log_ratio.exp(),
                "val/ratio_var": (log_ratio.exp() - 1) ** 2,
            }
            for name, numbers in seen.items():
                sums[name] = sums.get(name, 0.0) + float(numbers.sum()) / total
            sums[LARGEST] = max(sums.get(LARGEST, 0.0), *log_ratio.abs().tolist(), 0.0)
    return over_ranks(sums, ranks)


def over_ranks(sums: dict[str, float], ranks: Ranks) -> dict[str, float]:
    """What all ranks have seen of a minibatch: sums of their shares, and the largest ratio."""
    shares = collect([ranks.own], [sums], ranks.total, ranks)
    return {name: (max if name == LARGEST else sum)(seen[name] for seen in shares) for name in sums}


@torch.no_grad()
def entropy_seen(logits: Tensor, _: Tensor) -> Tensor:
    """Entropy of each next-token distribution, to be seen and not trained on. (M, V) -> (M,)."""
    return functional.entropy(logits)


def check_step(steps: list[dict[str, float]], bf16: bool = False) -> None:
    """Stop before the optimizer moves when the numbers of a minibatch cannot be right.

    Raises:
        RunFailed: a loss is not finite, or the first ratio after sampling is not 1.
    """
    latest = steps[-1]
    for name in ("loss/policy_avg", "loss/value_avg"):
        if not abs(latest[name]) < float("inf"):
            raise RunFailed(f"{name} is {latest[name]}: a learning rate is likely too high, or the reward model's scores are not finite")
    off, allowed = (sqrt(2 * latest["policy/approxkl_avg"]), PARITY_BF16) if bf16 else (latest[LARGEST], PARITY)
    if len(steps) == 1 and off > allowed:
        raise RunFailed(
            f"before any step the ratio is off 1 by exp({off:.2g}), more than rounding: old log-probabilities "
            "are not this policy's; likely causes are dropout left on or weights changed between sampling and training"
        )


def pretraining_step(models: Models, text: Corpus, step: int, config: PPOConfig) -> float:
    """The second half of equation 2, into the same gradients before the one step (appendix C.4). Returns mean loss a token."""
    rows = text.examples(step * config.ptx_rows, config.ptx_rows)
    tokens_a_row = text.tokens.shape[1] - 1
    weight = config.ptx_coef * (1 if config.ptx_reduction == "token" else tokens_a_row)
    with PHASES("pretraining text", own_part(len(rows) * tokens_a_row, ranks_of(models.policy))):
        return language_loss(models.policy, rows, weight=weight)


@torch.no_grad()
def move_average(slow: Any, fast: Any, decay: float) -> None:
    """New slow weights: decay slow + (1 - decay) fast, parameter by parameter (appendix C.4)."""
    for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


def with_average(models: Models) -> Any:
    """The policy with its averaged weights, which it has from then on, whole on rank 0. All ranks call it."""
    trained_part(models.policy).load_state_dict(models.average.state_dict())
    return whole(models.policy)
