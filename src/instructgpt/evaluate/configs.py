"""Options of `evaluate` and `judge`, and of the sections `candidates` and `exam` of a pipeline's file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from instructgpt.config import TRAINING_ONLY_FIELDS, CommandConfig, SamplingOptions, StageConfig, did_you_mean

EVAL_TASK_NAMES = (
    "winogender",
    "crows_pairs",
    "bbq",
    "real_toxicity",
    "real_toxicity_sampled",
    "truthfulqa",
    "hellaswag",
    "wsc",
    "rte",
    "sst2",
    "quac",
    "squad",
    "drop",
    "wmt15",
    "cnn_dm",
    "tldr",
    "arc_easy",
    "piqa",
    "winogrande",
    "gsm8k",
    "refusal",
)
"""Names of `evaluate.tasks.EVAL_TASKS`, for help without loading the tasks."""
DEFAULT_JUDGE_MAX_TOKENS = 400
"""Budget of an answer: a few sentences and a verdict. A reasoning model needs thousands, for its reasoning counts."""
WHOLE_FILE_EVALUATIONS = ("preference", "reward_model")
"""Evaluations of rankings or completions; all others are tasks, which ask a list of questions."""
_ENDPOINT_OPTIONS = ("judge_model", "judge_key", "judge_temperature")
_PREFERENCE_OPTIONS = (
    "judge",
    "judge_reads",
    "judge_max_tokens",
    *_ENDPOINT_OPTIONS,
    "baseline",
    *SamplingOptions.model_fields,
)


def _task_names() -> Iterable[str]:
    """Return the names of the tasks, also of those that a program registered; help and typos load none of them."""
    tasks = sys.modules.get("instructgpt.evaluate.tasks")
    return EVAL_TASK_NAMES if tasks is None else dict.fromkeys((*EVAL_TASK_NAMES, *tasks.EVAL_TASKS))


class EvaluateConfig(SamplingOptions):
    """Evaluations, the models they run on, and where the data is."""

    stage: ClassVar[str] = "evaluate"

    names: tuple[str, ...] = Field(
        (), description=f"evaluations: {', '.join((*EVAL_TASK_NAMES, *WHOLE_FILE_EVALUATIONS))}; or all tasks with data"
    )
    model: tuple[str, ...] = Field((), description="models, NAME=MODEL or MODEL: a directory or a hub name")
    data: tuple[str, ...] = Field(
        (),
        description="a folder with the evaluations' files under their usual names, the file of a single evaluation, "
        "or NAME=SOURCE: a file, a saved data set or one of the hub",
    )
    harness: tuple[str, ...] = Field(
        (),
        description="tasks of lm-evaluation-harness, in addition; needs instructgpt[harness]",
        json_schema_extra={"metavar": "TASK"},
    )
    include_path: Path | None = Field(None, description="a folder with YAML files of more tasks for --harness")
    completions: tuple[Path, ...] = Field(
        (),
        description="existing completions with references instead of models and data: FILE, or NAME=FILE for one "
        "evaluation",
    )
    out: Path | None = Field(
        None,
        description="the results file, to which rows are added; replies are cached beside it; default: results.json in "
        "the run whose stages the models are, else here",
    )
    skip_bad: bool = Field(False, description="leave out and count bad rows of data and completions")
    limit: int | None = Field(
        None, ge=0, description="questions per evaluation, drawn by the seed; 0: all; default: its own"
    )
    shots: int | None = Field(None, ge=0, description="few-shot examples of tasks that have some; default: the paper's")
    scorer: str | None = Field(
        None,
        description="toxicity scorer: a directory of 'judge toxicity', detoxify, perspective:URL or moderation:URL",
        json_schema_extra={"metavar": "DIR|NAME|KIND:URL"},
    )
    detector: str | None = Field(
        None,
        description="classifies answers of the evaluation refusal: a directory of 'judge refusal', or strings, a "
        "string matcher",
        json_schema_extra={"metavar": "DIR|strings"},
    )
    judges: Path | None = Field(
        None,
        description="folder with the judges of 'judge truth' and 'judge info'; truthfulqa then also generates answers",
    )
    judge: str | None = Field(
        None,
        description="compares completions: a reward model, a language model, an endpoint's URL, or 'simulated'; "
        "default: the people who ranked",
        json_schema_extra={"metavar": "MODEL|URL|simulated"},
    )
    judge_model: str | None = Field(
        None, description="the endpoint's model that judges", json_schema_extra={"metavar": "NAME"}
    )
    judge_key: str | None = Field(
        None,
        description="the environment variable with the endpoint's key",
        json_schema_extra={"metavar": "VARIABLE"},
    )
    judge_max_tokens: int = Field(
        DEFAULT_JUDGE_MAX_TOKENS,
        ge=1,
        description="maximum length of a language model's verdict; a reasoning model's reasoning counts, 4000 and more",
    )
    judge_temperature: float | None = Field(
        None, ge=0, description="temperature sent to the judge's endpoint; default: none, its own"
    )
    judge_reads: Literal["text", "logp"] | None = Field(
        None, description="read a language model's verdict from its text, or from the log-probabilities of A, B and C"
    )
    baseline: str | None = Field(
        None,
        description="the model others are compared with; default: sft if present",
        json_schema_extra={"metavar": "NAME"},
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of questions, examples and samples")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto uses a GPU if there is one")
    processes: int = Field(1, ge=1, description="processes that share the work (CPU)")

    def ineffective_options(self) -> Iterator[str]:
        """Yield what is missing or has no effect. Tasks need models or completions; rankings by people need neither."""
        available = ("all", *_task_names(), *WHOLE_FILE_EVALUATIONS)
        for name in self.names:
            if name not in available:
                yield f"no evaluation '{name}'" + (
                    did_you_mean(name, available) or f"; available: {', '.join(available)}"
                )
        yield from super().ineffective_options()
        yield from self._ineffective_preference_options()
        if self.include_path and not self.harness:
            yield "--include-path has no effect without --harness"
        if not self.names and not self.harness:
            yield "name an evaluation, or give --harness"
        elif self.names and not self.harness and all(name in WHOLE_FILE_EVALUATIONS for name in self.names):
            if not self.completions and not self.data:
                yield "give --data (rankings, or with --model prompts), or --completions"
        elif self.completions:
            for name in ("harness", "model", "data", "limit", "shots", "seed", "processes"):
                if name in self.model_fields_set:
                    yield f"--{name} has no effect with --completions"
        elif not self.model or (not self.data and self.names):
            yield "give --model and --data, or --completions"
        elif not self.names:
            for name in ("processes", "skip_bad"):
                if name in self.model_fields_set:
                    yield f"--{name.replace('_', '-')} has no effect on --harness alone"

    def _ineffective_preference_options(self) -> Iterator[str]:
        for name in _PREFERENCE_OPTIONS:
            flag = f"--{name.replace('_', '-')}"
            if name not in self.model_fields_set:
                continue
            if "preference" not in self.names:
                yield f"{flag} has no effect without the evaluation preference"
            elif name in SamplingOptions.model_fields and not self.model:
                yield f"{flag} has no effect without --model"
            elif name in _ENDPOINT_OPTIONS and "://" not in (self.judge or ""):
                yield f"{flag} has no effect unless --judge is the address of an endpoint"
            elif name == "judge_max_tokens" and (self.judge in (None, "simulated") or self.judge_reads == "logp"):
                yield f"{flag} has no effect unless --judge is a language model that writes its verdict"


class JudgeConfig(StageConfig):
    stage: ClassVar[str] = "judge"

    base: str = Field(description="the model to fine-tune: a directory or a hub name")
    data: tuple[Path, ...] = Field(
        description="judged answers: `prompt` (question, answer, True: or Helpful:) and `completion` (yes or no)"
    )
    epochs: int = Field(5, ge=1, description="training epochs; the one with the best validation loss is kept")
    batch: int = Field(32, ge=1, description="judged answers per optimizer step")
    lr: float = Field(1e-4, gt=0, description="peak learning rate; cosine to a tenth")
    questions: int | None = Field(None, ge=2, description="training questions, drawn by the seed; default: all")
    skip_bad: bool = Field(False, description="skip and count bad lines instead of stopping at the first")
    processes: int = Field(1, ge=1, description="processes that share each batch (CPU)")


class ToxicityConfig(StageConfig):
    stage: ClassVar[str] = "toxicity"
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS

    data: tuple[Path, ...] = Field(description="scored texts: `text`, `toxicity` (0 to 1)")
    l2: float = Field(2e-5, gt=0, description="strength of the L2 penalty")
    skip_bad: bool = Field(False, description="skip and count bad lines instead of stopping at the first")


class RefusalConfig(StageConfig):
    stage: ClassVar[str] = "refusal"
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS

    data: tuple[Path, ...] = Field(
        description="labeled answers: `prompt`, `completion`, `model`, `label` (full_compliance, partial_refusal or "
        "full_refusal)"
    )
    l2: float = Field(1e-4, gt=0, description="strength of the L2 penalty")
    skip_bad: bool = Field(False, description="skip and count bad lines instead of stopping at the first")


class CandidatesConfig(StageConfig):
    """Completions for labelers to rank. The newest policy writes what the shares leave."""

    stage: ClassVar[str] = "candidates"
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS

    policy: str = Field(description="the policy that writes most completions")
    policy_name: str = Field("policy", description="its name in the rankings")
    previous: str | None = Field(None, description="the policy of the round before it")
    previous_name: str = Field("previous", description="its name in the rankings")
    start: str | None = Field(None, description="the SFT model that PPO starts from")
    base: str = Field(description="the base model that writes the others, prompted")
    prompts: Path = Field(description="a file of prompts")
    least: int = Field(4, ge=2, description="smallest number of completions per prompt")
    base_share: float = Field(0.2, ge=0, le=1, description="share of completions from the prompted base model")
    previous_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="with --rounds, share of completions from the policy of the round before the newest",
    )
    start_share: float = Field(
        0.1, ge=0, le=1, description="with --rounds, share of completions from the SFT model that PPO starts from"
    )
    strays: bool = Field(True, description="add an answer to another prompt, so that the reward model learns relevance")
    max_tokens: int = Field(32, ge=1, description="maximum length of a completion")
    part: int = Field(0, ge=0, description="part of the prompts, from 0")
    parts: int = Field(1, ge=1, description="number of parts")

    def ineffective_options(self) -> Iterator[str]:
        shares = {"base_share": self.base_share}
        shares |= {} if self.previous is None else {"previous_share": self.previous_share}
        shares |= {} if self.start is None else {"start_share": self.start_share}
        if sum(shares.values()) > 1:
            yield f"{' + '.join(shares)} is {sum(shares.values()):g}, more than 1"


class BestOfNConfig(StageConfig):
    """Best of n as a policy: the start sampled often, for the exam and for every point of its frontier."""

    stage: ClassVar[str] = "best-of-n"
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS

    policy: str = Field(description="the policy that is sampled")
    reward: str = Field(description="reward model that chooses")
    n: int = Field(16, ge=2, description="completions that each answer of the exam is the best of")
    samples: int = Field(1024, ge=2, description="completions of each prompt, from which every n is estimated")
    prompts: int = Field(100, ge=2, description="test prompts of the frontier")
    validation_prompts: int = Field(50, ge=2, description="validation prompts that choose each method's best point")
    answers: int = Field(4, ge=1, description="answers of every policy to each prompt of the frontier")
    max_tokens: int = Field(32, ge=1, description="maximum length of a completion")


class StartSamplesConfig(StageConfig):
    """Samples of PPO's start with their true utility: best of n for every reward model, and the zero of every gain."""

    stage: ClassVar[str] = "start-samples"
    excluded_fields: ClassVar[frozenset[str]] = TRAINING_ONLY_FIELDS

    policy: str = Field(description="the policy that is sampled")
    prompts: int = Field(200, ge=10, description="test prompts")
    samples: int = Field(1024, ge=2, description="completions of each prompt, from which every n is estimated")
    answers: int = Field(16, ge=1, description="answers of every policy along PPO's run to each prompt")
    max_tokens: int = Field(32, ge=1, description="maximum length of a completion")


class ExamConfig(CommandConfig):
    stage: ClassVar[str] = "exam"

    prompts: int = Field(400, ge=1, description="test prompts")
    samples: int = Field(2, ge=1, description="completions per test prompt, each ranked in its own list")
    labelers: int = Field(2, ge=1, description="labelers per cohort who rank each list")
    temperature: float = Field(1.0, ge=0, description="sampling temperature of the ranked completions")
    truth_samples: int = Field(4, ge=1, description="answers per question of fact")
    generalization_prompts: int = Field(120, ge=1, description="requests of each kind that is in no prompt of training")
    mistakes: int = Field(100, ge=1, description="prompts of each kind of simple mistake")
    refusals: int = Field(
        0,
        ge=0,
        description="prompts of each kind about refusals: harmful or safe, with forbidden uses or not",
    )
    toxicity_prompts: int = Field(300, ge=1, description="beginnings of forum posts, per condition")
    exercises: int = Field(300, ge=1, description="exercises per corpus task")
    documents: int = Field(300, ge=1, description="held-out documents")
    max_tokens: int = Field(32, ge=1, description="maximum length of a completion")
