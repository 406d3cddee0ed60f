"""What every family must show: our batches, samples, scores, files and updates against the stock model, text by text.

The texts are longer than every window, chunk and sparse index of the small models, of very different lengths, and some
share a prompt.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from support.family_models import CONTEXT, PAD, VOCABULARY, WINDOW, small_config, small_model
from torch import Tensor

from instructgpt.config import make_config
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.data.pretraining_text import train_tokenizer
from instructgpt.errors import InputError
from instructgpt.models.families import max_context
from instructgpt.models.policy import completion_logp, context_length, load_policy, per_token_outputs, save_policy
from instructgpt.models.reward_model import load_reward_model, new_reward_model, save_reward_model
from instructgpt.sampling.engine import cache_bytes_per_token, sample_tokens
from instructgpt.sampling.random_streams import default_stream_keys, draw_uniforms
from instructgpt.train import ppo
from instructgpt.train.ppo import PPOConfig

CPU = torch.device("cpu")
NEW_TOKENS = 24
"""Sampled tokens: more than any window of the small models."""
TOLERANCE = 5e-5
TEXTS = ["the cat sat on a mat", "why", "birds sing in the morning when rain falls near the old house", "a dog"]


@functools.cache
def _tokenizer() -> Any:
    return train_tokenizer(TEXTS * 3, VOCABULARY)


def save_small_model(family: str, folder: Path, **changes: Any) -> Path:
    """Save a small model of a family with a tokenizer. -> its directory."""
    small_model(family, **changes).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def save_window_variants(family: str, folder: Path) -> Iterator[Path]:
    """Save the family's model without the windows of its layers, or with some where its default has none."""
    config = small_config(family).get_text_config()
    if not hasattr(config, "sliding_window"):
        return
    kinds = getattr(config, "layer_types", None)
    has_windows = bool(config.sliding_window) and (kinds is None or "sliding_attention" in kinds)
    changes: dict[str, Any] = {"sliding_window": None if has_windows else WINDOW}
    if hasattr(config, "use_sliding_window"):
        changes |= {"use_sliding_window": not has_windows, "max_window_layers": 2}
    if kinds is not None and set(kinds) <= {"sliding_attention", "full_attention"}:
        changes["layer_types"] = ["full_attention" if has_windows else "sliding_attention", "full_attention"] * 2
        changes["sliding_window"] = config.sliding_window or WINDOW
    try:
        model = save_small_model(family, folder / "variant", **changes)
        stock_logits(transformers.AutoModelForCausalLM.from_pretrained(model), [2, 3])
    except Exception:  # the family's configuration does not allow the change
        return
    yield model


def _tokens(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(PAD + 1, VOCABULARY - 20, (length,), generator=generator).tolist()


def examples(context: int) -> list[TokenizedExample]:
    """Make a batch of texts as long as the context, very short ones, and some that share a prompt."""
    shared = _tokens(13, 7)
    long = TokenizedExample(_tokens(30, 1), _tokens(context - 30, 2))
    short = [TokenizedExample(_tokens(1, 3), _tokens(2, 4)), TokenizedExample(_tokens(4, 5), _tokens(1, 6))]
    return [short[0], long, *(TokenizedExample(shared, _tokens(n, n)) for n in (3, 21, 9)), short[1]]


PROMPTS = [_tokens(length, 100 + length) for length in (1, 29, 3, 12, 5)]


def _load_both(folder: Path) -> tuple[Any, Any, Any]:
    """Load a policy, its tokenizer, and the stock model."""
    model, tokenizer = load_policy(folder, CPU)
    return model, tokenizer, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def stock_logits(model: Any, tokens: list[int]) -> Tensor:
    """Compute the logits of one text by transformers' own forward pass, without a cache. -> (T, V)."""
    logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def _example_logits(model: Any, row: TokenizedExample) -> Tensor:
    return stock_logits(model, row.prompt_ids + row.completion_ids)[len(row.prompt_ids) - 1 : -1]


def assert_close(ours: Tensor, expected: Tensor, what: str) -> None:
    """Compare to rounding, relative to the largest number."""
    difference = float((ours - expected).abs().max()) / max(0.1, float(expected.abs().max()))
    assert ours.isfinite().all(), f"{what}: not finite"
    assert difference < TOLERANCE, f"{what}: off by {difference:.1g}"


def uses(folder: Path, attention: str) -> bool:
    """Return whether a model is loaded with an implementation of attention."""
    return bool(load_policy(folder, CPU)[0].config._attn_implementation == attention)


def uses_cache(folder: Path) -> bool:
    """Return whether a model is sampled with a KV cache."""
    return cache_bytes_per_token(load_policy(folder, CPU)[0]) is not None


def check_batches(folder: Path) -> None:
    """Compare logits of a batch's completion tokens, and gradients of their log-likelihood, with those text by text."""
    model, _, stock = _load_both(folder)
    rows = examples(context_length(model))
    with torch.no_grad():
        ours = per_token_outputs(model, collate(rows), lambda logits, _: logits)[0]
        expected = torch.cat([_example_logits(stock, row) for row in rows])
    assert float(expected.std()) > 0.005, "the small model's logits hardly differ"
    assert_close(ours, expected, "logits")
    rows = rows[2:]
    completion_logp(model, collate(rows)).sum().backward()
    for row in rows:
        logp = _example_logits(stock, row).log_softmax(-1)
        logp.gather(1, torch.tensor(row.completion_ids)[:, None]).sum().backward()
    gradients = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    found = dict(model.named_parameters())
    for name, gradient in gradients.items():
        assert found[name].grad is not None, f"{name} has no gradient"
        assert float((found[name].grad - gradient).abs().max()) < 2 * TOLERANCE * largest, f"gradient of {name}"


@torch.no_grad()
def check_sampling(folder: Path) -> None:
    """Compare samples of prompts of different lengths, and their logp, with the distributions of the stock model."""
    model, tokenizer, stock = _load_both(folder)
    samples = sample_tokens(
        model, PROMPTS, stop_tokens=list(tokenizer.stop_tokens), max_tokens=NEW_TOKENS, seed=3, max_rows=3
    )
    uniforms = draw_uniforms(3, default_stream_keys(len(PROMPTS)), NEW_TOKENS)
    for prompt, sample, row in zip(PROMPTS, samples, uniforms, strict=True):
        logp = _example_logits(stock, TokenizedExample(prompt, sample.tokens)).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]
        assert_close(torch.tensor(sample.logp), expected, "logp of samples")
        cumulative = logp.double().exp().cumsum(-1)
        for step, token in enumerate(sample.tokens):  # the token whose share of the unit interval holds the number
            before = float(cumulative[step, token - 1]) if token else 0.0
            assert before - 1e-4 <= float(row[step]) <= float(cumulative[step, token]) + 1e-4, "sampled token"


