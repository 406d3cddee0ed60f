"""The file of guards, its scorers and their curve, against slow definitions and hand-worked numbers."""

import json
import math
import random

import pytest
import torch
from support.endpoint import serving
from support.serving import run_endpoint

from instructgpt.cli import run_command
from instructgpt.errors import InputError, RunError
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Prompt
from instructgpt.serve.app import EndpointState
from instructgpt.serve.guard.checking import GuardSet
from instructgpt.serve.guard.curve import LabeledText, curve_points, guard_auc
from instructgpt.serve.guard.scorers import GuardedText, load_guard_scorer
from instructgpt.serve.guard.settings import GuardSettings, read_guard_file
from instructgpt.serve.guard.word_list import WordList

USER = [{"role": "user", "content": "Where is Seoul?"}]


@pytest.mark.parametrize(
    ("entry", "text", "count"),
    [
        ("bomb", "How to build a BOMB?", 1),
        ("bomb", "The bombastic speech", 0),
        ("bomb*", "bombs, bombing and a bombastic bomb", 4),
        ("bomb*", "bombs and bombs", 1),
        ("pick a lock", "pick  a\nlock", 1),
        ("bomb", "b\u200bo\u00admb", 1),
        ("bomb", "ｂｏｍｂ", 1),
        ("straße", "STRASSE", 1),
        ("a.b", "a-b", 0),
        ("a.b", "a.b", 1),
        ("c++", "in c++ code", 1),
        ("폭탄*", "폭탄을 만드는 법", 1),
        ("폭탄", "폭탄을 만드는 법", 0),
        ("炸弹", "怎么做炸弹呢", 1),
        ("bomb", "", 0),
    ],
)
def test_word_lists(tmp_path, entry, text, count):
    (tmp_path / "words.txt").write_text(f"# forbidden\n\n{entry}  # a comment\nnever-there\n", encoding="utf-8")
    assert WordList.load(tmp_path / "words.txt")([text, "nothing"]) == [count, 0]


def test_a_long_word_list(tmp_path):
    words = [f"word{number}" for number in range(1_234)]
    (tmp_path / "words.txt").write_text("\n".join(words))
    assert WordList.load(tmp_path / "words.txt")([" ".join(words), "word1233 word12345"]) == [1_234, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "found a list"),
        ("guards: [{name: a", "not valid YAML"),
        ("guards: [{name: a, scorer: x}]", "guards.1: has no threshold"),
        ("guards: [{name: a, scorer: x, at_least: 1, below: 2}]", "one threshold"),
        ("guards: [{name: a, scorer: x, at_leest: 1}]", "did you mean 'at_least'"),
        ("guards: [{name: a, scorer: x, at_least: .nan}]", "finite"),
        ("guards: [{name: a, scorer: x, at_least: 1, reads: answer}]", "'prompt', 'completion' or 'both'"),
        ("gards: []", "did you mean 'guards'"),
        ("guards: [{scorer: x, at_least: 1}]", "guards.1.name: is required"),
        ("guards: [{name: a, scorer: 'words:w'}, {name: a, scorer: 'words:w'}]", "two guards have the name 'a'"),
        ("check_every: -1", "check_every"),
        ("policy: {use_cases: {chat: perhaps}}", "'perhaps': expected allowed"),
    ],
)
def test_bad_guard_files(tmp_path, content, words, capsys):
    (tmp_path / "guard.yaml").write_text(content)
    with pytest.raises(InputError, match=words):
        read_guard_file(tmp_path / "guard.yaml")
    command = ["serve", "--upstream", "http://127.0.0.1:9", "--guard", str(tmp_path / "guard.yaml")]
    assert run_command(command) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "guard.yaml" in error


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        ("nowhere", "guard a: 'nowhere': no scorer"),
        ("words:none.txt", "cannot be read"),
        ("words:empty.txt", "no entry"),
        ("moderation:nonsense", "invalid address"),
        ("detoxify:unheard-of", "no such model"),
    ],
)
def test_scorers_that_cannot_be_loaded(tmp_path, scorer, words):
    (tmp_path / "empty.txt").write_text("# nothing\n*\n")
    with pytest.raises(InputError, match=words):
        load_guard_scorer(GuardSettings(name="a", scorer=scorer, at_least=1.0), tmp_path, 1.0, "cpu")


def test_counts_that_cannot_be_written_are_reported_at_the_start(tmp_path):
    (tmp_path / "guard.yaml").write_text("counts: nowhere/counts.jsonl")
    with pytest.raises(InputError, match="cannot be written"):
        GuardSet.load(read_guard_file(tmp_path / "guard.yaml"))
    (tmp_path / "guard.yaml").write_text("counts: guard.yaml")
    with pytest.raises(InputError, match=r"guard.yaml:1: not a row of counts"):
        GuardSet.load(read_guard_file(tmp_path / "guard.yaml"))


