"""Options of the `evaluate` command, and the settings it passes to the evaluations of whole files of rankings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from instructgpt.config import CommandConfig
from instructgpt.evaluate.tasks import EVAL_TASKS

WHOLE_FILE_EVALUATIONS = ("preference", "reward_model")
"""Evaluations of rankings or completions; all others are tasks, which ask a list of questions."""
_PREFERENCE_OPTIONS = ("judge", "judge_model", "judge_key", "judge_reads", "baseline", "max_tokens", "temperature")


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """Options of the evaluations of whole files. `folder` holds their cache and output files."""

    folder: Path
    model: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    completions: tuple[Path, ...] = ()
    limit: int | None = None
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class PreferenceSettings(ComparisonSettings):
    """Options of the preference evaluation."""

    judge: str | None = None
    judge_model: str | None = None
    judge_key: str | None = None
    judge_reads: Literal["text", "logp"] | None = None
    baseline: str | None = None
    max_tokens: int = 256
    temperature: float = 1.0


class EvaluateConfig(CommandConfig):
    """Evaluations, the models they run on, and where the data is."""

    stage: ClassVar[str] = "evaluate"

    names: tuple[str, ...] = Field(
        (), description=f"evaluations: {', '.join((*EVAL_TASKS, *WHOLE_FILE_EVALUATIONS))}; or all tasks with data"
    )
    model: tuple[str, ...] = Field((), description="models, NAME=MODEL or MODEL: a directory or a hub name")
    data: tuple[str, ...] = Field(
        (),
        description="a folder with the evaluations' files under their usual names, the file of a single evaluation, "
        "or NAME=SOURCE: a file, a saved data set or one of the hub",
    )
    harness: tuple[str, ...] = Field(
        (), description="tasks of lm-evaluation-harness, in addition; needs instructgpt[harness]"
    )
    include_path: Path | None = Field(None, description="a folder with YAML files of more tasks for --harness")
    completions: tuple[Path, ...] = Field(
        (),
        description="existing completions with references instead of models and data: FILE, or NAME=FILE for one "
        "evaluation",
    )
    out: Path = Field(Path("results.json"), description="the results file; replies are cached in a folder beside it")
    limit: int | None = Field(
        None, ge=0, description="questions per evaluation, drawn by the seed; 0: all; default: its own"
    )
    shots: int | None = Field(None, ge=0, description="few-shot examples of tasks that have some; default: the paper's")
    scorer: str | None = Field(
        None,
        description="toxicity scorer: a directory of 'judge toxicity', detoxify, perspective:URL or moderation:URL",
    )
    judges: Path | None = Field(
        None,
        description="folder with the judges of 'judge truth' and 'judge info'; truthfulqa then also generates answers",
    )
    judge: str | None = Field(
        None,
        description="compares completions: a reward model, a language model, an endpoint's URL, or 'simulated'; "
        "default: the people who ranked",
    )
    judge_model: str | None = Field(None, description="the endpoint's model that judges")
    judge_key: str | None = Field(None, description="the environment variable with the endpoint's key")
    judge_reads: Literal["text", "logp"] | None = Field(
        None, description="read a language model's verdict from its text, or from the log-probabilities of A, B and C"
    )
    baseline: str | None = Field(None, description="the model others are compared with; default: sft if present")
    max_tokens: int = Field(256, ge=1, description="maximum length of compared completions")
    temperature: float = Field(1.0, ge=0, description="sampling temperature of compared completions")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of questions, examples and samples")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto uses a GPU if there is one")
    processes: int = Field(1, ge=1, description="processes that share the work (CPU)")

    def ineffective_options(self) -> Iterator[str]:
        """Yield what is missing or has no effect. Tasks need models or completions; rankings by people need neither."""
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
        elif not self.names and "processes" in self.model_fields_set:
            yield "--processes has no effect on --harness alone"

    def _ineffective_preference_options(self) -> Iterator[str]:
        for name in _PREFERENCE_OPTIONS:
            flag = f"--{name.replace('_', '-')}"
            if name not in self.model_fields_set:
                continue
            if "preference" not in self.names:
                yield f"{flag} has no effect without the evaluation preference"
            elif name in ("max_tokens", "temperature") and not self.model:
                yield f"{flag} has no effect without --model"
            elif name in ("judge_model", "judge_key") and "://" not in (self.judge or ""):
                yield f"{flag} has no effect unless --judge is the address of an endpoint"
