"""Options of the training stages. They are read before torch is imported, so this module imports neither.

Defaults are the paper's; what it leaves open is in docs/explanation/choices.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from instructgpt.config import CUDA_GRAPHS_HELP, RANK_TIMEOUT_S, CommandConfig, StageConfig

WARMUP_UPDATES = 10
ScoreNormalization = Literal["none", "scale", "standardize"]
GroupAggregation = Literal["mean", "max-min"]
"""What running moments do to scores: nothing, divide by the standard deviation, or subtract the mean first."""


class OptimizerConfig(StageConfig):
    """Stages that train with AdamW or Muon."""

    lr: float
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for matrices of layers, AdamW for the rest"
    )
    muon_lr: float = Field(0.02, gt=0, description="peak learning rate of Muon's matrices")

    def ineffective_options(self) -> Iterator[str]:
        if "muon_lr" in self.model_fields_set and self.optimizer != "muon":
            yield "--muon-lr has no effect without --optimizer muon"
        if self.optimizer == "muon" and self.lora:
            yield "--optimizer muon does not train --lora adapters; use adamw"


class PretrainConfig(OptimizerConfig):
    """Pretraining from scratch."""

    stage: ClassVar[str] = "pretrain"
    length_option: ClassVar[str] = "tokens"
    excluded_fields: ClassVar[frozenset[str]] = frozenset({"lora"})

    corpus: tuple[Path, ...] = Field(description="text: JSON lines with 'text', or plain .txt (optionally .gz)")
    tokenizer: Path | None = Field(None, description="an existing tokenizer, instead of training one on the corpus")
    vocabulary: int = Field(1024, ge=257, description="size of the byte-level BPE vocabulary to train")
    width: int = Field(128, ge=8, description="model width")
    layers: int = Field(4, ge=1, description="transformer layers")
    heads: int = Field(4, ge=1, description="attention heads")
    context: int = Field(128, ge=8, description="context length in tokens: prompt and completion")
    copy_init: bool = Field(True, description="attention starts by copying: W_O is the transpose of W_V")
    window: int = Field(128, ge=8, description="tokens per training row")
    tokens: int = Field(3_000_000, ge=1, description="training tokens in the whole run")
    batch: int = Field(16, ge=1, description="rows per optimizer step")
    lr: float = Field(3e-3, gt=0, description="peak learning rate")
    warmup: float = Field(0.05, ge=0, le=1, description="learning-rate warm-up, as a share of all steps")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of matrices")
    keep: Literal["best", "last"] = Field("last", description="saved step: the last, or the best on validation data")
    skip_bad: bool = Field(False, description="skip and count bad lines")
    processes: int = Field(1, ge=1, description="ranks to start on this machine; torchrun starts its own")
    patience: float = Field(RANK_TIMEOUT_S, gt=0, description="seconds without an answer before a rank counts as dead")

    def ineffective_options(self) -> Iterator[str]:
        if self.tokenizer is not None and "vocabulary" in self.model_fields_set:
            yield "--vocabulary has no effect with --tokenizer; drop one of them"
        if self.window > self.context:
            yield f"--window {self.window} is longer than --context {self.context}"
        if self.width % (2 * self.heads):
            yield f"--width {self.width} is not a multiple of twice --heads {self.heads}"
        yield from super().ineffective_options()

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.batch * self.window))


def _ineffective_saving(config: SFTConfig | PPOConfig, total: int, name: str) -> Iterator[str]:
    """Yield what has no effect among --save-every and --save-limit in a run of `total` units."""
    if config.save_limit and not config.save_every:
        yield "--save-limit has no effect without --save-every"
    if config.save_every > total > 0:
        yield f"--save-every {config.save_every} has no effect: it is more than {name} {total}"


class SFTConfig(OptimizerConfig):
    """Supervised fine-tuning. Defaults are the paper's for 1.3B and 6B."""

    stage: ClassVar[str] = "sft"
    length_option: ClassVar[str] = "epochs"

    base: str = Field(description="model to fine-tune: a directory or a hub name")
    data: tuple[Path, ...] = Field(description="demonstrations")
    validation: tuple[Path, ...] = Field((), description="validation demonstrations; default: a tenth of the prompts")
    pretraining: tuple[Path, ...] = Field((), description="pretraining text to mix in")
    mix: float = Field(0.1, ge=0, lt=1, description="share of pretraining text, with --pretraining (appendix C.3)")
    reward: Path | None = Field(None, description="reward model that selects the epoch (C.1); default: validation loss")
    epochs: int = Field(16, ge=1, description="passes over the demonstrations")
    keep: Literal["best", "last"] = Field("best", description="saved epoch: the best on validation data, or the last")
    save_every: int = Field(0, ge=0, description="epochs between models saved while it trains; 0: none")
    save_limit: int = Field(0, ge=0, description="models of --save-every to keep, the latest ones; 0: all")
    batch: int = Field(32, ge=1, description="demonstrations per optimizer step")
    lr: float = Field(9.65e-6, gt=0, description="peak learning rate; cosine to a tenth, no warm-up")
    learn: Literal["all", "last"] = Field(
        "all", description="assistant turns of a conversation to learn: all, or the last"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="residual dropout, where the family has it")
    max_tokens: int = Field(128, ge=1, description="maximum length of completions sampled for --reward")
    cuda_graphs: bool = Field(True, description=CUDA_GRAPHS_HELP)
    skip_bad: bool = Field(False, description="skip and count bad lines")
    processes: int = Field(1, ge=1, description="ranks to start on this machine; torchrun starts its own")
    patience: float = Field(RANK_TIMEOUT_S, gt=0, description="seconds without an answer before a rank counts as dead")

    def ineffective_options(self) -> Iterator[str]:
        for name, required in (("mix", "pretraining"), ("max_tokens", "reward"), ("cuda_graphs", "reward")):
            if name in self.model_fields_set and not getattr(self, required):
                yield f"--{name.replace('_', '-')} has no effect without --{required}"
        if self.pretraining and self.mix == 0:
            yield "--pretraining has no effect with --mix 0"
        yield from _ineffective_saving(self, self.epochs, "--epochs")
        yield from super().ineffective_options()


