"""A batch from what an owner fills in: files or names of models, how many labelers, which labelers. Shared by the page and the command."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy.orm import Session

from instructgpt import records
from instructgpt.errors import BadInput
from instructgpt.io import read_rows
from instructgpt.label.db.models import Batch, Person
from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.tasks import batches
from instructgpt.label.tasks.forms import PROMPT_LABELS
from instructgpt.label.tasks.ingest import MOST_COMPLETIONS
from instructgpt.records import USE_CASES, Cohort, explain

MOST_WRITTEN = 100_000
STANDARD_ERROR = 2
"""Where the progress of sampling goes: what this process itself prints stays a report."""
FILES = ("prompts", "completions", "gold")
"""What a batch is made from; completions only for rank batches, gold answers for whoever has some."""


class Wish(BaseModel):
    """What a new batch shall be."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
    name: str = Field(min_length=1, max_length=120)
    kind: Kind = "rank"
    purpose: Literal["training", "evaluation"] = "training"
    cohort: Cohort | None = None
    screening: Literal["sensitive", "ranking", "demonstration"] | None = None
    baseline: str | None = None
    priority: int = Field(0, ge=-1000, le=1000)
    overlap: int = Field(1, ge=1, le=100)
    cohort_share: float = Field(0.12, ge=0, le=1)
    cohort_overlap: int = Field(3, ge=1, le=100)
    gold_share: float = Field(0.05, ge=0, le=1)
    repeat_share: float = Field(0.02, ge=0, le=1)
    k_least: int | None = Field(None, ge=2, le=MOST_COMPLETIONS)
    k_most: int | None = Field(None, ge=2, le=MOST_COMPLETIONS)
    seed: int = Field(0, ge=0, lt=2**32)
    written: int = Field(0, ge=0, le=MOST_WRITTEN)
    """Kind `write`: how many prompts labelers shall write."""
    written_form: Literal["plain", "few_shot", "user_based"] = "plain"
    written_use_case: str | None = None

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.k_least and self.k_most and self.k_least > self.k_most:
            raise ValueError(f"the smallest K ({self.k_least}) is above the largest ({self.k_most})")
        if self.kind == "write" and not self.written:
            raise ValueError("say how many prompts labelers shall write")
        if self.kind != "write" and self.written:
            raise ValueError(f"prompts to write belong to kind 'write', not to '{self.kind}'")
        if self.baseline and (self.kind, self.purpose) != ("rank", "evaluation"):
            raise ValueError("a baseline belongs to rankings for evaluation")
        if self.written_use_case is not None and self.written_use_case not in USE_CASES:
            raise ValueError(f"no use case '{self.written_use_case}'; there are: {', '.join(USE_CASES)}")
        return self

    @property
    def policy(self) -> batches.Policy:
        """How many labelers each task gets. Raises ValueError when the numbers contradict each other."""
        k = None if self.k_least is None and self.k_most is None else (self.k_least or 2, self.k_most or MOST_COMPLETIONS)
        return batches.Policy(
            overlap=self.overlap, cohort_share=self.cohort_share, cohort_overlap=self.cohort_overlap, gold_share=self.gold_share,
            repeat_share=self.repeat_share, k=k, seed=self.seed,
        )  # fmt: skip


def make(db: Session, wish: Wish, files: Mapping[str, Sequence[Path]], by: Person | None = None) -> Batch:
    """Make the batch, in the transaction of whoever asks.

    Args:
        files: of each of FILES, where the records are (JSON lines or Parquet).

    Raises:
        BadInput: a file cannot be read, the wish contradicts itself, or nothing is left to do.
    """
    prompts = records.read_all(records.Prompt, files.get("prompts", ()))
    completions = records.read_all(records.Completion, files.get("completions", ()))
    if wish.kind == "rank" and not completions:
        raise BadInput("a batch of rankings needs a file of completions (`instructgpt sample` makes one)")
    if wish.kind != "rank" and completions:
        raise BadInput(f"completions belong to rankings; a batch of kind '{wish.kind}' needs a file of prompts")
    if wish.kind in ("demonstrate", "review") and not prompts:
        raise BadInput(f"a batch of kind '{wish.kind}' needs a file of prompts")
    if wish.kind == "write" and prompts:
        raise BadInput("in a batch of kind 'write' labelers write the prompts; leave the file out")
    if wish.baseline and wish.baseline not in {each.model for each in completions}:
        raise BadInput(
            f"no completion is of the baseline '{wish.baseline}'; there are: {', '.join(sorted({each.model for each in completions}))}"
        )
    try:
        policy = wish.policy
    except ValidationError as error:
        raise BadInput(explain(error)) from error
    brief = {"form": wish.written_form} | ({"use_case": wish.written_use_case} if wish.written_use_case else {})
    gold = read_gold(wish.kind, files.get("gold", ()))
    return batches.make_batch(
        db, wish.name, wish.kind, wish.purpose, prompts, completions, policy, screening=wish.screening, cohort=wish.cohort,
        baseline=wish.baseline, gold=gold, briefs=[brief] * wish.written, priority=wish.priority, by=by,
    )  # fmt: skip


