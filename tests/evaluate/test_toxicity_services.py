"""Toxicity scorers: detoxify and HTTP services, with malformed answers and outages."""

from __future__ import annotations

import json
import math
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from support.endpoint import serving

from instructgpt.cli import run_command as command
from instructgpt.errors import InputError, RunError
from instructgpt.evaluate.judges import http_client
from instructgpt.evaluate.tasks import real_toxicity
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, ModelReply
from instructgpt.evaluate.toxicity import services
from instructgpt.evaluate.toxicity.services import cached_text_values, load_toxicity_model

SCORES = {"a vile thing": 0.91, "a quiet sea": 0.02, "half and half": 0.5}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Retry without delay."""
    at = http_client.Endpoint.from_url.__func__
    monkeypatch.setattr(
        http_client.Endpoint,
        "from_url",
        classmethod(
            lambda cls, *said: at(cls, *said, backoff_s=0.01, max_attempts=2, timeout_s=5.0, max_concurrency=1)
        ),
    )
    monkeypatch.delenv(services.TOXICITY_KEY_VARIABLE, raising=False)


def perspective(service, question):  # noqa: ARG001
    score = SCORES[question["comment"]["text"]]
    return {
        "attributeScores": {"TOXICITY": {"summaryScore": {"value": score, "type": "PROBABILITY"}}},
        "languages": ["en"],
    }


def moderation(service, question):  # noqa: ARG001
    score = SCORES[question["input"]]
    return {
        "model": "m",
        "results": [{"flagged": False, "category_scores": {"hate": score / 2, "harassment": score, "violence": 0.0}}],
    }


@pytest.mark.parametrize(("kind", "told"), [("perspective", perspective), ("moderation", moderation)])
def test_service_scores_each_text_once(kind, told):
    with serving(told) as service:
        scorer = load_toxicity_model(f"{kind}:{service.url}#some-model")
        found = scorer([*SCORES, "…", "", "a quiet sea"])
        assert found[:3] == [0.91, 0.02, 0.5]
        assert [math.isnan(score) for score in found[3:5]] == [True, True]
        assert found[5] == 0.02
        assert len(service.payloads) == 3
    assert scorer.identity == f"{kind} {service.url} some-model, no hash"


def test_service_requests_have_the_expected_format(monkeypatch):
    monkeypatch.setenv(services.TOXICITY_KEY_VARIABLE, "a-key")
    with serving(perspective) as service:
        load_toxicity_model(f"perspective:{service.url}/comments:analyze?key=other")(["a quiet sea"])
        assert service.payloads[0]["requestedAttributes"] == {"TOXICITY": {}}
        assert service.payloads[0]["doNotStore"] is True
        assert service.keys == ["Bearer a-key"]
        assert service.paths == ["/v1/comments:analyze?key=other"]
    with serving(moderation) as service:
        load_toxicity_model(f"moderation:{service.url}/moderations#omni")(["a quiet sea"])
        assert service.payloads == [{"input": "a quiet sea", "model": "omni"}]


@pytest.mark.parametrize(
    "nonsense",
    [
        {},
        {"attributeScores": {"TOXICITY": {"summaryScore": {"value": "high"}}}},
        {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 7}}}},
        {"attributeScores": {"TOXICITY": {"summaryScore": {"value": None}}}},
        {"error": {"code": 400}},
        [0.3],
    ],
)
def test_malformed_answer_is_unscored_and_reported(nonsense, capsys):
    with serving(
        lambda _, question: nonsense if "vile" in question["comment"]["text"] else perspective(_, question)
    ) as service:
        found = load_toxicity_model(f"perspective:{service.url}")(["a quiet sea", "a vile thing"])
    assert found[0] == 0.02
    assert math.isnan(found[1])
    assert "no score for 1 of 2 texts" in capsys.readouterr().out


def test_outage_stops_with_one_line_and_keeps_scores(tmp_path):
    texts = [f"text {number}" for number in range(600)]

    def breaks_down(service, question):
        if len(service.payloads) > 300:
            return 500, {}, b"oh"
        return {"results": [{"category_scores": {"hate": int(question["input"].split()[1]) / 1000}}]}

    with serving(breaks_down) as service:
        scorer = load_toxicity_model(f"moderation:{service.url}")
        with pytest.raises(RunError, match="answers 500"):
            cached_text_values(tmp_path, "somebody", texts, scorer)
    with serving(
        lambda _, question: {"results": [{"category_scores": {"hate": int(question["input"].split()[1]) / 1000}}]}
    ) as service:
        scorer = load_toxicity_model(f"moderation:{service.url}")
        assert cached_text_values(tmp_path, "somebody", texts, scorer) == [number / 1000 for number in range(600)]
        assert 0 < len(service.payloads) < 600  # the first part was kept
        assert cached_text_values(tmp_path, "somebody else", texts[:1], scorer) == [0.0]
        assert service.payloads[-1] == {"input": "text 0"}  # another judge has its own cache


def test_unscored_texts_are_tried_again(tmp_path):
    told = {"a": math.nan, "b": 0.25}
    assert math.isnan(
        cached_text_values(tmp_path, "judge", ["a", "b"], lambda texts: [told[text] for text in texts])[0]
    )
    told["a"] = 0.75
    asked: list[str] = []
    assert cached_text_values(
        tmp_path, "judge", ["a", "b", "a"], lambda texts: asked.extend(texts) or [told[text] for text in texts]
    ) == [
        0.75,
        0.25,
        0.75,
    ]
    assert asked == ["a"]


def test_rows_name_the_scorer_and_count_failures(tmp_path):
    question = EvalQuestion("1", "none", "x", max_tokens=3, target={"toxicity": 0.9})
    said = ("a vile thing", "half and half", "unheard of")
    asked = [(question, ModelReply(model="m", id="1", condition="none", said=each)) for each in said]
    with serving(perspective) as service:  # hangs up on unknown texts
        rows = real_toxicity.measure(
            asked, EvalSettings(scorer=f"perspective:{service.url}", verdict_cache_dir=tmp_path)
        )
    assert {row.judge for row in rows} == {f"perspective {service.url} version not told, no hash"}
    values = {(row.metric, row.condition): row for row in rows}
    assert values["mean_toxicity", "none"].value == pytest.approx((0.91 + 0.5) / 2)
    assert values["mean_toxicity", "none"].n == 2
    assert values["unscored", "none"].value == pytest.approx(1 / 3)


class Classifier(torch.nn.Module):
    """Like detoxify's: a model, and `predict` from texts to lists of numbers."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.model.weight, 0.5)

    def predict(self, texts):
        return {
            "toxicity": [float("nan") if text == "broken" else SCORES[text] for text in texts],
            "insult": [1.0] * len(texts),
        }


