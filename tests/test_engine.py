"""Batched, cached, ragged sampling against a naive loop; log-probabilities against the trainer's forward.

pytest tests/test_engine.py
"""

import math

import pytest
import torch
from conftest import CONTEXT, CPU, FAMILIES
from scipy import stats

from instructgpt.data.batches import Example, collate
from instructgpt.errors import BadInput
from instructgpt.generate import engine
from instructgpt.generate.engine import sample
from instructgpt.generate.text import continue_text, generate, read_by
from instructgpt.models.load import completion_logp, load_policy
from instructgpt.records import Prompt

PROMPTS = [[5, 9, 70], [40], [3, 3, 3, 8, 100, 21, 77, 50], [33, 90, 12, 4], [7, 150]]
TOKENS = 12


@pytest.fixture(scope="module")
def models(save):
    return {family: load_policy(save(family), CPU)[0] for family in FAMILIES}


@torch.no_grad()
def naive(model, prompt, uniforms, eos, temperature):
    """One row, one token at a time, the whole row computed anew: the first token whose cumulative probability exceeds u."""
    tokens = list(prompt)
    for u in uniforms.tolist():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        if temperature == 0:
            token = max(range(len(logits)), key=logits.tolist().__getitem__)
        else:
            weights = (logits.double() / temperature).softmax(0).tolist()
            total, token = 0.0, -1
            while total <= u and token + 1 < len(weights):
                token += 1
                total += weights[token]
        tokens.append(token)
        if token == eos:
            break
    return tokens[len(prompt) :]