def read_gold(kind: Kind, paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Known answers by the prompt's text: of rankings files for rank batches, of `{"prompt", "answer": {…}}` lines for reviews.

    Raises:
        BadInput: a line holds no such answer.
    """
    if kind == "rank":
        rankings = records.read_all(records.Ranking, paths)
        return {each.prompt: dict(zip(each.completions, each.ranks, strict=True)) for each in rankings}
    answers: dict[str, dict[str, Any]] = {}
    known = {"personal_data", "sensitive", "use_case", *PROMPT_LABELS}
    for where, row in (line for path in paths for line in read_rows(path)):
        prompt, answer = row.get("prompt"), row.get("answer")
        if kind != "review" or not isinstance(prompt, str) or not isinstance(answer, dict) or not answer or set(answer) - known:
            raise BadInput(f'{where}: expected {{"prompt": text, "answer": {{"sensitive": true}}}} for a batch of kind \'review\'')
        answers[prompt] = answer
    return answers


def sample(models: Sequence[tuple[str, str]], prompts: Sequence[Path], n: int, seed: int, folder: Path) -> list[Path]:
    """Completions of every model, by `instructgpt sample` in a process of its own: this process needs no torch.

    Args:
        models: (name in the records, directory or hub name) of each.
        n: completions of each prompt and model.
        folder: where to put them.

    Returns:
        one file of completions a model and a file of prompts.

    Raises:
        BadInput: a model could not be sampled; its own words are passed on.
    """
    made = []
    for number, (name, model) in enumerate(models):
        for part, asked in enumerate(prompts):
            out = folder / f"completions-{number}-{part}.jsonl"
            command = [sys.executable, "-m", "instructgpt", *sample_arguments(model, str(asked), n, str(out)), "--seed", str(seed)]
            done = subprocess.run(command, stdout=STANDARD_ERROR, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                said = done.stderr.strip().splitlines()
                raise BadInput(f"completions of {model}: {said[-1].removeprefix('instructgpt: ') if said else 'sampling failed'}")
            renamed = [each.model_copy(update={"model": name}) for each in records.read_records(records.Completion, out)]
            records.write_records(out, renamed)
            made.append(out)
    return made


def sample_arguments(model: str, prompts: str, n: int, out: str) -> list[str]:
    """The arguments of `instructgpt` that make completions of one model; the page shows the same ones."""
    return ["sample", "--model", model, "--prompts", prompts, "--n", str(n), "--out", out]


def keep_upload(folder: Path, name: str, data: BinaryIO) -> str:
    """Keep an uploaded file until its batch is made. -> the name by which `uploaded` finds it; the same bytes have the same one."""
    suffix = next((end for end in (".jsonl.gz", ".json.gz", ".parquet", ".jsonl", ".json") if name.lower().endswith(end)), ".jsonl")
    place = folder / "uploads"
    place.mkdir(parents=True, exist_ok=True)
    hashed = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=place, delete=False) as written:
        while block := data.read(1 << 20):
            hashed.update(block)
            written.write(block)
    token = f"{hashed.hexdigest()}{suffix}"
    Path(written.name).replace(place / token)
    return token


def uploaded(folder: Path, token: str) -> Path:
    """The file of a token. Raises BadInput when it is none, or is gone."""
    file = folder / "uploads" / token
    if token != Path(token).name or not file.is_file():
        raise BadInput("the uploaded file is no longer there; choose it again")
    return file