def test_detoxify_scores(monkeypatch):
    asked = []
    package = SimpleNamespace(Detoxify=lambda variant, device: asked.append((variant, device)) or Classifier())
    monkeypatch.setitem(sys.modules, "detoxify", package)
    monkeypatch.setattr(metadata, "version", lambda _: "0.5.4")
    scorer = load_toxicity_model("detoxify:unbiased")
    found = scorer(["a vile thing", "?", "broken", "a quiet sea"])
    assert (found[0], found[3]) == (0.91, 0.02)
    assert math.isnan(found[1])
    assert math.isnan(found[2])
    assert asked == [("unbiased", "cpu")]
    assert scorer.identity.startswith("detoxify:unbiased 0.5.4 sha256:")
    other = Classifier()
    torch.nn.init.constant_(other.model.weight, 0.25)
    package.Detoxify = lambda *_, **__: other
    assert load_toxicity_model("detoxify:unbiased").identity != scorer.identity


def test_detoxify_load_error_is_reported_in_one_line(monkeypatch):
    def fails(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setitem(sys.modules, "detoxify", SimpleNamespace(Detoxify=fails))
    with pytest.raises(InputError, match=r"detoxify:original: cannot be loaded \(no route to host\)"):
        load_toxicity_model("detoxify")


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("detoxify", "pip install detoxify==0.5.4"),
        ("detoxify:huge", "available: original, unbiased"),
        ("perspective:ftp://x", "invalid address"),
        ("perspective:", "no such directory"),
        ("nowhere", "no such directory; expected one made by 'instructgpt judge toxicity'"),
        ("EMPTY", "not a toxicity scorer"),
    ],
)
def test_invalid_scorer_is_reported_before_any_model_runs(said, complaint, save, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "detoxify", None)  # simulates a missing package
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": {"text": "The sea", "toxicity": 0.1}}) + "\n")
    line = [
        "evaluate",
        "real_toxicity",
        "--data",
        str(file),
        "--model",
        str(save("gpt2")),
        "--out",
        str(tmp_path / "results.json"),
    ]
    assert command([*line, "--scorer", str(tmp_path) if said == "EMPTY" else said]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1
    assert not (tmp_path / "results.json").exists()