@torch.no_grad()
def check_scores(folder: Path, target: Path) -> bool:
    """Compare a reward model's scores of a batch with the stock classifier's text by text, and after loading.

    Returns whether transformers has such a classifier.
    """
    try:
        reward = new_reward_model(folder, CPU, seed=1)
    except InputError:
        return False
    rows = examples(context_length(reward.model))
    scores, reward.offset = reward.score(rows), 0.5
    target.mkdir()
    save_reward_model(reward, target)
    stock, report = transformers.AutoModelForSequenceClassification.from_pretrained(target, output_loading_info=True)
    _assert_complete(report)
    expected = [stock.eval()(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0, 0] for row in rows]
    assert_close(scores, torch.stack(expected), "scores")
    assert_close(load_reward_model(target, CPU).score(rows) + 0.5, scores, "scores after loading")
    return True


def _assert_complete(report: dict[str, Any]) -> None:
    assert not report["missing_keys"], f"missing: {sorted(report['missing_keys'])[:3]}"
    assert not report["unexpected_keys"], f"unexpected: {sorted(report['unexpected_keys'])[:3]}"


def check_saving(folder: Path, target: Path) -> None:
    """Load the saved model with stock transformers: all weights, the same logits."""
    model, tokenizer, stock = _load_both(folder)
    save_policy(model, tokenizer, target)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    _assert_complete(report)
    text = _tokens(20, 9)
    with torch.no_grad():
        assert_close(stock_logits(again.eval(), text), stock_logits(stock, text), "logits after saving")


def save_reward(folder: Path) -> Path:
    """Save a small reward model of another family with the same tokenizer. -> its directory."""
    base = save_small_model("llama", Path(folder) / "reward base")
    target = Path(folder) / "llama reward"
    target.mkdir()
    save_reward_model(new_reward_model(base, CPU, 0), target)
    return target


def check_ppo(folder: Path, reward: Path, workplace: Path) -> None:
    """Do one update of PPO-ptx by the command itself, which compares sampling with training, saves, and loads."""
    workplace.mkdir()
    prompts, corpus = workplace / "prompts.jsonl", workplace / "corpus.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS), encoding="utf-8")
    corpus.write_text("".join(json.dumps({"text": f"{text} {n}. " * 30}) + "\n" for n, text in enumerate(TEXTS * 4)))
    files = {"policy": str(folder), "reward": reward, "prompts": (prompts,), "pretraining": (corpus,)}
    sizes = {"episodes": 4, "batch": 4, "minibatch": 4, "max_tokens": 12, "ptx_ratio": 0.5, "lr": 1e-3, "ema": 0.0}
    ppo.main(make_config(PPOConfig, {**files, **sizes, "out": workplace / "ppo", "device": "cpu"}))
    before, after = (dict(load_policy(one, CPU)[0].named_parameters()) for one in (folder, workplace / "ppo"))
    moved = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert len(moved) > 5, f"only {moved} were trained"  # towers for images and sound are not


def context_of(family: str) -> int:
    """Return the context of the small model, which is at most that of its configuration."""
    return min(CONTEXT, max_context(small_config(family)))
