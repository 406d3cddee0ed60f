"""Stop strings: rows end at the token that completes one; their text and record end before it."""

from __future__ import annotations

import random
import string

import pytest
import torch
from conftest import CPU

from instructgpt.cli import run_command
from instructgpt.models.policy import load_policy
from instructgpt.records import Completion, Prompt, read_records
from instructgpt.sampling import decoder, engine
from instructgpt.sampling.completions import continue_text, generate, retokenize_for
from instructgpt.sampling.stop_strings import IncrementalDetokenizer, StopMatcher, StopStrings, cut_at_stop

PROMPTS = [Prompt(prompt=text) for text in ("Name a frog.", "a b", "서울", "the cat sat on", "x")]


@pytest.fixture(scope="module")
def policy(save):
    return load_policy(save(), CPU)


def sample(policy, **options):
    return generate(*policy, PROMPTS, max_tokens=40, seed=3, per_prompt=3, **options)


def shortest_prefix_with(render, tokens, stop):
    """The slow definition: decode all tokens again after each one."""
    for count in range(1, len(tokens) + 1):
        if cut_at_stop(render.decode(tokens[:count]), stop)[1]:
            return tokens[:count]
    return tokens


@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize("slots", [2, 100])
@pytest.mark.parametrize("cached", [True, False])
def test_rows_end_at_the_token_that_completes_a_stop_string(policy, monkeypatch, every, slots, cached):
    _, render = policy
    free = sample(policy)
    texts = [completion.text for completion in free if len(completion.text) > 12]
    stop = (texts[0][4:7], texts[1][6:8], texts[2][9], "☃ never")  # some span tokens
    monkeypatch.setitem(decoder.FINISH_CHECK_INTERVAL, "cpu", every)
    monkeypatch.setattr(engine, "max_batch_rows", lambda *_: slots)
    if not cached:
        monkeypatch.setattr(engine, "cache_bytes_per_token", lambda _: None)
    stopped = sample(policy, stop=stop)
    assert 3 < sum(completion.stopped for completion in stopped) < len(stopped)
    for plain, completion in zip(free, stopped, strict=True):
        expected = shortest_prefix_with(render, plain.example.completion_ids, stop)
        assert completion.example.completion_ids == expected
        assert (completion.text, completion.stopped) == cut_at_stop(plain.text, stop)
        assert completion.finished == (plain.finished and not completion.stopped)
        assert completion.finish == ("stop" if completion.stopped or plain.finished else "length")


def test_a_stop_string_saves_the_steps_after_it(policy, monkeypatch):
    steps = []
    step = decoder.Decoder.step
    monkeypatch.setattr(decoder.Decoder, "step", lambda self, *rest: (steps.append(1), step(self, *rest)))
    sample(policy)
    all_steps = len(steps)
    steps.clear()
    sample(policy, stop=tuple(string.ascii_letters + string.punctuation + string.digits + " "))
    assert all_steps >= 40
    assert len(steps) < all_steps / 3


def test_stop_strings_in_the_prompt_do_not_count(policy):
    (row,) = generate(*policy, [Prompt(prompt="stop stop ☃☃")], max_tokens=5, seed=0, stop=("stop", "☃"))
    assert not row.stopped
    assert len(row.example.completion_ids) == 5 or row.finished


def test_one_string_is_one_stop(policy):
    text = next(row.text for row in sample(policy) if len(row.text) > 12)
    stop = text[4:6]
    assert [row.text for row in sample(policy, stop=stop)] == [row.text for row in sample(policy, stop=(stop,))]
    model, render = policy
    assert continue_text(model, render, ["a"], max_tokens=9, seed=0, stop=()) == continue_text(
        model, render, ["a"], max_tokens=9, seed=0, stop="☃ never"
    )
    with pytest.raises(ValueError, match="empty stop string"):
        sample(policy, stop=("x", ""))


def test_a_stopped_completion_is_scored_without_the_stop_string(policy):
    _, render = policy
    text = next(row.text for row in sample(policy) if len(row.text) > 12)
    rows = sample(policy, stop=(text[4:6],))
    for row, example in zip(rows, retokenize_for(render, render, rows), strict=True):
        if row.stopped:
            assert render.decode(example.completion_ids) == row.text
            assert example.completion_ids[-1] == render.end_of_turn


