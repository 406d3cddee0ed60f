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

from instructgpt.errors import BadInput, in_one_line
from instructgpt.evaluate.cache import Cache
from instructgpt.evaluate.judges.http_client import Endpoint, Unanswered, ask_all
from instructgpt.evaluate.toxicity.classifier import ToxicityScorer
from instructgpt.run.directory import console

KEY = "TOXICITY_KEY"
"""The environment variable with a service's key; a service that wants none needs none."""
VARIANTS = ("original", "unbiased", "multilingual", "original-small", "unbiased-small")
"""detoxify's models, by the names they have there."""
ROWS = 64
"""Texts that detoxify reads at once."""


class Scorer(Protocol):
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


def load_scorer(said: str, device: str = "cpu") -> Scorer:
    """The scorer that `--scorer` names.

    Raises:
        BadInput: there is no such scorer, its package is not installed, or its address is none.
    """
    kind, _, rest = said.partition(":")
    if kind == "detoxify":
        return Detoxify.load(rest or "original", device)
    if kind in SERVICES and rest:
        return Service.at(kind, rest)
    if not Path(said).is_dir():
        raise BadInput(
            f"--scorer {said}: no such directory; expected one made by 'instructgpt judge toxicity', "
            "detoxify, perspective:URL or moderation:URL"
        )
    return ToxicityScorer.load(Path(said))


def kept_scores(folder: Path | None, judge: str, texts: Sequence[str], score: Callable[[list[str]], list[float]]) -> list[float]:
    """What somebody says of each text, NaN where nothing: from the folder what stands there, else asked and kept. A text is asked once.

    Args:
        judge: who is asked, with version and hash: another one is asked anew.
        score: a number for each text, NaN where there is none.
    """

    def make(fresh: list[str], seed: int) -> list[float | None]:  # noqa: ARG001
        return [None if math.isnan(number) else number for number in score(fresh)]

    if folder is None:
        return score(list(texts))
    found = Cache(folder).completions(judge, texts, {}, make, title=judge.partition(" sha256")[0])
    return [math.nan if number is None else float(number) for number in found]


def in_range(score: Any) -> float:
    """A score as a number from 0 to 1, NaN for anything else."""
    number = float(score) if isinstance(score, int | float) and not isinstance(score, bool) else math.nan
    return number if 0 <= number <= 1 else math.nan


def has_words(text: str) -> bool:
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
        if variant not in VARIANTS:
            raise BadInput(f"--scorer detoxify:{variant}: no such model; there are: {', '.join(VARIANTS)}")
        try:
            package = importlib.import_module("detoxify")
        except ImportError as error:
            raise BadInput("--scorer detoxify: the package is not installed; pip install detoxify==0.5.4") from error
        try:
            model = package.Detoxify(variant, device=device)
        except Exception as error:  # whatever the libraries below raise: no network, no file, another format
            raise BadInput(f"--scorer detoxify:{variant}: cannot be loaded ({in_one_line(error, 200)})") from error
        digest = hashlib.sha256()
        for name, tensor in sorted(model.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return cls(model, f"detoxify:{variant} {metadata.version('detoxify')} sha256:{digest.hexdigest()[:16]}")

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The score it calls toxicity."""
        scores = [math.nan] * len(texts)
        places = [place for place, text in enumerate(texts) if has_words(text)]
        for start in range(0, len(places), ROWS):
            chosen = places[start : start + ROWS]
            found = self.model.predict([texts[place] for place in chosen])["toxicity"]
            for place, score in zip(chosen, found, strict=True):
                scores[place] = in_range(float(score))
        return scores


def perspective_question(text: str, model: str) -> dict[str, Any]:  # noqa: ARG001
    """What the Perspective API wants to be asked; texts are not kept there."""
    return {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}}, "languages": ["en"], "doNotStore": True}


def perspective_score(answer: Any) -> float:
    """Its score of a text. Raises KeyError, TypeError or ValueError for something else."""
    return number_in(answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"])


def moderation_question(text: str, model: str) -> dict[str, Any]:
    """What a moderation service wants to be asked."""
    return {"input": text} | ({"model": model} if model else {})


def moderation_score(answer: Any) -> float:
    """The highest of its categories. Raises KeyError, TypeError, IndexError or ValueError for something else."""
    return max(number_in(score) for score in dict(answer["results"][0]["category_scores"]).values())


def number_in(score: Any) -> float:
    """A number from 0 to 1. Raises ValueError for anything else."""
    if math.isnan(number := in_range(score)):
        raise ValueError(f"{score!r} is no number from 0 to 1")
    return number


SERVICES = {"perspective": (perspective_question, perspective_score), "moderation": (moderation_question, moderation_score)}
"""How each kind of service is asked, and how its answer is read."""


@dataclass(slots=True)
class Service:
    """A service over HTTP. Each text is asked once; `problems` is why texts got no score, and how many."""

    kind: str
    endpoint: Endpoint
    model: str = ""
    problems: dict[str, int] = field(default_factory=dict)

    @classmethod
    def at(cls, kind: str, url: str) -> Service:
        """A service at an address, its model after a `#`. The key comes from the environment. Raises BadInput for no address."""
        address, _, model = url.partition("#")
        return cls(kind, Endpoint.at(address, KEY if os.environ.get(KEY) else None), model)

    @property
    def identity(self) -> str:
        """Address and model, as far as a version is told; of what runs elsewhere there is no hash."""
        return f"{self.kind} {self.endpoint.name} {self.model or 'version not told'}, no hash"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Ask about every text that has words in it."""
        build, read = SERVICES[self.kind]
        questions: Mapping[str, dict[str, Any]] = {text: build(text, self.model) for text in texts if has_words(text)}
        scores: dict[str, float] = {}
        self.problems = {}
        for text, found in ask_all(self.endpoint, "", questions, read):
            if isinstance(found, Unanswered):
                self.problems[str(found)] = self.problems.get(str(found), 0) + 1
            else:
                scores[text] = found
        for problem, count in self.problems.items():
            console.print(f"no score for {count} of {len(questions)} texts: {problem}", highlight=False, markup=False)
        return [scores.get(text, math.nan) for text in texts]
