"""Random numbers of completions: fixed by seed, prompt and number, whatever else is sampled."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from conftest import CPU

from instructgpt.cli import run_command
from instructgpt.models.policy import load_policy
from instructgpt.records import Completion, Prompt, read_records
from instructgpt.sampling import cli
from instructgpt.sampling.completions import generate
from instructgpt.sampling.engine import sample_tokens
from instructgpt.sampling.random_streams import default_stream_keys, draw_uniforms

PROMPTS = [Prompt(prompt=text) for text in ("a b", "c", "the cat sat", "d e f")]


def test_a_stream_is_that_of_its_key():
    keys = [(3, 1), (0, 0), (2**32 - 1, 7), (3, 0)]
    numbers = draw_uniforms(9, keys, 5).numpy()
    for row, (prompt, completion) in zip(numbers, keys, strict=True):
        key = np.array([9, prompt * 2**32 + completion], dtype=np.uint64)
        assert row.tolist() == np.random.Generator(np.random.Philox(key=key)).random(5).tolist()
    assert draw_uniforms(9, keys[:1], 50)[0, :5].tolist() == numbers[0].tolist()  # a longer completion begins alike
    assert draw_uniforms(10, keys, 5)[0, 0] != numbers[0, 0]
    for key in ((-1, 0), (0, 2**32)):
        with pytest.raises(ValueError, match="outside 0 to"):
            draw_uniforms(9, [key], 5)


def test_streams_are_uniform_and_independent():
    numbers = draw_uniforms(1, default_stream_keys(500, 4), 100).numpy()
    assert abs(numbers.mean() - 0.5) < 4 * np.sqrt(1 / 12 / numbers.size)
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8  # chi-square of 19 degrees of freedom, 0.001
    neighbors = np.corrcoef(numbers)[np.triu_indices(2_000, 1)]
    assert abs(neighbors.mean()) < 5 / np.sqrt(len(neighbors) * 100)
    assert neighbors.std() == pytest.approx(1 / np.sqrt(100), rel=0.05)


def test_the_memory_of_a_stream_does_not_depend_on_its_index():
    tracemalloc.start()
    draw_uniforms(0, [(10**9, 10**9)], 256)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_completion_does_not_depend_on_the_others(save, family):
    model, tokenizer = load_policy(save(family), CPU)
    every = generate(model, tokenizer, PROMPTS, max_tokens=9, seed=5, per_prompt=3)
    more = generate(model, tokenizer, [*PROMPTS, Prompt(prompt="new")], max_tokens=12, seed=5, per_prompt=5)
    for prompt in range(len(PROMPTS)):
        for number in range(3):
            short, long = every[3 * prompt + number], more[5 * prompt + number]
            assert long.example.completion_ids[:9] == short.example.completion_ids
    keys = [(2, 1), (0, 2), (3, 0)]
    ids = [tokenizer.encode_prompt(PROMPTS[prompt]) for prompt, _ in keys]
    part = sample_tokens(model, ids, stop_tokens=tokenizer.stop_tokens, max_tokens=9, seed=5, keys=keys)
    assert [row.tokens for row in part] == [every[3 * p + n].example.completion_ids for p, n in keys]


def test_block_size_changes_no_file(save, write, tmp_path, monkeypatch):
    prompts = str(write("prompts.jsonl", [{"prompt": prompt.prompt} for prompt in PROMPTS]))
    files = []
    for block in (1, 5, 256):
        monkeypatch.setattr(cli, "_MAX_BLOCK_ROWS", {"cpu": block})
        files.append(tmp_path / f"{block}.jsonl")
        arguments = ["--model", str(save()), "--prompts", prompts, "--out", str(files[-1]), "--max-tokens", "8"]
        assert run_command(["sample", *arguments, "-n", "4", "--seed", "5"]) == 0
    assert len({file.read_bytes() for file in files}) == 1
    assert len({row.completion for row in read_records(Completion, files[0])}) > 12
