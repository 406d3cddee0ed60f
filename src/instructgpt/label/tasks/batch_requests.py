"""Create a batch from an owner's settings, for the page and the command: files or models, overlap, labelers."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy.orm import Session

from instructgpt import records
from instructgpt.errors import InputError
from instructgpt.io import iter_rows
from instructgpt.label.db.models import Batch, Person
from instructgpt.label.tasks import batches
from instructgpt.label.tasks.forms import PROMPT_LABELS
from instructgpt.label.tasks.rates import MAX_HOURLY_RATE, HourlyRate
from instructgpt.label.vocabulary import MAX_COMPLETIONS, FailureKind, TaskKind
from instructgpt.records import USE_CASES, Cohort, format_validation_error

_MAX_WRITE_TASKS = 100_000
_STDERR_FD = 2  # for the progress of sampling, since stdout holds the command's own report
BATCH_INPUT_FILES = ("prompts", "completions", "gold")  # completions are for rank batches; gold answers are optional


class BatchSpec(BaseModel):
    """The settings of a new batch."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
    name: str = Field(min_length=1, max_length=120)
    kind: TaskKind = "rank"
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
    heldout_share: float | None = Field(None, ge=0, le=1)
    hourly: float | None = Field(None, gt=0, lt=MAX_HOURLY_RATE)  # what an hour of work costs, in `currency` (ISO 4217)
    currency: str | None = Field(None, pattern=r"^[A-Z]{3}$")
    k_least: int | None = Field(None, ge=2, le=MAX_COMPLETIONS)
    k_most: int | None = Field(None, ge=2, le=MAX_COMPLETIONS)
    seed: int = Field(0, ge=0, lt=2**32)
    questions: dict[str, Any] | None = None  # kind `rank`: document of `questions.parse_questions`
    written: int = Field(0, ge=0, le=_MAX_WRITE_TASKS)  # kind `write`: number of prompts to write
    written_form: Literal["plain", "few_shot", "user_based"] = "plain"
    written_use_case: str | None = None
    red_team: FailureKind | None = None  # kind `write`: the prompts are to make a model fail in this way

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.k_least and self.k_most and self.k_least > self.k_most:
            raise ValueError(f"the smallest K ({self.k_least}) is above the largest ({self.k_most})")
        if self.kind == "write" and not self.written:
            raise ValueError("kind 'write' needs the number of prompts to write")
        if self.kind != "write" and self.written:
            raise ValueError(f"prompts to write belong to kind 'write', not to '{self.kind}'")
        if self.red_team and (self.kind, self.written_form) != ("write", "plain"):
            raise ValueError("red-team tasks are plain prompts to write: kind 'write', form 'plain'")
        if self.baseline and (self.kind, self.purpose) != ("rank", "evaluation"):
            raise ValueError("a baseline belongs to rankings for evaluation")
        if (self.hourly is None) != (self.currency is None):
            raise ValueError("hourly and currency belong together, such as 15 and USD")
        if self.written_use_case is not None and self.written_use_case not in USE_CASES:
            raise ValueError(f"no use case '{self.written_use_case}'; there are: {', '.join(USE_CASES)}")
        return self

    @property
    def policy(self) -> batches.OverlapPolicy:
        """The overlap policy; raises ValueError for contradicting numbers."""
        has_k = self.k_least is not None or self.k_most is not None
        k = (self.k_least or 2, self.k_most or MAX_COMPLETIONS) if has_k else None
        fields = {"overlap", "cohort_share", "cohort_overlap", "gold_share", "repeat_share", "heldout_share", "seed"}
        return batches.OverlapPolicy(k=k, **self.model_dump(include=fields))


MAX_UNPACKED_BYTES, MAX_UPLOAD_LINE_BYTES = 256 << 20, 32 << 20
"""Limits of an uploaded file. A JSON list on one line is one line."""
_MAX_UPLOAD_READ_S, _MAX_PARQUET_ROWS = 20, 1_000_000