class RewardConfig(OptimizerConfig):
    """Reward-model training. Defaults are the paper's."""

    stage: ClassVar[str] = "reward"
    length_option: ClassVar[str] = "epochs"

    base: str = Field(description="initial trunk: an SFT model (any causal model), or a reward model with its head")
    data: tuple[Path, ...] = Field(description="rankings; those of held-out labelers only validate")
    validation: tuple[Path, ...] = Field((), description="validation rankings; default: a tenth of the prompts")
    demonstrations: tuple[Path, ...] = Field(
        (), description="demonstrations whose average score becomes 0; default: the best-ranked completions"
    )
    max_prompts: int = Field(
        0, ge=0, description="ranked prompts to train on, a random part that larger numbers include; 0: all"
    )
    max_completions: int = Field(
        0, ge=0, description="completions of each ranking to train on, drawn at random; 2: a single comparison; 0: all"
    )
    epochs: int = Field(1, ge=1, description="passes over the rankings; more than one overfits (section 3.5)")
    batch: int = Field(64, ge=1, description="prompts per optimizer step")
    lr: float = Field(9e-6, gt=0, description="peak learning rate; cosine to a tenth")
    keep: Literal["best", "last"] = Field("last", description="saved step: the last, or the best on validation data")
    folds: int = Field(0, ge=0, description="cross-validate over this many groups of labelers (appendix E.2: 5)")
    groups: bool = Field(False, description="fit a head for each declared group of five training labelers or more, too")
    group_shrinkage: float | None = Field(
        None, gt=0, description="ridge penalty that holds groups' heads to the shared one; default: by cross-validation"
    )
    skip_bad: bool = Field(False, description="skip and count bad lines")
    processes: int = Field(1, ge=1, description="ranks to start on this machine; torchrun starts its own")
    patience: float = Field(RANK_TIMEOUT_S, gt=0, description="seconds without an answer before a rank counts as dead")

    def ineffective_options(self) -> Iterator[str]:
        if self.max_completions == 1:
            yield "--max-completions 1 leaves nothing to compare; use at least 2"
        if self.folds == 1:
            yield "--folds 1 leaves nothing to train on; use at least 2"
        if self.group_shrinkage is not None and not self.groups:
            yield "--group-shrinkage has no effect without --groups"
        yield from super().ineffective_options()


