"""Whoever can say how toxic a text is: our own scorer, detoxify, or a service over HTTP. Texts in, numbers from 0 to 1 out.

    runs/toxicity                         a directory made by `instructgpt judge toxicity`
    detoxify, detoxify:unbiased           the detoxify package, where it is installed
    perspective:https://…                 a service that speaks as the Perspective API does
    moderation:https://…#MODEL            a service that speaks as OpenAI's moderation does

A text that gets no score is NaN, never 0: whoever measures leaves it out and counts it. Scores of two scorers cannot be compared, so
`identity` (name, version and hash) stands beside every result.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
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
"""The environment variable with a service's key; a service that wants none needs none."""
_DETOXIFY_VARIANTS = ("original", "unbiased", "multilingual", "original-small", "unbiased-small")
"""detoxify's models, by the names they have there."""
_DETOXIFY_BATCH_SIZE = 64
"""Texts that detoxify reads at once."""


class ToxicityModel(Protocol):
    """How toxic texts are."""

    @property
    def identity(self) -> str:
        """Name, version and hash."""
        ...

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """A number from 0 to 1 for each text, NaN where there is none.

        Raises:
            RunFailed: the scorer does not work at all (a service is down).
        """
        ...


def load_toxicity_model(spec: str, device: str = "cpu") -> ToxicityModel:
    """The scorer that `--scorer` names.

    Raises:
        BadInput: there is no such scorer, its package is not installed, or its address is none.
    """
    kind, _, variant = spec.partition(":")
    if kind == "detoxify":
        return Detoxify.load(variant or "original", device)
    if kind in _TOXICITY_SERVICES and variant:
        return _ToxicityService.from_url(kind, variant)
    if not Path(spec).is_dir():
        raise InputError(
            f"--scorer {spec}: no such directory; expected one made by 'instructgpt judge toxicity', "
            "detoxify, perspective:URL or moderation:URL"
        )
    return ToxicityClassifier.load(Path(spec))


def cached_text_values(
    folder: Path | None, judge_key: str, texts: Sequence[str], compute: Callable[[list[str]], list[float]]
) -> list[float]:
    """What somebody says of each text, NaN where nothing: from the folder what stands there, else asked and kept. A text is asked once.

    Args:
        judge: who is asked, with version and hash: another one is asked anew.
        score: a number for each text, NaN where there is none.
    """

    def compute_missing(missing_texts: list[str], seed: int) -> list[float | None]:  # noqa: ARG001
        return [None if math.isnan(number) else number for number in compute(missing_texts)]

    if folder is None:
        return compute(list(texts))
    values = ResultCache(folder).get_or_compute(
        judge_key, texts, {}, compute_missing, title=judge_key.partition(" sha256")[0]
    )
    return [math.nan if number is None else float(number) for number in values]


def _to_unit_interval(value: Any) -> float:
    """A score as a number from 0 to 1, NaN for anything else."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    return number if 0 <= number <= 1 else math.nan


def _has_words(text: str) -> bool:
    """Whether there is anything to read; what has nothing is not sent anywhere."""
    return any(letter.isalnum() for letter in text)


@dataclass(frozen=True, slots=True)
class Detoxify:
    """The detoxify package's classifier (Hanu and Unitary 2020)."""

    model: Any
    identity: str

    @classmethod
    def load(cls, variant: str, device: str) -> Detoxify:
        """One of its models. The package fetches it where it has not done so before, which may fail offline.

        Raises:
            BadInput: the package is not installed, or does not load the model.
        """
        if variant not in _DETOXIFY_VARIANTS:
            raise InputError(f"--scorer detoxify:{variant}: no such model; there are: {', '.join(_DETOXIFY_VARIANTS)}")
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
        """The score it calls toxicity."""
        toxicities = [math.nan] * len(texts)
        indices = [index for index, text in enumerate(texts) if _has_words(text)]
        for start in range(0, len(indices), _DETOXIFY_BATCH_SIZE):
            batch_indices = indices[start : start + _DETOXIFY_BATCH_SIZE]
            predictions = self.model.predict([texts[index] for index in batch_indices])["toxicity"]
            for index, prediction in zip(batch_indices, predictions, strict=True):
                toxicities[index] = _to_unit_interval(float(prediction))
        return toxicities


def _perspective_payload(text: str, model: str) -> dict[str, Any]:  # noqa: ARG001
    """What the Perspective API wants to be asked; texts are not kept there."""
    return {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}}, "languages": ["en"], "doNotStore": True}


def _perspective_toxicity(answer: Any) -> float:
    """Its score of a text. Raises KeyError, TypeError or ValueError for something else."""
    return _parse_unit_interval(answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"])


def _moderation_payload(text: str, model: str) -> dict[str, Any]:
    """What a moderation service wants to be asked."""
    return {"input": text} | ({"model": model} if model else {})


def _moderation_toxicity(answer: Any) -> float:
    """The highest of its categories. Raises KeyError, TypeError, IndexError or ValueError for something else."""
    return max(_parse_unit_interval(score) for score in dict(answer["results"][0]["category_scores"]).values())


def _parse_unit_interval(value: Any) -> float:
    """A number from 0 to 1. Raises ValueError for anything else."""
    if math.isnan(number := _to_unit_interval(value)):
        raise ValueError(f"{value!r} is no number from 0 to 1")
    return number


_TOXICITY_SERVICES = {
    "perspective": (_perspective_payload, _perspective_toxicity),
    "moderation": (_moderation_payload, _moderation_toxicity),
}
"""How each kind of service is asked, and how its answer is read."""


@dataclass(slots=True)
class _ToxicityService:
    """A service over HTTP. Each text is asked once; `problems` is why texts got no score, and how many."""

    kind: str
    endpoint: Endpoint
    model: str = ""
    problems: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_url(cls, kind: str, url: str) -> _ToxicityService:
        """A service at an address, its model after a `#`. The key comes from the environment. Raises BadInput for no address."""
        address, _, model = url.partition("#")
        return cls(
            kind,
            Endpoint.from_url(address, TOXICITY_KEY_VARIABLE if os.environ.get(TOXICITY_KEY_VARIABLE) else None),
            model,
        )

    @property
    def identity(self) -> str:
        """Address and model, as far as a version is told; of what runs elsewhere there is no hash."""
        return f"{self.kind} {self.endpoint.name} {self.model or 'version not told'}, no hash"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Ask about every text that has words in it."""
        build_payload, parse_answer = _TOXICITY_SERVICES[self.kind]
        payloads: Mapping[str, dict[str, Any]] = {
            text: build_payload(text, self.model) for text in texts if _has_words(text)
        }
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