def create_batch_from_spec(
    db: Session, spec: BatchSpec, files: Mapping[str, Sequence[Path]], created_by: Person | None = None
) -> Batch:
    """Create a batch in the caller's transaction.

    Args:
        files: paths (JSON lines or Parquet) of each of `BATCH_INPUT_FILES`.

    Raises:
        InputError: a file cannot be read, the settings contradict each other, or no task is left.
    """
    prompts = records.read_all_records(records.Prompt, files.get("prompts", ()))
    completions = records.read_all_records(records.Completion, files.get("completions", ()))
    if spec.kind == "rank" and not completions:
        raise InputError("a batch of rankings needs a file of completions; make one with `instructgpt sample`")
    if spec.kind != "rank" and completions:
        raise InputError(f"completions belong to rankings; a batch of kind '{spec.kind}' needs a file of prompts")
    if spec.kind in ("demonstrate", "review") and not prompts:
        raise InputError(f"a batch of kind '{spec.kind}' needs a file of prompts")
    if spec.kind == "write" and prompts:
        raise InputError("in a batch of kind 'write' labelers write the prompts; leave the file out")
    models = sorted({completion.model for completion in completions})
    if spec.baseline and spec.baseline not in models:
        raise InputError(f"no completion of the baseline '{spec.baseline}'; the models are: {', '.join(models)}")
    try:
        policy = spec.policy
    except ValidationError as error:
        raise InputError(format_validation_error(error)) from error
    brief = {"form": spec.written_form} | ({"use_case": spec.written_use_case} if spec.written_use_case else {})
    brief |= {"red_team": spec.red_team} if spec.red_team else {}
    gold = load_gold_answers(spec.kind, files.get("gold", ()))
    return batches.create_batch_with_tasks(
        db,
        spec.name,
        spec.kind,
        spec.purpose,
        prompts,
        completions,
        policy,
        screening=spec.screening,
        cohort=spec.cohort,
        baseline=spec.baseline,
        gold=gold,
        briefs=[brief] * spec.written,
        priority=spec.priority,
        questions=spec.questions,
        rate=HourlyRate(amount=spec.hourly, currency=spec.currency) if spec.hourly and spec.currency else None,
        created_by=created_by,
    )


