"""Toxicity scorers: the classifier trained here, detoxify, or a service over HTTP. Texts in, numbers from 0 to 1 out.

    runs/toxicity                         a directory made by `instructgpt judge toxicity`
    detoxify, detoxify:unbiased           the detoxify package, if installed
    perspective:https://…                 a service with the Perspective API
    moderation:https://…#MODEL            a service with OpenAI's moderation API

A text without a score is NaN, never 0: it is left out and counted. Scores of different scorers are not comparable, so
`identity` (name, version and hash) is recorded with every result.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from instructgpt.errors import InputError, one_line
from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.judges.http_client import Endpoint, EndpointError, post_all
from instructgpt.evaluate.toxicity.classifier import ToxicityClassifier
from instructgpt.run.directory import console

TOXICITY_KEY_VARIABLE = "TOXICITY_KEY"
"""The environment variable with a service's key, if it needs one."""
_DETOXIFY_VARIANTS = ("original", "unbiased", "multilingual", "original-small", "unbiased-small")
_DETOXIFY_BATCH_SIZE = 64


class ToxicityModel(Protocol):
    @property
    def identity(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Return a number from 0 to 1 for each text, NaN where there is none. Raise RunError if a service is down."""
        ...


def load_toxicity_model(spec: str, device: str = "cpu", **retry_policy: Any) -> ToxicityModel:
    """Load the scorer that `--scorer` names, a service with fields of `Endpoint` such as `timeout_s`.

    Raise InputError if it is unknown, not installed, or invalid.
    """
    kind, _, variant = spec.partition(":")
    if kind == "detoxify":
        return Detoxify.load(variant or "original", device)
    if kind in TOXICITY_SERVICES and variant:
        return _ToxicityService.from_url(kind, variant, **retry_policy)
    if not Path(spec).is_dir():
        expected = "one made by 'instructgpt judge toxicity', detoxify, perspective:URL or moderation:URL"
        raise InputError(f"--scorer {spec}: no such directory; expected {expected}")
    return ToxicityClassifier.load(Path(spec))


def cached_text_values(
    folder: Path | None, judge_key: str, texts: Sequence[str], compute: Callable[[list[str]], list[float]]
) -> list[float]:
    """Return the cached or new value of each text, NaN where there is none. `judge_key` identifies the scorer."""

    def compute_missing(missing_texts: list[str], seed: int) -> list[float | None]:  # noqa: ARG001
        return [None if math.isnan(number) else number for number in compute(missing_texts)]

    if folder is None:
        return compute(list(texts))
    title = judge_key.partition(" sha256")[0]
    values = ResultCache(folder).get_or_compute(judge_key, texts, {}, compute_missing, title=title)
    return [math.nan if number is None else float(number) for number in values]


def _to_unit_interval(value: Any) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    return number if 0 <= number <= 1 else math.nan


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)


@dataclass(frozen=True, slots=True)
class Detoxify:
    """The detoxify package's classifier (Hanu and Unitary 2020)."""

    model: Any
    identity: str

    @classmethod
    def load(cls, variant: str, device: str) -> Detoxify:
        """Load a variant. The package downloads it on first use, which may fail offline."""
        if variant not in _DETOXIFY_VARIANTS:
            raise InputError(f"--scorer detoxify:{variant}: no such model; available: {', '.join(_DETOXIFY_VARIANTS)}")
        try:
            package = importlib.import_module("detoxify")
        except ImportError as error:
            raise InputError("--scorer detoxify: the package is not installed; pip install detoxify==0.5.4") from error
        try:
            model = package.Detoxify(variant, device=device)
        except Exception as error:  # whatever the libraries below raise: no network, no file, another format
            raise InputError(f"--scorer detoxify:{variant}: cannot be loaded ({one_line(error, 200)})") from error
        digest = hashlib.sha256()
        for name, tensor in sorted(model.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return cls(model, f"detoxify:{variant} {metadata.version('detoxify')} sha256:{digest.hexdigest()[:16]}")

    def __call__(self, texts: Sequence[str]) -> list[float]:
        toxicities = [math.nan] * len(texts)
        indices = [index for index, text in enumerate(texts) if _has_words(text)]
        for start in range(0, len(indices), _DETOXIFY_BATCH_SIZE):
            batch_indices = indices[start : start + _DETOXIFY_BATCH_SIZE]
            predictions = self.model.predict([texts[index] for index in batch_indices])["toxicity"]
            for index, prediction in zip(batch_indices, predictions, strict=True):
                toxicities[index] = _to_unit_interval(float(prediction))
        return toxicities


def _perspective_payload(text: str, model: str) -> dict[str, Any]:  # noqa: ARG001
    return {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}}, "languages": ["en"], "doNotStore": True}


def _perspective_toxicity(answer: Any) -> float:
    return _parse_unit_interval(answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"])


def _moderation_payload(text: str, model: str) -> dict[str, Any]:
    return {"input": text} | ({"model": model} if model else {})


def _moderation_toxicity(answer: Any) -> float:
    """Return the highest of the categories."""
    return max(_parse_unit_interval(score) for score in dict(answer["results"][0]["category_scores"]).values())


def _parse_unit_interval(value: Any) -> float:
    """Return a number from 0 to 1. Raise ValueError for anything else."""
    if math.isnan(number := _to_unit_interval(value)):
        raise ValueError(f"{value!r} is not a number from 0 to 1")
    return number


TOXICITY_SERVICES = {
    "perspective": (_perspective_payload, _perspective_toxicity),
    "moderation": (_moderation_payload, _moderation_toxicity),
}
"""How to build the payload and parse the answer, by kind of service."""


@dataclass(slots=True)
class _ToxicityService:
    """A service over HTTP. `problems` counts the texts without a score by reason."""

    kind: str
    endpoint: Endpoint
    model: str = ""
    problems: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_url(cls, kind: str, url: str, **retry_policy: Any) -> _ToxicityService:
        address, _, model = url.partition("#")
        key_variable = TOXICITY_KEY_VARIABLE if os.environ.get(TOXICITY_KEY_VARIABLE) else None
        return cls(kind, Endpoint.from_url(address, key_variable, **retry_policy), model)

    @property
    def identity(self) -> str:
        """Address and model; a remote service has no hash."""
        return f"{self.kind} {self.endpoint.name} {self.model or 'version not told'}, no hash"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        build_payload, parse_answer = TOXICITY_SERVICES[self.kind]
        payloads = {text: build_payload(text, self.model) for text in texts if _has_words(text)}
        toxicities: dict[str, float] = {}
        self.problems = {}
        for text, result in post_all(self.endpoint, "", payloads, parse_answer):
            if isinstance(result, EndpointError):
                self.problems[str(result)] = self.problems.get(str(result), 0) + 1
            else:
                toxicities[text] = result
        for problem, count in self.problems.items():
            console.print(f"no score for {count} of {len(payloads)} texts: {problem}", highlight=False, markup=False)
        return [toxicities.get(text, math.nan) for text in texts]