class DPOConfig(StageConfig):
    """DPO. The size of a batch is the reward model's; beta, learning rate and warm-up are those of DPO's authors."""

    stage: ClassVar[str] = "dpo"
    length_option: ClassVar[str] = "epochs"

    policy: str = Field(description="initial policy and frozen reference: an SFT model")
    data: tuple[Path, ...] = Field(description="rankings; those of held-out labelers only validate")
    validation: tuple[Path, ...] = Field((), description="validation rankings; default: a tenth of the prompts")
    beta: float = Field(0.1, gt=0, description="beta of DPO: how strongly the policy is held to its reference")
    loss: Literal["pairs", "plackett-luce"] = Field(
        "pairs", description="loss of a ranking: the mean over its decided pairs (equation 1), or Plackett-Luce"
    )
    epochs: int = Field(1, ge=1, description="passes over the rankings")
    batch: int = Field(64, ge=1, description="prompts per optimizer step")
    lr: float = Field(1e-6, gt=0, description="peak learning rate; cosine to a tenth")
    warmup: float = Field(0.1, ge=0, le=1, description="learning-rate warm-up, as a share of all steps")
    keep: Literal["best", "last"] = Field("last", description="saved step: the last, or the best on validation data")
    save_every: int = Field(0, ge=0, description="steps between policies saved while it trains; 0: none")
    save_limit: int = Field(0, ge=0, description="policies of --save-every to keep, the latest ones; 0: all")
    skip_bad: bool = Field(False, description="skip and count bad lines")
    processes: int = Field(1, ge=1, description="ranks to start on this machine; torchrun starts its own")
    patience: float = Field(RANK_TIMEOUT_S, gt=0, description="seconds without an answer before a rank counts as dead")

    def ineffective_options(self) -> Iterator[str]:
        if self.save_limit and not self.save_every:
            yield "--save-limit has no effect without --save-every"


