"""Batched sampling with a cache against a naive loop; its logp against the forward pass that trains.

pytest tests/sampling/test_engine.py
"""

import math

import numpy as np
import pytest
import torch
import transformers
from conftest import CONTEXT, CPU, FAMILIES
from scipy import stats

from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.errors import InputError
from instructgpt.models import execution
from instructgpt.models.execution import execution_path
from instructgpt.models.lora import BaseModelView, add_lora
from instructgpt.models.packed_attention import use_packed_attention
from instructgpt.models.policy import completion_logp, load_policy
from instructgpt.records import Prompt
from instructgpt.sampling import decoder, engine, kv_cache
from instructgpt.sampling.completions import continue_text, generate, retokenize_for
from instructgpt.sampling.decoder import SamplingParams, inverse_cdf_sample, sample_with_logp
from instructgpt.sampling.engine import sample_tokens

PROMPTS = [[5, 9, 70], [40], [3, 3, 3, 8, 100, 21, 77, 50], [33, 90, 12, 4], [7, 150]]
TOKENS = 12


@pytest.fixture(scope="module")
def models(save):
    return {family: load_policy(save(family), CPU)[0] for family in FAMILIES}


@torch.no_grad()
def naive(model, prompt, uniforms, eos, temperature):
    """Sample a row without a cache: each token is the first whose cumulative probability exceeds u."""
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


def uniforms_of_seed(seed):
    """Draw one double a token from a stream a row, as documented."""
    keys = [np.array([seed, row << 32], dtype=np.uint64) for row in range(len(PROMPTS))]
    return torch.tensor(np.array([np.random.Generator(np.random.Philox(key=key)).random(TOKENS) for key in keys]))


def early_eos(model, prompts=PROMPTS):
    """Find a token that some rows sample early and others do not, so that rows end at different times."""
    free = [one.tokens for one in sample_tokens(model, prompts, stop_tokens=(), max_tokens=TOKENS, seed=1)]
    return max(sorted({row[2] for row in free}), key=lambda token: sum(token in row for row in free) % len(free))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_sampling_equals_a_naive_loop(models, family, temperature):
    model, uniforms = models[family], uniforms_of_seed(1)
    eos = early_eos(model)
    got = sample_tokens(model, PROMPTS, stop_tokens=(eos,), max_tokens=TOKENS, seed=1, temperature=temperature)
    expected = [naive(model, prompt, row, eos, temperature) for prompt, row in zip(PROMPTS, uniforms, strict=True)]
    assert [one.tokens for one in got] == expected
    assert [one.finished for one in got] == [row[-1] == eos for row in expected]
    if temperature == 1.0:
        lengths = {len(one.tokens) for one in got}
        assert len(lengths) > 1, "the rows of this test must end at different times"