def load_gold_answers(kind: TaskKind, paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Read answers by prompt text: rankings, or `{"prompt", "answer": {…}}` lines for reviews; raise InputError."""
    if kind == "rank":
        rankings = records.read_all_records(records.Ranking, paths)
        return {ranking.prompt: dict(zip(ranking.completions, ranking.ranks, strict=True)) for ranking in rankings}
    answers: dict[str, dict[str, Any]] = {}
    allowed_fields = {"personal_data", "sensitive", "use_case", *PROMPT_LABELS}
    expected = '{"prompt": text, "answer": {"sensitive": true}} for a batch of kind \'review\''
    for location, row in (line for path in paths for line in iter_rows(path)):
        prompt, answer = row.get("prompt"), row.get("answer")
        if kind != "review" or not isinstance(prompt, str) or not isinstance(answer, dict):
            raise InputError(f"{location}: expected {expected}")
        if not answer or set(answer) - allowed_fields:
            raise InputError(f"{location}: expected {expected}")
        answers[prompt] = answer
    return answers


def sample_in_subprocess(
    models: Sequence[tuple[str, str]], prompts: Sequence[Path], options: Sequence[str], folder: Path
) -> list[Path]:
    """Sample every model with `instructgpt sample` in a subprocess, since the site runs without torch.

    Args:
        models: (name in the records, directory or hub name).
        options: more arguments of `instructgpt sample`, such as `--n 2`.

    Returns:
        one file of completions for each model and file of prompts.

    Raises:
        InputError: with the last line that the subprocess printed.
    """
    paths = []
    for model_index, (name, model) in enumerate(models):
        for prompts_index, prompts_path in enumerate(prompts):
            out = folder / f"completions-{model_index}-{prompts_index}.jsonl"
            arguments = ["sample", "--model", model, "--prompts", str(prompts_path), "--out", str(out), *options]
            command = [sys.executable, "-m", "instructgpt", *arguments]
            process = subprocess.run(command, stdout=_STDERR_FD, stderr=subprocess.PIPE, text=True)
            if process.returncode:
                last_line = (process.stderr.strip().splitlines() or ["sampling failed"])[-1]
                raise InputError(f"completions of {model}: {last_line.removeprefix('instructgpt: ')}")
            completions = records.read_records(records.Completion, out)
            records.write_records(out, [row.model_copy(update={"model": name}) for row in completions])
            paths.append(out)
    return paths


def build_sample_arguments(model: str, prompts: str, n: int, out: str) -> list[str]:
    """Build the arguments of `instructgpt sample`, as the page shows them."""
    return ["sample", "--model", model, "--prompts", prompts, "--n", str(n), "--out", out]


def store_upload(folder: Path, name: str, data: BinaryIO) -> str:
    """Store an uploaded file until its batch is created; return its token, which is the hash of its content."""
    suffixes = (".jsonl.gz", ".json.gz", ".parquet", ".jsonl", ".json")
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), ".jsonl")
    uploads_folder = folder / "uploads"
    uploads_folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=uploads_folder, delete=False) as temporary_file:
        while block := data.read(1 << 20):
            digest.update(block)
            temporary_file.write(block)
    try:
        check_unpacked_size(Path(temporary_file.name), name)
    except InputError:
        Path(temporary_file.name).unlink()
        raise
    token = f"{digest.hexdigest()}{suffix}"
    Path(temporary_file.name).replace(uploads_folder / token)
    return token


def check_unpacked_size(path: Path, name: str) -> None:
    """Raise InputError for an upload that unpacks to too much, has too long a line, or takes too long to read.

    Args:
        name: of the uploaded file, for the message.
    """
    hint = "import it on the server with 'instructgpt label import'"
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"PAR1":
        _check_parquet_size(path, name, hint)
        return
    total, line, deadline = 0, 0, time.monotonic() + _MAX_UPLOAD_READ_S
    try:
        with gzip.open(path, "rb") if start[:2] == b"\x1f\x8b" else path.open("rb") as unpacked:
            while block := unpacked.read(1 << 20):
                total += len(block)
                head, *rest = block.split(b"\n")
                longest = max(line + len(head), *map(len, rest), 0)
                line = len(rest[-1]) if rest else line + len(head)
                if total > MAX_UNPACKED_BYTES:
                    raise InputError(f"{name}: unpacks to more than {MAX_UNPACKED_BYTES >> 20} MB; {hint}")
                if longest > MAX_UPLOAD_LINE_BYTES:
                    raise InputError(f"{name}: a line is longer than {MAX_UPLOAD_LINE_BYTES >> 20} MB; {hint}")
                if time.monotonic() > deadline:
                    raise InputError(f"{name}: takes longer than {_MAX_UPLOAD_READ_S} s to read; {hint}")
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{name}: cannot be unpacked ({error}); compress it again with gzip") from error


def _check_parquet_size(path: Path, name: str, hint: str) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.ParquetFile(path).metadata
    except pyarrow.ArrowException:
        return  # reading it reports what is wrong
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    if size > MAX_UNPACKED_BYTES or metadata.num_rows > _MAX_PARQUET_ROWS:
        raise InputError(
            f"{name}: unpacks to {size >> 20:,} MB and {metadata.num_rows:,} rows, too much for a page; {hint}"
        )


def get_upload(folder: Path, token: str) -> Path:
    """Return the file of a token; raise InputError when it does not exist."""
    path = folder / "uploads" / token
    if token != Path(token).name or not path.is_file():
        raise InputError("the uploaded file is no longer there; choose it again")
    return path