def test_a_reward_model_as_guard(save, save_reward, tmp_path):
    reward = save_reward("llama")
    model = load_reward_model(reward, torch.device("cpu"))

    def score(text):
        prompt = Prompt.model_validate({"messages": USER})
        return float(model.score([model.tokenizer.encode_example(prompt, text, finished=True)])[0])

    with run_endpoint({"policy": save("llama")}) as endpoint:
        fields = {"messages": USER, "max_tokens": 8, "seed": 3, "n": 6}
        plain = endpoint.post("/v1/chat/completions", **fields).json()
        scores = [score(choice["message"]["content"]) for choice in plain["choices"]]
        threshold = sorted(scores)[3]
        guard = {"name": "low", "scorer": str(reward), "reads": "completion", "below": threshold}
        (tmp_path / "guard.yaml").write_text(json.dumps({"guards": [guard]}))
        endpoint.state.guards = GuardSet.load(read_guard_file(tmp_path / "guard.yaml"))
        guarded = endpoint.post("/v1/chat/completions", **fields).json()
        blocked = [choice["finish_reason"] == "content_filter" for choice in guarded["choices"]]
        assert blocked == [x < threshold for x in scores]
        assert sum(blocked) == 3
    with pytest.raises(InputError, match="reads: completion"):
        load_guard_scorer(GuardSettings(name="low", scorer=str(reward), below=0.0), tmp_path, 1.0, "cpu")


def test_our_classifiers_as_guards(tmp_path):
    """A toxicity scorer and a refusal detector, trained by their commands, give their own numbers."""
    generator = random.Random(0)
    places = ["Seoul", "Paris", "the sea", "a house", "winter", "the bank", "my friend", "a cat"]
    rows = [
        {
            "text": f"{'how to kill' if bad else 'how to paint'} {generator.choice(places)} {number}",
            "toxicity": float(bad),
        }
        for number in range(60)
        for bad in (0, 1)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert (
        run_command(["judge", "toxicity", "--data", str(tmp_path / "texts.jsonl"), "--out", str(tmp_path / "t")]) == 0
    )
    guard = GuardSettings(name="t", scorer="t", at_least=0.5)
    scorer = load_guard_scorer(guard, tmp_path, 1.0, "cpu")
    assert guard.is_flagged(scorer.score(GuardedText("how to kill a cat")))
    assert not guard.is_flagged(scorer.score(GuardedText("how to paint a cat")))
    assert math.isnan(scorer.score(GuardedText("!?")))
    assert not guard.is_flagged(math.nan)


def test_a_curve_by_hand():
    guard = GuardSettings(name="g", scorer="words:x", at_least=0.7)
    harmful, safe = [0.9, 0.8, 0.6, 0.3], [0.85, 0.5, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1, 0.1, math.nan]
    texts = [LabeledText(GuardedText("x"), is_harmful) for is_harmful in [True] * 4 + [False] * 10]
    points = {point.threshold: point for point in curve_points(guard, harmful + safe, texts)}
    shares = {x: (point.caught.value, point.false_alarms.value) for x, point in points.items()}
    assert shares == {0.9: (0.25, 0), 0.6: (0.75, 0.1), 0.5: (0.75, 0.2), 0.3: (1, 0.4), 0.7: (0.5, 0.1)}
    low, high = points[0.7].caught.low, points[0.7].caught.high
    z, p, n = 1.959964, 0.5, 4  # Wilson
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-5)
    pairs = [(h > s) + (h == s) / 2 for h in harmful for s in safe[:-1]]
    assert guard_auc(guard, harmful + safe, texts) == pytest.approx(sum(pairs) / len(pairs))
    below = GuardSettings(name="g", scorer="x", below=-0.7)
    mirrored = [-score for score in harmful + safe]
    points = {point.threshold: point for point in curve_points(below, mirrored, texts)}
    assert (points[-0.7].caught.value, points[-0.7].false_alarms.value) == (0.5, 0.1)
    assert points[-0.85].false_alarms.value == 0
    assert guard_auc(below, mirrored, texts) == pytest.approx(sum(pairs) / len(pairs))


def test_the_curve_command(tmp_path, capsys):
    (tmp_path / "words.txt").write_text("kill\nlock\n")
    (tmp_path / "guard.yaml").write_text(
        json.dumps({"guards": [{"name": "words", "scorer": "words:words.txt", "reads": "prompt"}]})
    )
    rows = [
        ("kill and lock", "unsafe"),
        ("lock", "unsafe"),
        ("poison", "unsafe"),
        ("kill a process", "safe"),
        ("hi", "safe"),
    ]
    (tmp_path / "data.csv").write_text("prompt,label\n" + "\n".join(f"{text},{label}" for text, label in rows))
    command = ["serve", "guard", "curve", "--guard", str(tmp_path / "guard.yaml")]
    assert run_command([*command, "--data", str(tmp_path / "data.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 harmful and 2 safe prompts" in lines[1]
    table = {
        line.split("\t")[0]: [x.split(" %")[0] for x in line.split("\t")[1:]] for line in lines[3:] if "\t" in line
    }
    assert table == {"at least 2": ["33.3", "0.0"], "at least 1 *": ["66.7", "50.0"]}
    (tmp_path / "data.csv").write_text("prompt,label\nhi,safe\n")
    assert run_command([*command, "--data", str(tmp_path / "data.csv")]) == 2
    assert "no harmful prompt" in capsys.readouterr().err
    assert run_command(command) == 2
    assert "--data is required" in capsys.readouterr().err


def test_a_service_that_gives_no_number(tmp_path):
    with serving(lambda *_: {"results": []}) as service:
        guard = GuardSettings(name="s", scorer=f"moderation:{service.url}", at_least=0.5)
        scorer = load_guard_scorer(guard, tmp_path, 1.0, "cpu")
        with pytest.raises(RunError):
            scorer.score(GuardedText("some words"))
        assert math.isnan(scorer.score(GuardedText("...")))
    assert EndpointState().policy.decide("chat") == "allowed"
