"""Rows that enter and leave a batch: each samples as it would by itself, to the bit."""

import random

import pytest
import torch
from conftest import CONTEXT, CPU, FAMILIES

from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.models.policy import completion_logp, load_policy
from instructgpt.sampling import row_batch
from instructgpt.sampling.decoder import SamplingParams
from instructgpt.sampling.row_batch import Row, RowBatch, prompt_token_logps

LOTS = 2**30


@pytest.fixture(scope="module")
def models(save):
    return {family: load_policy(save(family), CPU)[0] for family in FAMILIES}


def random_rows(count, generator, **options):
    """Rows with prompts and lengths of all sizes, some prompts twice, and four kinds of sampling."""
    prompts = [tuple(generator.randrange(200) for _ in range(generator.randint(1, 30))) for _ in range(count)]
    prompts = [generator.choice(prompts[: i + 1]) if i % 3 == 0 else prompt for i, prompt in enumerate(prompts)]
    kinds = [(1.0, 1.0), (0.0, 1.0), (0.7, 0.9), (1.3, 1.0)]
    return [
        Row(
            prompt,
            SamplingParams((generator.randrange(200),), *generator.choice(kinds)),
            generator.randint(1, 30),
            i,
            **options,
        )
        for i, prompt in enumerate(prompts)
    ]


def copy_of(row):
    return Row(row.prompt, row.params, row.max_tokens, row.seed, row.index, row.num_top_logps)


def sample_alone(model, row):
    batch, logps = RowBatch(model, 64, LOTS), []
    batch.add(row)
    while not row.is_finished:
        logps += [logp for _, logp in batch.step()]
    return row.tokens, logps


def run_together(batch, rows, generator):
    """Let rows enter and leave at random steps; return each row's logps."""
    waiting, logps = list(rows), {id(row): [] for row in rows}
    while waiting or batch.rows:
        while waiting and batch.fits(waiting[0]) and generator.random() < 0.95:
            batch.add(waiting.pop(0))
        if batch.rows:
            for row, logp in batch.step():
                logps[id(row)].append(logp)
            batch.remove([row for row in batch.rows if row.is_finished])
    return [logps[id(row)] for row in rows]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_row_is_the_same_alone_and_among_64(models, family):
    """Tokens and logps are equal to the bit, whatever enters and leaves beside a row."""
    generator = random.Random(family)
    rows = random_rows(72, generator, num_top_logps=3)
    alone = {row.seed: sample_alone(models[family], copy_of(row)) for row in generator.sample(rows, 18)}
    batch = RowBatch(models[family], 64, LOTS)
    logps = run_together(batch, rows, generator)
    together = {row.seed: (row.tokens, logp) for row, logp in zip(rows, logps, strict=True)}
    assert {seed: together[seed] for seed in alone} == alone
    assert batch.cache.num_slots >= 32
    assert len({len(row.tokens) for row in rows}) > 10


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox"])
def test_little_memory_changes_nothing(models, family):
    """The cache shrinks and grows; rows wait until they fit."""
    generator = random.Random(1)
    rows = random_rows(14, generator)
    alone = [sample_alone(models[family], copy_of(row))[0] for row in rows]
    batch = RowBatch(models[family], 64, LOTS)
    batch.max_cells = 6 * row_batch.COLUMN_MULTIPLE
    sizes = set()
    add = batch.add
    batch.add = lambda row: (add(row), sizes.add(len(batch.rows)))
    run_together(batch, rows, generator)
    assert [row.tokens for row in rows] == alone
    assert max(sizes) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_logps_equal_the_trainers_forward(models, family):
    rows = [row for row in random_rows(6, random.Random(5), num_top_logps=2) if len(row.prompt) > 1]
    for row in rows:
        _, logps = sample_alone(models[family], row)
        with torch.no_grad():
            expected = completion_logp(models[family], collate([TokenizedExample(list(row.prompt), row.tokens)]))
            prompt_logps = completion_logp(
                models[family], collate([TokenizedExample([row.prompt[0]], list(row.prompt[1:]))])
            )
        torch.testing.assert_close(torch.tensor([x.logp for x in logps]), expected, atol=1e-5, rtol=0)
        echoed = prompt_token_logps(models[family], row.prompt, 2, chunk_rows=7)
        assert echoed[0].logp is None
        assert [x.token for x in echoed] == list(row.prompt)
        torch.testing.assert_close(torch.tensor([x.logp for x in echoed[1:]]), prompt_logps, atol=1e-5, rtol=0)
        assert all(len(x.top) == 2 and x.top[0][1] >= max(x.top[1][1], x.logp) for x in echoed[1:])


def test_n_rows_share_one_prefill_also_when_they_enter_later(models):
    batch = RowBatch(models["llama"], 64, LOTS)
    rows = [Row((1, 2, 3, 4), SamplingParams(()), 10, 0, index) for index in range(5)]
    assert [batch.add(row) for row in rows[:3]] == [True, False, False]
    batch.step()
    batch.remove(rows[:1])
    assert not batch.add(rows[3])
    assert not batch.add(rows[4])


def test_a_new_row_has_its_first_token_before_the_others_have_another(models):
    """A step after a prefill costs no forward pass: it samples from the prefill's logits."""
    batch = RowBatch(models["llama"], 64, LOTS)
    first, second = (Row(prompt, SamplingParams(()), 10, 0) for prompt in ((1, 2, 3), (4, 5)))
    batch.add(first)
    batch.step()
    batch.step()
    batch.add(second)
    assert [row for row, _ in batch.step()] == [second]
    assert [row for row, _ in batch.step()] == [first, second]
    assert (len(first.tokens), len(second.tokens)) == (3, 2)


def test_no_cache(models, monkeypatch):
    """Families without an exact cache are computed again for each token."""
    rows = random_rows(6, random.Random(2))
    expected = [sample_alone(models["gpt2"], copy_of(row))[0] for row in rows]
    monkeypatch.setattr(row_batch, "cache_bytes_per_token", lambda _: None)
    batch = RowBatch(models["gpt2"], 4, LOTS)
    run_together(batch, rows, random.Random(3))
    assert [row.tokens for row in rows] == expected
    assert not batch.cache.key_values


def test_the_whole_context_can_be_filled(models):
    row = Row(tuple(range(CONTEXT - 5)), SamplingParams(()), 6, 0)
    assert len(sample_alone(models["gpt2"], row)[0]) == 6