def uniform_numbers(seed):
    """The documented stream: one double a token, row after row, from the seed."""
    return torch.rand(len(PROMPTS), TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def an_early_end(model, prompts=PROMPTS):
    """A token that some rows sample early and others do not, so that rows end at different times."""
    free = [one.tokens for one in sample(model, prompts, eos=-1, max_tokens=TOKENS, seed=1)]
    return max(sorted({row[2] for row in free}), key=lambda token: sum(token in row for row in free) % len(free))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_sampling_equals_a_naive_loop(models, family, temperature):
    model, uniforms = models[family], uniform_numbers(1)
    eos = an_early_end(model)
    got = sample(model, PROMPTS, eos=eos, max_tokens=TOKENS, seed=1, temperature=temperature)
    expected = [naive(model, prompt, row, eos, temperature) for prompt, row in zip(PROMPTS, uniforms, strict=True)]
    assert [one.tokens for one in got] == expected
    assert [one.finished for one in got] == [row[-1] == eos for row in expected]
    if temperature == 1.0:
        lengths = {len(one.tokens) for one in got}
        assert len(lengths) > 1, "the rows of this test must end at different times"


@pytest.mark.parametrize("family", FAMILIES)
def test_logp_equals_the_trainers_forward(models, family):
    model = models[family]
    got = sample(model, PROMPTS, eos=an_early_end(model), max_tokens=TOKENS, seed=1)
    batch = collate([Example(prompt, one.tokens) for prompt, one in zip(PROMPTS, got, strict=True)])
    with torch.no_grad():
        trained = completion_logp(model, batch)
    torch.testing.assert_close(torch.tensor([number for one in got for number in one.logp]), trained, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logp_carries_the_temperature(models):
    (one,) = sample(models["llama"], PROMPTS[:1], eos=-1, max_tokens=1, seed=0, temperature=0.5)
    logits = models["llama"](input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    assert one.logp[0] == pytest.approx(float((logits / 0.5).log_softmax(0)[one.tokens[0]]), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_wave_size_nor_compaction_changes_a_completion(models, family, monkeypatch):
    prompts = PROMPTS * 4
    eos = an_early_end(models[family], prompts)
    plain = sample(models[family], prompts, eos=eos, max_tokens=TOKENS, seed=1)
    assert len({len(one.tokens) for one in plain}) > 2
    for rows, share in ((3, 1.1), (1, 0.75), (256, 1.1), (256, 0.0)):
        monkeypatch.setattr(engine, "WAVE_ROWS", rows)
        monkeypatch.setattr(engine, "COMPACT_BELOW", share)
        again = sample(models[family], prompts, eos=eos, max_tokens=TOKENS, seed=1)
        assert [one.tokens for one in again] == [one.tokens for one in plain]
        for one, other in zip(plain, again, strict=True):
            assert one.logp == pytest.approx(other.logp, abs=1e-5)


def test_a_completion_depends_on_its_prompt_index_and_seed_alone(models):
    model = models["llama"]
    alone = sample(model, PROMPTS[:2], eos=-1, max_tokens=TOKENS, seed=3)
    among = sample(model, PROMPTS, eos=-1, max_tokens=TOKENS, seed=3)
    other = sample(model, PROMPTS, eos=-1, max_tokens=TOKENS, seed=4)
    assert [one.tokens for one in alone] == [one.tokens for one in among[:2]]
    assert [one.tokens for one in other] != [one.tokens for one in among]
    twice = sample(model, [PROMPTS[0]] * 2, eos=-1, max_tokens=TOKENS, seed=3)
    assert twice[0].tokens != twice[1].tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_frequencies_are_the_softmax_of_the_logits(models, family):
    """A chi-square test over the first token of many completions, at temperature 1, without top-k or top-p."""
    count = 2048
    model = models[family]
    first = [one.tokens[0] for one in sample(model, [PROMPTS[0]] * count, eos=-1, max_tokens=1, seed=11)]
    expected = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1].double().softmax(0) * count
    seen = torch.bincount(torch.tensor(first), minlength=len(expected)).double()
    common = expected >= 5  # the rare ones together
    pooled = [torch.cat([x[common], x[~common].sum()[None]]).detach().numpy() for x in (seen, expected)]
    assert len(pooled[0]) > 20
    assert stats.chisquare(*pooled, sum_check=False).pvalue > 1e-3


def test_choose_by_hand():
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert engine.choose(logits, uniforms, 1.0).tolist() == [0, 0, 2, 2, 3, 3], "a token without probability is never taken"
    assert engine.choose(logits[:1, [1, 0, 2, 3]], uniforms[:1], 1.0).tolist() == [1], "not even where the number is 0"
    # temperature 1/2 squares: 1/6, 0, 4/6, 1/6
    assert engine.choose(logits, uniforms, 0.5).tolist() == [0, 2, 2, 2, 2, 3]


def test_ends_at_end_of_text_and_only_there(models):
    model = models["llama"]
    (free,) = sample(model, PROMPTS[:1], eos=-1, max_tokens=TOKENS, seed=1)
    assert (len(free.tokens), len(free.logp), free.finished) == (TOKENS, TOKENS, False)
    place = next(i for i in range(3, TOKENS) if free.tokens[i] not in free.tokens[:i])
    (ended,) = sample(model, PROMPTS[:1], eos=free.tokens[place], max_tokens=TOKENS, seed=1)
    assert (ended.tokens, ended.finished) == (free.tokens[: place + 1], True)
    (last,) = sample(model, PROMPTS[:1], eos=free.tokens[place], max_tokens=place, seed=1)
    assert not last.finished, "cut off one token before its end"


def test_prompts_that_do_not_fit_are_refused(models):
    model = models["gpt2"]
    assert len(sample(model, [[1] * (CONTEXT - 4)], eos=-1, max_tokens=4, seed=0)[0].tokens) == 4
    for prompt in ([1] * (CONTEXT - 3), []):
        with pytest.raises(BadInput, match=rf"prompt 2 has {len(prompt)} tokens"):
            sample(model, [[1], prompt], eos=-1, max_tokens=4, seed=0)
    assert sample(model, [], eos=-1, max_tokens=4, seed=0) == []


def test_generated_text_and_tokens_belong_together(policy):
    model, render = policy
    answers = generate(model, render, [Prompt(prompt="Name a frog."), Prompt(prompt="서울")], max_tokens=6, seed=0, per_prompt=2)
    assert [answer.prompt.text for answer in answers] == ["Name a frog."] * 2 + ["서울"] * 2
    assert all(answer.text == render.text(answer.tokens) for answer in answers)
    same = read_by(render, render, answers)
    assert [example.completion for example in same] == [answer.tokens for answer in answers]


def test_continuations_are_cut_before_the_stop(policy):
    model, render = policy
    (one,) = sample(model, [render.plain("A frog")], eos=render.eos, max_tokens=20, seed=0, temperature=0.0)
    whole = render.text(one.tokens)
    stop = whole[3]
    assert continue_text(model, render, ["A frog"], max_tokens=20, seed=0, stop=stop) == [(whole[: whole.index(stop)], True)]
    assert continue_text(model, render, ["A frog"], max_tokens=20, seed=0, stop="☃") == [(whole, one.finished)]


def test_logp_of_a_long_completion_is_exact(models):
    """The cache stays in step with the positions up to the last token of the context."""
    model = models["gpt2"]
    (one,) = sample(model, [[1, 2]], eos=-1, max_tokens=CONTEXT - 2, seed=5)
    with torch.no_grad():
        trained = completion_logp(model, collate([Example([1, 2], one.tokens)]))
    assert torch.tensor(one.logp).sub(trained).abs().max() < 1e-5
    assert math.isfinite(sum(one.logp))
