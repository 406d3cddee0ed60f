"""Stage 1: supervised fine-tuning on labelers' demonstrations (section 3.5, appendix C.1).

    instructgpt sft --base gpt2 --data demonstrations.jsonl --out runs/sft

With --pretraining and --mix it makes the starting point of PPO instead (appendix C.3: 2 epochs, 10 % pretraining text).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from instructgpt import functional
from instructgpt.config import StageConfig
from instructgpt.data.packing import Example, rows_of_step, steps_an_epoch
from instructgpt.data.pretraining_text import Corpus, documents, read_corpus
from instructgpt.data.splits import held_out
from instructgpt.data.tokenization import Renderer, demonstration_examples
from instructgpt.distributed.launch import PATIENCE, launch
from instructgpt.errors import BadInput
from instructgpt.models.lora import trained_part, with_adapters
from instructgpt.models.policy import context_length, dropouts, load_policy, parameters, pretraining_window, save_policy
from instructgpt.models.precision import need_less
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.models.sharding import shard, whole
from instructgpt.records import Demonstration, Prompt, Skipped, read_all
from instructgpt.run.directory import Run
from instructgpt.run.lineage import by_name
from instructgpt.sampling.completions import generate, read_by
from instructgpt.train.optim import Best, adam, descend, device_of, language_loss, load_state, state_of

VALIDATION_PROMPTS = 128
"""Validation prompts that are answered and scored after each epoch when a reward model chooses the checkpoint."""


class SFTConfig(StageConfig):
    """Fine-tuning on demonstrations. Defaults are the paper's for 1.3B and 6B."""

    stage: ClassVar[str] = "sft"

    base: str = Field(description="the model to fine-tune: a directory or a hub name")
    data: tuple[Path, ...] = Field(description="demonstrations")
    validation: tuple[Path, ...] = Field((), description="demonstrations to validate on; without it a tenth of the prompts is held out")
    pretraining: tuple[Path, ...] = Field((), description="pretraining text to mix in")
    mix: float = Field(0.1, ge=0, lt=1, description="share of pretraining text, with --pretraining (appendix C.3)")
    reward: Path | None = Field(
        None, description="a reward model that chooses the checkpoint (appendix C.1); without it validation loss does"
    )
    epochs: int = Field(16, ge=1, description="passes over the demonstrations")
    keep: Literal["best", "last"] = Field("best", description="the epoch that is saved: the one that validates best, or the last")
    batch: int = Field(32, ge=1, description="demonstrations in one optimizer step")
    lr: float = Field(9.65e-6, gt=0, description="peak learning rate; cosine to a tenth, no warm-up")
    dropout: float = Field(0.2, ge=0, lt=1, description="residual dropout, where the family has it")
    max_tokens: int = Field(128, ge=1, description="longest completion sampled for the reward model's choice")
    skip_bad: bool = Field(False, description="leave bad lines out and count them")
    processes: int = Field(1, ge=1, description="ranks on this machine that divide models and batches; torchrun starts its own")
    patience: float = Field(PATIENCE, gt=0, description="seconds after which a rank that does not answer is taken for dead")

    def inert(self) -> Iterator[str]:
        """Options about pretraining text or sampling do nothing without what they are about."""
        for name, needs in (("mix", "pretraining"), ("max_tokens", "reward")):
            if name in self.model_fields_set and not getattr(self, needs):
                yield f"--{name.replace('_', '-')} has no effect without --{needs}"
        if self.pretraining and self.mix == 0:
            yield "--pretraining has no effect with --mix 0"


def main(config: SFTConfig) -> Path:
    """Fine-tune, in as many processes as were asked for. Returns the directory."""
    launch(train, config, config.processes, config.patience)
    return config.out