def test_stream_of_text_equals_decoding_everything(policy):
    """Also in the middle of characters of several bytes, and with bytes that are no text."""
    _, render = policy
    rng = random.Random(4)
    alphabet = "abc 서울é☃🙂\n"
    for _ in range(200):
        tokens = render.encode_text("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12))))
        if rng.random() < 0.5:
            del tokens[rng.randrange(len(tokens))]
        stream = IncrementalDetokenizer(render.decode)
        parts = [stream.push(token) for token in tokens]
        assert "".join(parts) + stream.flush() == render.decode(tokens)
    stream = IncrementalDetokenizer(render.decode)
    parts = [stream.push(token) for token in render.encode_text("🙂🙂")]
    assert [part for part in parts if part] == ["🙂", "🙂"]


def test_stream_of_bytes_that_are_no_text_stays_cheap(policy):
    """Of a long run without a whole character only a bounded part is decoded again, and all of it is returned."""
    _, render = policy
    half = render.encode_text("é")[0]
    sizes = []

    def decode(tokens):
        sizes.append(len(tokens))
        return render.decode(tokens)

    stream = IncrementalDetokenizer(decode)
    text = "".join([stream.push(half) for _ in range(1_000)]) + stream.flush()
    assert text == render.decode([half] * 1_000)
    assert max(sizes) <= 600


def test_matcher_finds_every_string_as_early_as_decoding_everything(policy):
    _, render = policy
    rng = random.Random(5)
    for _ in range(200):
        text = "".join(rng.choice("ab☃é\n ") for _ in range(30))
        start = rng.randrange(28)
        stop = (text[start : start + rng.randint(1, 8)], "zz")
        tokens = render.encode_text(text)
        matcher = StopMatcher(StopStrings(stop, render.decode))
        count = next((index for index, token in enumerate(tokens, 1) if matcher.push(token)), len(tokens))
        assert tokens[:count] == shortest_prefix_with(render, tokens, stop)


def test_every_command_that_samples_takes_the_options(save, save_reward, write, tmp_path, rows_of):
    """`evaluate preference` compares completions that were cut, and says with which options."""
    prompts = str(write("prompts.jsonl", [{"prompt": row.prompt} for row in PROMPTS]))
    plain = tmp_path / "plain.jsonl"
    models = ["--model", str(save())]
    assert run_command(["sample", *models, "--prompts", prompts, "--out", str(plain), "--max-tokens", "12"]) == 0
    letters = sorted({row.completion[2] for row in read_records(Completion, plain) if len(row.completion) > 3})
    letters += ["e", "a", "o", " "]
    options = ["--max-tokens", "12", "--temperature", "0.9", "--top-p", "0.95", "--stop", *letters]
    named = [f"first={save()}", f"second={save('llama')}"]
    evaluate = ["evaluate", "preference", "--data", prompts, "--judge", str(save_reward()), "--model", *named, *options]
    assert run_command([*evaluate, "--out", str(tmp_path / "results.json")]) == 0
    rows = rows_of(next(tmp_path.rglob("completions.jsonl")))
    sampling = {"temperature": 0.9, "max_tokens": 12, "seed": 0, "top_p": 0.95, "stop": letters}
    assert {row["model"] for row in rows} == {"first", "second"}
    assert all(row["sampling"] == sampling for row in rows)
    assert not any(letter in row["completion"] for row in rows for letter in letters)
    assert any(row["finish"] == "stop" for row in rows)


def test_device_of_the_last_tokens(policy):
    """`last_tokens` names counts and tokens of rows of different ages."""
    model, _ = policy
    with torch.inference_mode():
        slots = decoder.Decoder(model, 2, 20, 6, decoder.SamplingParams(stop_tokens=()))
        slots.add_rows(model, [[5, 9]], torch.rand(1, 6, dtype=torch.float64), [])
        slots.step_all(model)
        slots.add_rows(model, [[7]], torch.rand(1, 6, dtype=torch.float64), [[5, 9]])
        for _ in range(2):
            slots.step_all(model)
        sampled = slots.sampled_tokens.tolist()
        assert slots.last_tokens(2) == [(3, sampled[0][1:3]), (2, sampled[1][:2])]
        assert slots.last_tokens(5) == [(3, sampled[0][:3]), (2, sampled[1][:2])]
        slots.end_row(0, 2)
        assert slots.finished_slots() == [0]
        assert slots.remove_rows([0])[0][0][0] == sampled[0][:2]
