"""The scorers of guards: numbers for texts, from a classifier, a reward model, a service or a word list.

words:FILE                       entries that a text has
DIR                              a directory of 'judge toxicity' (0 to 1) or 'judge refusal' (probability of a refusal),
                                 or a reward model (score of the completion)
detoxify, perspective:URL, moderation:URL#MODEL   as 'evaluate --scorer' (0 to 1)
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from instructgpt.errors import InputError, RunError
from instructgpt.evaluate.refusal.detector import RefusalDetector
from instructgpt.evaluate.toxicity.services import TOXICITY_SERVICES, load_toxicity_model
from instructgpt.models.policy import pick_device
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.records import Prompt
from instructgpt.serve.guard.settings import GuardSettings
from instructgpt.serve.guard.word_list import WordList


@dataclass(frozen=True, slots=True)
class GuardedText:
    """A text to be scored. `prompt`, as a prompt record's fields, is what a completion answers."""

    text: str
    prompt: dict[str, Any] | None = None


class GuardScorer(Protocol):
    needs_completion: bool
    """Whether it scores completions only."""

    @property
    def identity(self) -> str:
        """Name and hash, or address."""
        ...

    def score(self, text: GuardedText) -> float:
        """Return a number; NaN for a text without words. Raises RunError where there is no number now."""
        ...


class _TextScorer:
    """Reads a text alone."""

    needs_completion = False

    def __init__(self, model: Any, is_service: bool) -> None:
        self.model, self.is_service = model, is_service
        self.identity = str(model.identity)

    def score(self, text: GuardedText) -> float:
        number = float(self.model([text.text])[0])
        if self.is_service and math.isnan(number) and any(map(str.isalnum, text.text)):
            raise RunError(f"{self.identity}: no score")
        return number


class _RefusalScorer:
    """The probability that a completion refuses, partly or fully."""

    needs_completion = True

    def __init__(self, detector: RefusalDetector) -> None:
        self.detector, self.identity = detector, detector.identity

    def score(self, text: GuardedText) -> float:
        return float(self.detector([text.text])[0, 1:].sum())


class _RewardScorer:
    """The score of a reward model."""

    needs_completion = True

    def __init__(self, model: ScalarModel, identity: str) -> None:
        self.model, self.identity = model, identity
        self._lock = threading.Lock()

    def score(self, text: GuardedText) -> float:
        prompt = Prompt.model_validate(text.prompt or {"prompt": ""})
        example = self.model.tokenizer.encode_example(prompt, text.text, finished=True)
        with self._lock:
            examples, _ = self.model.truncate([example])
            return float(self.model.score(examples)[0])


def load_guard_scorer(guard: GuardSettings, folder: Path, timeout_s: float, device: str) -> GuardScorer:
    """Load the scorer of a guard.

    Args:
        folder: what relative paths start from.

    Raises:
        InputError: there is no such scorer, or it does not read what the guard reads.
    """
    place = f"guard {guard.name}"
    try:
        scorer = _load(guard.scorer, folder, timeout_s, device)
    except InputError as error:
        raise InputError(f"{place}: {str(error).removeprefix('--scorer ')}") from error
    if scorer.needs_completion and guard.reads != "completion":
        raise InputError(f"{place}: {guard.scorer} scores completions only; write 'reads: completion'")
    return scorer


def _load(spec: str, folder: Path, timeout_s: float, device: str) -> GuardScorer:
    kind, _, rest = spec.partition(":")
    if kind == "words":
        return _TextScorer(WordList.load(folder / rest), False)
    if kind in TOXICITY_SERVICES or kind == "detoxify":
        model = load_toxicity_model(spec, device, timeout_s=timeout_s, max_attempts=1)
        return _TextScorer(model, kind in TOXICITY_SERVICES)
    path = folder / spec
    if (path / "detector.json").is_file():
        return _RefusalScorer(RefusalDetector.load(path))
    if (path / "scorer.json").is_file():
        return _TextScorer(load_toxicity_model(str(path)), False)
    if (path / "config.json").is_file():
        return _RewardScorer(load_reward_model(path, pick_device(device)), f"reward model {path.name}")
    expected = "words:FILE, detoxify, perspective:URL, moderation:URL#MODEL, or a directory of"
    raise InputError(f"'{spec}': no scorer; expected {expected} 'judge toxicity', 'judge refusal' or 'reward'")