class PPOConfig(StageConfig):
    """PPO and PPO-ptx. Defaults are the paper's; what it leaves open is in docs/explanation/choices.md."""

    stage: ClassVar[str] = "ppo"
    length_option: ClassVar[str] = "episodes"

    policy: str = Field(description="initial policy: an SFT model, best with --mix")
    reward: tuple[str, ...] = Field(
        min_length=1, description="reward models, and Python functions FILE.py:NAME (prompts, completions) -> scores"
    )
    reward_weights: tuple[float, ...] = Field((), description="weight of each --reward in the score; default: 1 each")
    group: tuple[str, ...] = Field(
        (), description="groups of labelers whose heads score (reward --groups); default: the head of all labelers"
    )
    group_aggregation: GroupAggregation = Field(
        "mean", description="with several --group: their mean score, or that of the group worst off in each batch"
    )
    demonstrations: tuple[Path, ...] = Field(
        (), description="demonstrations whose average score becomes 0, for reward models that record no offset"
    )
    reference: str | None = Field(None, description="frozen reference of the KL penalty; default: the initial policy")
    value_init: Literal["reward", "policy"] = Field(
        "reward", description="start of the value model: the reward model, or the policy with a head of zeros"
    )
    prompts: tuple[Path, ...] = Field(description="prompts")
    max_prompt_tokens: int = Field(1000, ge=1, description="longer prompts are left out and counted (appendix C)")
    validation: tuple[Path, ...] = Field((), description="held-out prompts to watch; they never train")
    validation_interval: int = Field(10, ge=1, description="PPO steps between measurements on --validation")
    pretraining: tuple[Path, ...] = Field((), description="pretraining text; turns PPO into PPO-ptx")
    episodes: int = Field(256_000, ge=1, description="completions sampled in the whole run")
    batch: int = Field(512, ge=1, description="episodes sampled per PPO step")
    minibatch: int = Field(64, ge=1, description="episodes per optimizer step")
    epochs: int = Field(1, ge=1, description="passes over a batch")
    lr: float = Field(5e-6, gt=0, description="learning rate of the policy, constant after the warm-up")
    value_lr: float = Field(9e-6, gt=0, description="learning rate of the value model")
    kl_coef: float = Field(0.02, ge=0, description="beta of equation 2, the KL penalty per token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalized advantage estimation; gamma is 1")
    clip: float = Field(0.2, gt=0, description="clip range of the ratio")
    value_clip: float = Field(0.2, ge=0, description="clip range of the value, in units of the score; 0: no clipping")
    max_tokens: int = Field(256, ge=1, description="maximum completion length")
    eos_penalty: float = Field(1.0, ge=0, description="subtracted from the score of a truncated completion")
    score_normalization: ScoreNormalization = Field(
        "none",
        description="divide scores by their standard deviation so far; standardize: subtract their mean first",
    )
    score_clip: float = Field(0.0, ge=0, description="limit of a score's absolute value, after normalization; 0: none")
    save_every: int = Field(0, ge=0, description="PPO steps between policies saved while it trains; 0: none")
    save_limit: int = Field(0, ge=0, description="policies of --save-every to keep, the latest ones; 0: all")
    adam_eps: float = Field(1e-5, gt=0, description="epsilon of Adam (Huang et al. 2023, detail 20)")
    ema: float = Field(0.992, ge=0, lt=1, description="decay of the averaged weights that are saved; 0: last weights")
    ptx_coef: float = Field(27.8, ge=0, description="gamma of equation 2, with --pretraining")
    ptx_reduction: Literal["token", "sequence"] = Field("token", description="ptx loss: mean over tokens or over rows")
    ptx_ratio: float = Field(8.0, gt=0, description="rows of pretraining text per episode")
    kl_alarm: float = Field(
        50.0, ge=0, description="KL in nats per completion above which the run warns; it stops at four times it; 0: off"
    )
    min_entropy: float = Field(
        0.02, ge=0, lt=1, description="share of the first entropy below which the run stops; 0: never"
    )
    parity_tolerance: float = Field(
        1e-3, ge=0, description="largest difference of logp between sampling and training, in nats; 0: not checked"
    )
    parity_rms_tolerance: float = Field(
        2e-2, ge=0, description="the same as a root mean square with --memory bf16, which only warns; 0: not checked"
    )
    cuda_graphs: bool = Field(True, description=CUDA_GRAPHS_HELP)
    skip_bad: bool = Field(False, description="skip and count bad lines")
    processes: int = Field(1, ge=1, description="ranks to start on this machine; torchrun starts its own")
    patience: float = Field(RANK_TIMEOUT_S, gt=0, description="seconds without an answer before a rank counts as dead")

    @field_validator("reward", mode="before")
    @classmethod
    def _list_sources(cls, value: Any) -> Any:
        sources = (value,) if isinstance(value, str | Path) else value
        return tuple(map(str, sources)) if isinstance(sources, list | tuple) else sources

    def ineffective_options(self) -> Iterator[str]:
        if self.reward_weights and len(self.reward_weights) != len(self.reward):
            yield f"{len(self.reward_weights)} --reward-weights for {len(self.reward)} --reward; give one for each"
        if len(set(self.reward)) < len(self.reward):
            yield "--reward names the same source twice; give it a larger weight with --reward-weights"
        if len(set(self.group)) < len(self.group):
            yield "--group names the same group twice"
        if "group_aggregation" in self.model_fields_set and len(self.group) < 2:
            yield "--group-aggregation has no effect with fewer than two --group"
        if "validation_interval" in self.model_fields_set and not self.validation:
            yield "--validation-interval has no effect without --validation"
        for name in ("ptx_coef", "ptx_reduction", "ptx_ratio"):
            if name in self.model_fields_set and not self.pretraining:
                yield f"--{name.replace('_', '-')} has no effect without --pretraining"
        if self.pretraining and self.ptx_coef == 0:
            yield "--pretraining has no effect with --ptx-coef 0"
        yield from _ineffective_saving(self, self.updates, "the number of PPO steps,")
        if self.batch % self.minibatch:
            yield f"--batch {self.batch} is not a multiple of --minibatch {self.minibatch}"
        if self.episodes % self.batch:
            nearest = self.updates * self.batch or self.batch
            yield f"--episodes {self.episodes} is not a multiple of --batch {self.batch}: {nearest} is"

    def extension_differences(self, before: int) -> Iterator[str]:
        """Yield what differs; the learning rate is constant after the warm-up."""
        earlier = self.model_copy(update={"episodes": before})
        if earlier.warmup != self.warmup:
            yield f"its warm-up had {earlier.warmup} PPO steps, that of one long run has {self.warmup}"
        if self.pretraining:
            yield "pretraining text comes in another order than in one long run, unless all of it was in use"

    @property
    def updates(self) -> int:
        """PPO steps in the whole run."""
        return self.episodes // self.batch

    @property
    def warmup(self) -> int:
        """PPO steps of learning-rate warm-up: ten, or a fifth of a short run."""
        return min(WARMUP_UPDATES, self.updates // 5)

    @property
    def optimizer_steps_per_update(self) -> int:
        return self.epochs * self.batch // self.minibatch

    @property
    def bf16(self) -> bool:
        return "bf16" in self.memory

    @property
    def ptx_rows_per_step(self) -> int:
        return max(1, round(self.ptx_ratio * self.minibatch))


class ExportConfig(CommandConfig):
    stage: ClassVar[str] = "export"

    checkpoint: Path = Field(
        description="a run directory, for its latest checkpoint, or a folder in its checkpoints directory"
    )
    out: Path = Field(description="model directory to write")
    base: str | None = Field(
        None, description="where the model that the run started from is now; default: where it was then"
    )
    latest: bool = Field(
        False,
        description="export the latest weights, not those that the run would save: PPO's average, the best epoch",
    )
    demonstrations: tuple[Path, ...] = Field(
        (), description="demonstrations whose average score becomes 0, of a reward model; default: those of the run"
    )


def split_function_source(source: str) -> tuple[Path, str] | None:
    """Return file and function of FILE.py:function; None for a reward model."""
    file, separator, function = source.rpartition(":")
    return (Path(file), function) if separator and file.endswith(".py") else None
