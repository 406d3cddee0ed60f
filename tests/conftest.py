"""Shared fixtures: small random models of four families, tokenizers of every kind, toy data."""

import copy
import json
import os
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from support.commands import command, kit  # noqa: F401
from support.lists import full  # noqa: F401
from support.site import database_url, postgres_server, postgres_url, reused_database, site  # noqa: F401
from support.tasks import desk  # noqa: F401

from instructgpt.config import make_config
from instructgpt.data.corpus_cache import CACHE_VARIABLE
from instructgpt.data.pretraining_text import train_tokenizer
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.comm import DistInfo
from instructgpt.label import report_cache
from instructgpt.models.policy import load_policy
from instructgpt.models.reward_model import load_reward_model, new_reward_model, save_reward_model
from instructgpt.train import optim, ppo
from instructgpt.train.configs import PPOConfig
from instructgpt.train.reward_functions import Reward

hypothesis.settings.register_profile("same every time", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("same every time")


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory):
    """Keep tokenized text out of the home directory; processes that tests start inherit it."""
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _compute_each_report():
    """Keep no report of a site, however slow the machine is: pages of tests show the newest work."""
    report_cache.MIN_CACHED_SECONDS = float("inf")


CPU = torch.device("cpu")
CONTEXT = 64
FAMILIES = ("gpt2", "llama", "qwen2", "gpt_neox")
TEXT = (
    "What does a frog say? A frog says croak.\n",
    "Name a colour of the sky. The sky is blue by day and black by night.\n",
    "How many legs has a spider? A spider has eight legs, an ant has six.\n",
    "서울은 어디에 있나요? Seoul is in Korea.\n",
    "Write a line about the sea. The sea is wide, the sea is deep 🌊.\n",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Like Llama's, it writes the beginning-of-text token itself."""


def tiny_model(family, vocabulary, eos):
    """Return a random model of width 16 with two layers; its weights are large enough for clearly different logits."""
    torch.manual_seed(FAMILIES.index(family))
    shared = {
        "vocab_size": vocabulary,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": None,
    }
    usual = shared | {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    config = {
        "gpt2": lambda: transformers.GPT2Config(
            n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, **shared
        ),  # dropout 0.1 everywhere
        "llama": lambda: transformers.LlamaConfig(num_key_value_heads=1, **usual),
        "qwen2": lambda: transformers.Qwen2Config(num_key_value_heads=2, tie_word_embeddings=True, **usual),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(rotary_pct=0.5, **usual),
    }[family]()
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tokenizer_with(tokenizer, kind):
    """Return a copy of the tokenizer with other special tokens."""
    changed = copy.deepcopy(tokenizer)
    if kind == "pad_is_eos":
        changed.pad_token = changed.eos_token
    if kind in ("bos", "chat"):
        changed.add_special_tokens({"bos_token": "<|start|>"})
    if kind == "bos":
        changed.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", changed.bos_token_id)]
        )
    if kind == "chat":
        changed.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
        changed.chat_template = CHAT_TEMPLATE
    return changed


def pytest_generate_tests(metafunc):
    if "database_url" in metafunc.fixturenames:
        metafunc.parametrize(
            "database_url", getattr(metafunc.module, "DATABASES", ("sqlite", "postgresql")), indirect=True
        )


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer without padding, beginning-of-text or template."""
    words = train_tokenizer(TEXT * 3, 300)
    words.backend_tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    words.bos_token = None
    return words


@pytest.fixture(scope="session")
def save(tmp_path_factory, tokenizer):
    """Save a random model with a tokenizer, once per session, and return its directory."""
    root = tmp_path_factory.mktemp("models")

    def directory(family="llama", kind="plain"):
        folder = root / f"{family}-{kind}"
        if not folder.exists():
            words = (
                train_tokenizer([line[::-1] for line in TEXT], 280)
                if kind == "foreign"
                else tokenizer_with(tokenizer, kind)
            )
            tiny_model(family, len(words), words.eos_token_id).save_pretrained(folder)
            words.save_pretrained(folder)
        return folder

    return directory


@pytest.fixture(scope="session")
def save_reward(tmp_path_factory, save):
    """Save an untrained reward model with an offset, once per session, and return its directory."""
    root = tmp_path_factory.mktemp("rewards")

    def directory(family="llama", kind="plain", offset=0.75):
        folder = root / f"{family}-{kind}-{offset}"
        if not folder.exists():
            reward = new_reward_model(save(family, kind), CPU, seed=3)
            reward.offset = offset
            folder.mkdir()
            save_reward_model(reward, folder)
        return folder

    return directory


@pytest.fixture
def policy(save):
    """A fresh Llama policy and its tokenizer."""
    return load_policy(save("llama"), CPU)


@pytest.fixture
def reward(save_reward):
    return load_reward_model(save_reward("llama"), CPU)


@pytest.fixture(scope="session")
def render(tokenizer):
    return PromptTokenizer(copy.deepcopy(tokenizer))


@pytest.fixture
def write(tmp_path):
    """Write rows as JSON lines and return the path."""

    def file(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return file


@pytest.fixture
def rows_of():
    return lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def gradients():
    """Return a model's gradients by name, and clear them."""

    def take(model):
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return grads

    return take


@pytest.fixture
def in_two_processes(monkeypatch):
    """Call a function as rank 0 and as rank 1 of two, without all-reduce, and return both results."""

    def call(module, function):
        results = []
        for number in range(2):
            with monkeypatch.context() as patch:
                for target in {module, optim}:
                    patch.setattr(target, "get_model_dist_info", lambda _, number=number: DistInfo(number, 2))
                    patch.setattr(target, "pad_steps", lambda groups, _: groups)
                    patch.setattr(target, "all_reduce_sum", lambda numbers, _: numbers)
                results.append(function())
        return results

    return call


@dataclass
class Scripted:
    """A part of the reward that computes scores from completion tokens by a formula."""

    formula: Any
    name: str = "formula"

    def score(self, completions):
        return torch.tensor([float(self.formula(each.example.completion_ids)) for each in completions]), 0


@pytest.fixture
def small_ppo(write, save, save_reward, tmp_path):
    def config(**options):
        sizes = {
            "episodes": 16,
            "batch": 8,
            "minibatch": 4,
            "max_tokens": 6,
            "lr": 1e-3,
            "value_lr": 1e-3,
            "out": tmp_path / "ppo",
        }
        files = {"policy": str(save()), "reward": save_reward(), "prompts": (write("prompts.jsonl", PROMPTS),)}
        return make_config(PPOConfig, {**files, **sizes}, options)

    return config


@pytest.fixture
def scripted(monkeypatch):
    """Replace the reward model of PPO runs by a formula."""
    load = ppo.load_models

    def use(formula):
        def with_formula(config, run):
            models = load(config, run)
            models.reward = Reward((Scripted(formula),), (1.0,))
            return models

        monkeypatch.setattr(ppo, "load_models", with_formula)

    return use


def assert_same_tensors(first, second, tolerance=1e-6):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(
            tensor, second[name], atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


DEMONSTRATIONS = [
    {"prompt": f"{ask} {animal}?", "completion": f"{answer} {animal}."}
    for animal in ("frog", "cat", "ant", "owl")
    for ask, answer in (("Name a", "A"), ("What is a", "It is a"))
]
RANKINGS = [
    {
        "prompt": f"Name a {animal}",
        "completions": [f"a {animal}", "croak croak", "sky"],
        "ranks": ranks,
        "labeler": labeler,
        "cohort": cohort,
    }
    for animal in ("frog", "cat", "ant", "owl", "hen", "fox")
    for labeler, ranks, cohort in (
        ("ann", [1, 2, 3], "training"),
        ("bob", [1, 2, 2], "training"),
        ("eve", [3, 2, 1], "heldout"),
    )
]
FRESH_RANKINGS = [ranking | {"prompt": ranking["prompt"] + " please"} for ranking in RANKINGS[:6]]
PROMPTS = [{"prompt": line.split("?")[0]} for line in TEXT]
SHORT_PROMPTS = [{"prompt": letter} for letter in "abc"]
CORPUS = [{"text": f"{line.strip()} {n}"} for n in range(30) for line in TEXT]


def weights_of(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")