@pytest.mark.parametrize("family", FAMILIES)
def test_logp_equals_the_trainers_forward(models, family):
    model = models[family]
    got = sample_tokens(model, PROMPTS, stop_tokens=(early_eos(model),), max_tokens=TOKENS, seed=1)
    batch = collate([TokenizedExample(prompt, one.tokens) for prompt, one in zip(PROMPTS, got, strict=True)])
    with torch.no_grad():
        trained = completion_logp(model, batch)
    torch.testing.assert_close(torch.tensor([number for one in got for number in one.logp]), trained, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logp_includes_the_temperature(models):
    (one,) = sample_tokens(models["llama"], PROMPTS[:1], stop_tokens=(), max_tokens=1, seed=0, temperature=0.5)
    logits = models["llama"](input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    assert one.logp[0] == pytest.approx(float((logits / 0.5).log_softmax(0)[one.tokens[0]]), abs=1e-5)


def assert_same_samples(got, expected):
    assert [(one.tokens, one.finished) for one in got] == [(one.tokens, one.finished) for one in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.logp == pytest.approx(other.logp, abs=1e-5)


@pytest.fixture
def limit_rows(monkeypatch):
    """Limit the rows that fit in memory."""
    return lambda rows: monkeypatch.setattr(engine, "max_batch_rows", lambda *_: rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_and_refilling_do_not_change_completions(models, family, limit_rows, monkeypatch):
    """Few slots, which rows enter one by one or several together, and rare checks for finished rows."""
    prompts = PROMPTS * 4
    eos = early_eos(models[family], prompts)
    plain = sample_tokens(models[family], prompts, stop_tokens=(eos,), max_tokens=TOKENS, seed=1)
    assert len({len(one.tokens) for one in plain}) > 2
    for rows, share, every in ((3, 0.0, 1), (1, 1 / 8, 1), (7, 0.5, 3), (20, 0.0, TOKENS + 5)):
        limit_rows(rows)
        monkeypatch.setattr(engine, "REFILL_FREE_SHARE", share)
        monkeypatch.setitem(decoder.FINISH_CHECK_INTERVAL, "cpu", every)
        assert_same_samples(
            sample_tokens(models[family], prompts, stop_tokens=(eos,), max_tokens=TOKENS, seed=1), plain
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_static_shapes_do_not_change_completions(models, family, limit_rows, monkeypatch):
    """The shapes of CUDA graphs: bucketed numbers of rows and columns, with idle slots."""
    prompts, sizes = PROMPTS * 3, []
    eos = early_eos(models[family], prompts)
    plain = sample_tokens(models[family], prompts, stop_tokens=(eos,), max_tokens=TOKENS, seed=1)
    step = decoder.Decoder.step
    monkeypatch.setattr(
        decoder.Decoder,
        "step",
        lambda self, model, rows, width: (sizes.append((rows, width)), step(self, model, rows, width)),
    )
    monkeypatch.setattr(execution, "GRAPH_DEVICES", ("cpu",))
    monkeypatch.setattr(decoder.Decoder, "run_graph", decoder.Decoder.step)
    monkeypatch.setattr(decoder, "ROW_BUCKETS", (2, 4))
    monkeypatch.setattr(decoder, "COLUMN_BUCKET_SIZE", 8)
    limit_rows(10)
    assert_same_samples(sample_tokens(models[family], prompts, stop_tokens=(eos,), max_tokens=TOKENS, seed=1), plain)
    widest = max(map(len, prompts)) + TOKENS - 1
    assert {rows for rows, _ in sizes} <= {2, 4, 8, 10}
    assert {width for _, width in sizes} <= {8, 16, widest}
    assert len(set(sizes)) < len(sizes) / 2


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    """Let the CPU take the path of CUDA graphs, without the warm-up, which needs streams of CUDA."""
    monkeypatch.setattr(execution, "GRAPH_DEVICES", ("cpu",))
    monkeypatch.setattr(decoder.Decoder, "_warm_up", lambda *_: None)
    yield
    execution.enable_cuda_graphs(True)


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_failed_capture_falls_back_to_eager_steps(models, monkeypatch, capsys):
    """The third capture fails, in the middle of completions: none changes, one message, and no more captures."""
    model, attempts = models["llama"], []
    execution.enable_cuda_graphs(False)
    plain = sample_tokens(model, PROMPTS * 3, stop_tokens=(), max_tokens=TOKENS, seed=1)
    execution.enable_cuda_graphs(True)

    def capture(self, model, rows, width):
        attempts.append((rows, width))
        if len(attempts) == 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: self.step(model, rows, width)

    monkeypatch.setattr(decoder.Decoder, "capture_graph", capture)
    monkeypatch.setattr(decoder, "COLUMN_BUCKET_SIZE", 2)
    for _ in range(2):
        assert_same_samples(sample_tokens(model, PROMPTS * 3, stop_tokens=(), max_tokens=TOKENS, seed=1), plain)
    assert len(attempts) == 3
    assert capsys.readouterr().out.count("could not be captured (operation not permitted") == 1
    assert "without CUDA graphs" in str(execution_path(model))


@pytest.mark.usefixtures("graphs_on_cpu")
@pytest.mark.parametrize("how", ["option", "environment"])
def test_switched_off_nothing_is_captured(models, monkeypatch, how):
    def capture(*_):
        pytest.fail("captured")

    monkeypatch.setattr(decoder.Decoder, "capture_graph", capture)
    assert "with CUDA graphs" in str(execution_path(models["llama"]))
    if how == "option":
        execution.enable_cuda_graphs(False)
    else:
        monkeypatch.setenv(execution.CUDA_GRAPHS_SWITCH, "0")
    assert "without CUDA graphs" in str(execution_path(models["llama"]))
    sample_tokens(models["llama"], PROMPTS, stop_tokens=(), max_tokens=TOKENS, seed=1)


@pytest.mark.usefixtures("graphs_on_cpu")
def test_running_out_of_memory_in_a_capture_is_not_hidden(models, monkeypatch):
    """The restart with smaller microbatches must see it."""

    def capture(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoder.Decoder, "capture_graph", capture)
    with pytest.raises(torch.OutOfMemoryError):
        sample_tokens(models["llama"], PROMPTS, stop_tokens=(), max_tokens=TOKENS, seed=1)


def test_bucket_shapes_by_hand():
    cache = kv_cache.StaticKVCache(100, 300)
    assert [decoder.bucket_shape(rows, 5, cache)[0] for rows in (1, 2, 3, 5, 9, 17, 32, 33, 64, 65, 97)] == [
        1,
        2,
        4,
        8,
        16,
        32,
        32,
        64,
        64,
        96,
        100,
    ]
    assert [decoder.bucket_shape(1, width, cache)[1] for width in (1, 128, 129, 257)] == [128, 128, 256, 300]


@torch.inference_mode()
def test_steps_do_not_change_finished_rows(models):
    """Steps run before a graph is captured, and rows finish between two checks."""
    decode = decoder.Decoder(models["llama"], 4, 20, TOKENS, decoder.SamplingParams(stop_tokens=()))
    decode.add_rows(models["llama"], PROMPTS[:4], torch.rand(4, TOKENS, dtype=torch.float64), [])
    decode.step_all(models["llama"])
    decode.alive[1:3] = False
    decode.step_all(models["llama"])  # writes the column that they were to write
    state = ("next_input", "next_position", "num_sampled", "alive", "uniforms")
    before = [getattr(decode, name).clone() for name in state] + [
        x.clone() for layer in decode.cache.key_values for x in layer
    ]
    decode.step_all(models["llama"])
    after = [getattr(decode, name) for name in state] + [x for layer in decode.cache.key_values for x in layer]
    for x, y in zip(before, after, strict=True):
        torch.testing.assert_close(y[1:3], x[1:3], atol=1e-6, rtol=1e-6)
    assert decode.num_sampled.tolist() == [3, 1, 1, 3]


@pytest.mark.parametrize(("rows", "expected"), [(12, 7 + 3), (4, 7 + 3), (2, 7 + 3)])
def test_equal_prompts_are_prefilled_once(models, limit_rows, monkeypatch, rows, expected):
    """All but the last token of each prompt, also where its rows enter at different times."""
    model = models["llama"]
    prompts = [PROMPTS[2], PROMPTS[3]] * 4 + [PROMPTS[1]] * 4
    eos = early_eos(model, prompts)
    alone = [
        sample_tokens(model, prompts[: row + 1], stop_tokens=(eos,), max_tokens=TOKENS, seed=2)[row]
        for row in range(len(prompts))
    ]
    seen = []
    prefill = decoder.prefill
    monkeypatch.setattr(
        decoder,
        "prefill",
        lambda model, cache, parts: (seen.extend(len(p) for p, _ in parts), prefill(model, cache, parts)),
    )
    limit_rows(rows)
    assert_same_samples(sample_tokens(model, prompts, stop_tokens=(eos,), max_tokens=TOKENS, seed=2), alone)
    assert sum(seen) == expected


def other_families():
    """Configure families with sliding windows shorter than the prompts, or with other caches."""
    usual = {
        "vocab_size": 200,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    usual |= {
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
        "initializer_range": 0.3,
        "max_position_embeddings": CONTEXT,
    }
    kinds = ["sliding_attention", "full_attention"]
    mixed = {
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "layer_types": kinds,
        "head_dim": 8,
    }
    bloom = {"vocab_size": 200, "hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    mamba = {
        "vocab_size": 200,
        "hidden_size": 16,
        "state_size": 4,
        "num_hidden_layers": 2,
        "initializer_range": 0.3,
        "pad_token_id": None,
    }
    return {
        "mistral": (transformers.MistralConfig(num_key_value_heads=1, sliding_window=4, **usual), True),
        "qwen3": (transformers.Qwen3Config(num_key_value_heads=1, head_dim=8, **usual), True),
        "qwen3 with windows": (transformers.Qwen3Config(num_key_value_heads=1, **mixed, **usual), True),
        "bloom": (transformers.BloomConfig(**bloom), False),
        "mamba": (transformers.MambaConfig(**mamba), False),
    }


@pytest.mark.parametrize("name", other_families())
def test_other_families_equal_a_naive_loop(name, limit_rows):
    config, in_slots = other_families()[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    use_packed_attention(model)
    prompts = [[token for token in prompt if token < 200] for prompt in PROMPTS]
    limit_rows(2)
    eos = early_eos(model, prompts)
    for temperature in (0.0, 1.0):
        got = sample_tokens(model, prompts, stop_tokens=(eos,), max_tokens=TOKENS, seed=1, temperature=temperature)
        assert [one.tokens for one in got] == [
            naive(model, p, u, eos, temperature) for p, u in zip(prompts, uniforms_of_seed(1), strict=True)
        ]
    assert (engine.cache_bytes_per_token(model) is not None) == in_slots
    with torch.no_grad():
        trained = completion_logp(
            model, collate([TokenizedExample(prompt, one.tokens) for prompt, one in zip(prompts, got, strict=True)])
        )
    torch.testing.assert_close(torch.tensor([number for one in got for number in one.logp]), trained, atol=1e-5, rtol=0)


def test_cache_bytes_and_batch_rows_by_hand(models, monkeypatch):
    kept = engine.probe_cache(models["llama"])  # 2 layers, keys and values, 1 head of 8 numbers, 4 bytes each
    assert kept == 2 * 2 * 1 * 8 * 4
    monkeypatch.setattr(engine, "CPU_CACHE_BYTES", 10_000)
    assert engine.max_batch_rows(models["llama"], 3_000) == 3
    assert engine.max_batch_rows(models["llama"], 30_000) == 1, "one row is always computed"
    monkeypatch.setattr(engine, "MAX_LOGITS", 2 * models["llama"].config.vocab_size)
    assert engine.max_batch_rows(models["llama"], 100) == 2


def test_completions_depend_on_prompt_index_and_seed_only(models):
    model = models["llama"]
    alone = sample_tokens(model, PROMPTS[:2], stop_tokens=(), max_tokens=TOKENS, seed=3)
    among = sample_tokens(model, PROMPTS, stop_tokens=(), max_tokens=TOKENS, seed=3)
    other = sample_tokens(model, PROMPTS, stop_tokens=(), max_tokens=TOKENS, seed=4)
    assert [one.tokens for one in alone] == [one.tokens for one in among[:2]]
    assert [one.tokens for one in other] != [one.tokens for one in among]
    twice = sample_tokens(model, [PROMPTS[0]] * 2, stop_tokens=(), max_tokens=TOKENS, seed=3)
    assert twice[0].tokens != twice[1].tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_frequencies_are_the_softmax_of_the_logits(models, family):
    """Chi-square test of the first token of many completions, at temperature 1."""
    count = 2048
    model = models[family]
    first = [one.tokens[0] for one in sample_tokens(model, [PROMPTS[0]] * count, stop_tokens=(), max_tokens=1, seed=11)]
    expected = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1].double().softmax(0) * count
    seen = torch.bincount(torch.tensor(first), minlength=len(expected)).double()
    common = expected >= 5  # the rare ones together
    pooled = [torch.cat([x[common], x[~common].sum()[None]]).detach().numpy() for x in (seen, expected)]
    assert len(pooled[0]) > 20
    assert stats.chisquare(*pooled, sum_check=False).pvalue > 1e-3


def test_inverse_cdf_sample_by_hand():
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf_sample(logits.softmax(-1), uniforms).tolist() == [0, 0, 2, 2, 3, 3], (
        "a token without probability is never taken"
    )
    assert inverse_cdf_sample(logits[:1, [1, 0, 2, 3]].softmax(-1), uniforms[:1]).tolist() == [1], (
        "not even where the number is 0"
    )
    # temperature 1/2 squares: 1/6, 0, 4/6, 1/6
    assert sample_with_logp(logits, uniforms, SamplingParams(-1, 0.5))[0].tolist() == [0, 2, 2, 2, 2, 3]


def test_inverse_cdf_sample_over_blocks():
    """Several blocks of the vocabulary, the last not full, and ranges with probability 0."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 3 * decoder.CDF_BLOCK_SIZE + 7, generator=generator) * 3
    logits[:, decoder.CDF_BLOCK_SIZE - 5 : 2 * decoder.CDF_BLOCK_SIZE + 3] = float("-inf")
    logits[:100, : decoder.CDF_BLOCK_SIZE] = float("-inf")
    logits[200:300, 2 * decoder.CDF_BLOCK_SIZE :] = float("-inf")
    uniforms = torch.rand(500, generator=generator, dtype=torch.float64)
    uniforms[::7], uniforms[1::7] = 0.0, 1 - 2**-53
    cumulative = logits.softmax(-1).double().cumsum(-1)
    expected = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(-1)
    chosen = inverse_cdf_sample(logits.softmax(-1), uniforms)
    assert (logits.gather(1, chosen[:, None]) > float("-inf")).all()
    inside = (uniforms > 0) & (uniforms < 1 - 2**-53)
    assert chosen[inside].tolist() == expected[inside].tolist()


def test_top_p_filter_by_hand():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    keeps = lambda top_p, temperature=1.0: decoder.top_p_filter(logits, temperature, top_p).isfinite()[0].tolist()  # noqa: E731
    assert keeps(0.3) == [False, True, False, False]
    assert keeps(0.69) == [False, True, False, True], "the least set that reaches the share"
    assert keeps(0.71) == [False, True, True, True]
    assert keeps(0.6, 0.5) == [False, True, False, True], "of the tempered distribution: 16/30 and 9/30 are the first"
    tokens, logp = decoder.sample_with_logp(
        logits, torch.tensor([0.99], dtype=torch.float64), decoder.SamplingParams(-1, 1.0, 0.69)
    )
    assert (tokens.item(), logp.item()) == (3, pytest.approx(math.log(3 / 7)))


@torch.no_grad()
def test_top_p_samples_from_the_nucleus_only(models):
    model = models["llama"]
    probabilities = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1].double().softmax(0)
    inside, total = [], 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if total < 0.5:
            inside.append(token)
            total += probabilities[token].item()
    got = sample_tokens(model, [PROMPTS[0]] * 600, stop_tokens=(), max_tokens=1, seed=11, top_p=0.5)
    assert {one.tokens[0] for one in got} <= set(inside)
    for one in got[:20]:
        assert one.logp[0] == pytest.approx(math.log(probabilities[one.tokens[0]].item() / total), abs=1e-5)
    everything = sample_tokens(model, PROMPTS, stop_tokens=(), max_tokens=TOKENS, seed=1)
    assert sample_tokens(model, PROMPTS, stop_tokens=(), max_tokens=TOKENS, seed=1, top_p=1.0) == everything


def test_completions_end_at_end_of_text_only(models):
    model = models["llama"]
    (free,) = sample_tokens(model, PROMPTS[:1], stop_tokens=(), max_tokens=TOKENS, seed=1)
    assert (len(free.tokens), len(free.logp), free.finished) == (TOKENS, TOKENS, False)
    place = next(i for i in range(3, TOKENS) if free.tokens[i] not in free.tokens[:i])
    (ended,) = sample_tokens(model, PROMPTS[:1], stop_tokens=(free.tokens[place],), max_tokens=TOKENS, seed=1)
    assert (ended.tokens, ended.finished) == (free.tokens[: place + 1], True)
    (last,) = sample_tokens(model, PROMPTS[:1], stop_tokens=(free.tokens[place],), max_tokens=place, seed=1)
    assert not last.finished, "cut off one token before its end"


def test_prompts_that_do_not_fit_are_refused(models):
    model = models["gpt2"]
    assert len(sample_tokens(model, [[1] * (CONTEXT - 4)], stop_tokens=(), max_tokens=4, seed=0)[0].tokens) == 4
    for prompt in ([1] * (CONTEXT - 3), []):
        with pytest.raises(InputError, match=rf"prompt 2 has {len(prompt)} tokens"):
            sample_tokens(model, [[1], prompt], stop_tokens=(), max_tokens=4, seed=0)
    assert sample_tokens(model, [], stop_tokens=(), max_tokens=4, seed=0) == []


def test_completion_text_is_its_decoded_tokens(policy):
    model, render = policy
    answers = generate(
        model, render, [Prompt(prompt="Name a frog."), Prompt(prompt="서울")], max_tokens=6, seed=0, per_prompt=2
    )
    assert [answer.prompt.prompt for answer in answers] == ["Name a frog."] * 2 + ["서울"] * 2
    assert all(answer.text == render.decode(answer.example.completion_ids) for answer in answers)
    assert [answer.example.prompt_ids for answer in answers] == [
        render.encode_prompt(answer.prompt) for answer in answers
    ]
    assert retokenize_for(render, render, answers) == [answer.example for answer in answers]


def test_continuations_are_cut_before_the_stop(policy):
    model, render = policy
    (one,) = sample_tokens(
        model, [render.encode_text("A frog")], stop_tokens=(render.eos,), max_tokens=20, seed=0, temperature=0.0
    )
    whole = render.decode(one.tokens)
    stop = whole[3]
    assert continue_text(model, render, ["A frog"], max_tokens=20, seed=0, stop=stop) == [
        (whole[: whole.index(stop)], True)
    ]
    assert continue_text(model, render, ["A frog"], max_tokens=20, seed=0, stop="☃") == [(whole, one.finished)]


def test_logp_of_a_long_completion_is_exact(models):
    """Up to the last token of the context."""
    model = models["gpt2"]
    (one,) = sample_tokens(model, [[1, 2]], stop_tokens=(), max_tokens=CONTEXT - 2, seed=5)
    with torch.no_grad():
        trained = completion_logp(model, collate([TokenizedExample([1, 2], one.tokens)]))
    assert torch.tensor(one.logp).sub(trained).abs().max() < 1e-5
    assert math.isfinite(sum(one.logp))


def test_prompts_that_share_all_but_the_last_token(policy):
    """They share their prefill."""
    model, render = policy
    start = render.encode_text("A frog says croak")
    prompts = [[*start, last] for last in (5, 6, 7)]
    together = sample_tokens(model, prompts, stop_tokens=(render.eos,), max_tokens=6, seed=0, temperature=0.0)
    assert [one.tokens for one in together] == [
        sample_tokens(model, [prompt], stop_tokens=(render.eos,), max_tokens=6, seed=0, temperature=0.0)[0].tokens
        for prompt in prompts
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_adapters_equals_a_naive_loop(save, family):
    """Adapters added after the first sampling: the cache is probed again, and the model below samples as before."""
    model, uniforms = load_policy(save(family), CPU)[0], uniforms_of_seed(1)
    plain = sample_tokens(model, PROMPTS, stop_tokens=(), max_tokens=TOKENS, seed=1)
    before = engine._CACHE_PROBES[model][0]
    adapted = add_lora(model, 2, 0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    adapted.eval()
    for one in (adapted, model):  # peft's, and the very model that it changed
        got = sample_tokens(one, PROMPTS, stop_tokens=(), max_tokens=TOKENS, seed=1)
        assert [x.tokens for x in got] == [
            naive(adapted, p, u, -1, 1.0) for p, u in zip(PROMPTS, uniforms, strict=True)
        ]
    assert [x.tokens for x in got] != [x.tokens for x in plain]
    assert engine._CACHE_PROBES[model][0] != before
    assert_same_samples(
        sample_tokens(BaseModelView(adapted), PROMPTS, stop_tokens=(), max_tokens=TOKENS, seed=1), plain
    )