def train(config: SFTConfig) -> None:
    """One rank's part of the stage, start to end."""
    files = by_name(data=config.data, validation=config.validation, pretraining=config.pretraining)
    run = Run.start(config, {"base": config.base} | files | ({"reward": config.reward} if config.reward else {}))
    if run.finished:
        return
    device = device_of(run)
    model, render = load_policy(config.base, device, config.dropout)
    if config.dropout and "dropout" in config.model_fields_set and not any(dropouts(model.config, config.dropout).values()):
        raise BadInput(f"sft: --dropout has no effect, the family '{model.config.model_type}' has no residual dropout")
    training, validation, prompts = load_data(config, render, context_length(model), run)
    text = pretraining_text(config, render, pretraining_window(model), len(training))
    reward = load_reward_model(config.reward, device) if config.reward else None
    need_less(model, config.memory)
    model = with_adapters(model, config.lora, config.seed)
    shard(model, *([reward.model] if reward else []), memory=config.memory)
    trained, optimizer = trained_part(model), adam(model, memory=config.memory)

    an_epoch = steps_an_epoch(len(training), config.batch)
    steps = an_epoch * config.epochs
    state = run.restore()
    if state:
        load_state(state, {"model": trained}, {"adam": optimizer})
    best = Best(trained, config.keep, state and state["best"])
    for step in range(state["step"] if state else 0, steps):
        rows = rows_of_step(step, len(training), config.batch, config.seed)
        model.train()
        loss = language_loss(model, [training[row] for row in rows], weight=1 - config.mix if text else 1.0, seed=step)
        metrics = {"loss/train": loss, "epoch": (step + 1) / an_epoch}
        if text is not None:
            count = pretraining_rows(config)
            metrics["loss/pretraining"] = language_loss(model, text.examples(step * count, count), weight=config.mix, seed=step + 1)
        metrics["lr"] = config.lr * functional.cosine_decay(step, steps)
        metrics["gradient_norm"] = descend(optimizer, metrics["lr"])
        model.eval()
        if (step + 1) % an_epoch == 0:
            metrics |= validate(model, validation, prompts, reward, render, config)
            best.judge(metrics.get("validation/score", -metrics["loss/validation"]), (step + 1) // an_epoch)
        run.log(step + 1, steps, metrics, show=("epoch", "loss/train", "loss/validation", "validation/score"))
        run.checkpoint(step + 1, lambda: state_of({"model": trained}, {"adam": optimizer}, best=best.state()))
    best.put_back()
    judged = "the last" if config.keep == "last" else f"chosen by {'reward-model score' if reward else 'validation loss'}"
    run.say(f"keeps epoch {best.place} of {config.epochs}, {judged}")
    sizes = {"parameters": parameters(model), "trained": parameters(trained)}
    chosen = whole(model)
    run.finish(
        lambda folder: save_policy(chosen, render, folder), tokens=config.epochs * sum(map(len, training)), epoch=best.place, **sizes
    )


def load_data(config: SFTConfig, render: Renderer, context: int, run: Run) -> tuple[list[Example], list[Example], list[Prompt]]:
    """Training examples, validation examples, and the prompts of the latter for sampling; says what was left out."""
    skipped = Skipped(config.skip_bad)
    records = read_all(Demonstration, config.data, skipped)
    if config.validation:
        fresh = read_all(Demonstration, config.validation, skipped)
    else:
        fresh = [record for record in records if held_out(record.text)]
        records = [record for record in records if not held_out(record.text)]
    if not fresh or not records:
        raise BadInput(f"{len(records)} demonstrations to train on and {len(fresh)} to validate on; give more, or --validation")
    training, long = demonstration_examples(records, render, context)
    validation, long_validation = demonstration_examples(fresh, render, context)
    run.facts["left_out"] = {"longer than the context": long + long_validation, "bad lines": len(skipped.reasons)}
    run.say(f"{len(training)} demonstrations, {len(validation)} for validation; left out: {run.facts['left_out']}")
    room = context - config.max_tokens
    prompts = [Prompt.model_validate({"prompt": r.prompt, "messages": r.messages}) for r in fresh if len(render.prompt(r)) <= room]
    if config.reward and not prompts:
        raise BadInput(f"no validation prompt leaves room for --max-tokens {config.max_tokens} in a context of {context} tokens; lower it")
    return training, validation, prompts[:VALIDATION_PROMPTS]


def pretraining_rows(config: SFTConfig) -> int:
    """Rows of pretraining text in one step, so that they are `mix` of all its rows."""
    return max(1, round(config.batch * config.mix / (1 - config.mix)))


def pretraining_text(config: SFTConfig, render: Renderer, window: int, demonstrations: int) -> Corpus | None:
    """As many windows of pretraining text as the run needs, or None."""
    if not config.pretraining:
        return None
    steps = steps_an_epoch(demonstrations, config.batch) * config.epochs
    return read_corpus(documents(config.pretraining), render, window, config.seed, steps * pretraining_rows(config))


def validate(
    model: Any, validation: Sequence[Example], prompts: Sequence[Prompt], reward: ScalarModel | None, render: Renderer, config: SFTConfig
) -> dict[str, float]:
    """Validation loss, and the mean reward-model score of sampled completions when there is a reward model."""
    measured = {"loss/validation": language_loss(model, validation, backward=False)}
    if reward is not None:
        answers = generate(model, render, prompts, max_tokens=config.max_tokens, seed=config.seed)
        measured["validation/score"] = float(reward.score(read_by(reward.render, render, answers)).mean())
    return measured
