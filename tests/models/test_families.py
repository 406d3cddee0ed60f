"""Families of models against stock transformers, refusals by configuration, contexts, adapters, saved types.

pytest tests/models/test_families.py

The whole mapping is measured by `make families`; here are twenty families, one of every kind.
"""

import json
import shutil
import tomllib
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers
from conftest import CPU
from support import family_checks as checks
from support.commands import edit_json
from support.family_models import families, small_config, small_model
from support.pages import read_page
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.errors import InputError
from instructgpt.models import families as table_module
from instructgpt.models.execution import execution_path
from instructgpt.models.families import check_supported, context_notice, load_table, max_context
from instructgpt.models.head import has_plain_head
from instructgpt.models.loading import find_model_files, load_model_config, model_notices
from instructgpt.models.packed_attention import PACKED_ATTENTION
from instructgpt.models.policy import completion_logp, load_policy, save_policy
from instructgpt.models.reward_model import load_reward_model, new_reward_model, save_reward_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft calls it

ROOT = Path(__file__).parents[2]
CHOSEN = [
    "apertus",
    "bart",
    "bert",
    "bloom",
    "cohere2",
    "deepseek_v2",
    "falcon",
    "gemma2",
    "gemma3",
    "gpt_neo",
    "gptj",
    "granite",
    "llama4",
    "mamba",
    "mistral",
    "mpt",
    "olmo2",
    "opt",
    "phi3",
    "qwen3_moe",
]
"""One of every kind: no positions, learned, rotary and additive ones; windows inside and outside of attention, chunks;
capped and scaled logits; nested configurations; experts; latent attention; recurrence; a decoder's part; an encoder."""
UPDATED = {"cohere2", "gemma3", "gpt_neo", "llama4"}
"""Families that also do an update of PPO-ptx here."""


def test_the_table_has_every_name_of_the_mapping():
    missing = set(families()) - set(load_table())
    assert not missing, f"run 'make families', which gives a row to {sorted(missing)}"
    assert "families" in (ROOT / "Makefile").read_text()
    page = read_page("families")
    assert all(f"\n| `{name}` |" in page for name in load_table())


def test_transformers_is_capped_at_the_minor_version_of_the_table():
    table = json.loads((ROOT / "src/instructgpt/models/families.json").read_text())
    major, minor = map(int, table["transformers"].split(".")[:2])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (requirement,) = [one for one in project["optional-dependencies"]["train"] if one.startswith("transformers")]
    assert requirement.endswith(f"<{major}.{minor + 1}")


@pytest.mark.parametrize("family", CHOSEN)
def test_a_family_equals_stock_transformers(family, tmp_path):
    folder = checks.save_small_model(family, tmp_path / "model")
    for variant in (folder, *checks.save_window_variants(family, tmp_path)):
        checks.check_batches(variant)
        checks.check_sampling(variant)
    checks.check_saving(folder, tmp_path / "saved")
    row = load_table()[json.loads((folder / "config.json").read_text())["model_type"]]
    assert checks.check_scores(folder, tmp_path / "reward") == row.reward
    assert checks.uses_cache(folder) == row.cache
    if family in UPDATED:
        checks.check_ppo(folder, checks.save_reward(tmp_path), tmp_path / "ppo")


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["xlnet", "prophetnet", "xlm", "cpmant"])
def test_a_refused_family_is_named_before_weights_are_read(family, tmp_path):
    """There are no weights here at all."""
    checks.save_small_model("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(InputError, match=f"the family '{family}' is not supported: ") as refusal:
        load_policy(tmp_path, CPU)
    assert "\n" not in str(refusal.value)
    assert load_table()[family].refused in str(refusal.value)


def test_an_encoder_needs_is_decoder(tmp_path):
    folder = checks.save_small_model("bert", tmp_path)
    edit_json(folder / "config.json", lambda config: config.update(is_decoder=False))
    with pytest.raises(InputError, match=r'without "is_decoder": true in config\.json it reads both ways'):
        load_policy(folder, CPU)


def test_a_family_without_classifier_is_no_reward_model(tmp_path):
    folder = checks.save_small_model("cohere", tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="the family 'cohere' cannot be a reward or value model"):
        new_reward_model(folder, CPU, 0)


def test_a_model_that_reads_both_ways_is_refused_though_its_row_is_missing(tmp_path, monkeypatch):
    folder = checks.save_small_model("bert", tmp_path)
    edit_json(folder / "config.json", lambda config: config.update(is_decoder=False))
    monkeypatch.setattr(table_module, "load_table", dict)
    with pytest.raises(InputError, match="later tokens change the logits of earlier ones"):
        load_policy(folder, CPU)


def test_a_family_without_row_is_computed_carefully_and_says_so(tmp_path, monkeypatch):
    folder = checks.save_small_model("llama", tmp_path)
    monkeypatch.setattr(table_module, "load_table", dict)
    model, _ = load_policy(folder, CPU)
    path = execution_path(model)
    assert (path.batches, path.sampling) == ("padded", "recomputation")
    assert any("is not in docs/reference/families.md" in notice for notice in model_notices(model))
    checks.check_batches(folder)
    checks.check_sampling(folder)


def test_a_forward_pass_that_fails_is_one_line(tmp_path, monkeypatch):
    folder = checks.save_small_model("llama", tmp_path)

    def fail(*_, **__):
        raise IndexError("list index out of range")

    monkeypatch.setattr(transformers.LlamaModel, "forward", fail)
    with pytest.raises(InputError, match=r"forward pass needs more than tokens \(IndexError"):
        load_policy(folder, CPU)


@pytest.mark.parametrize("beyond", [["<think>", "</think>"], ["<tool>"]])
def test_tokens_beyond_the_embedding_are_named_at_load(beyond, tmp_path):
    folder = checks.save_small_model("gptj", tmp_path)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.add_tokens(beyond)
    words.save_pretrained(folder)
    expected = rf"{len(beyond)} tokens beyond the model's 300 embeddings: '{beyond[0]}' \(300\)"
    for load in (load_policy, lambda source, device: new_reward_model(source, device, 0)):
        with pytest.raises(InputError, match=expected):
            load(folder, CPU)


def test_a_padding_token_beyond_the_embedding_is_let_through(tmp_path):
    folder = checks.save_small_model("llama", tmp_path)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens({"pad_token": "[PAD]"})
    words.save_pretrained(folder)
    load_policy(folder, CPU)


# --- contexts ------------------------------------------------------------------------------------------------------


def test_contexts_under_their_many_names():
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    longrope |= {"original_max_position_embeddings": 24}
    configs = {
        64: transformers.MptConfig(max_seq_len=64),
        100: transformers.GPT2Config(n_positions=100),
        256: transformers.Gemma3Config(text_config={"max_position_embeddings": 256}),
        510: transformers.RobertaConfig(max_position_embeddings=512, pad_token_id=1),
        24: transformers.LlamaConfig(max_position_embeddings=96, rope_parameters=longrope),
        77: transformers.DeepseekV32Config(max_position_embeddings=4096, index_topk=77),
    }
    assert {max_context(config): length for length, config in configs.items()} == {length: length for length in configs}
    assert "not 96: beyond it the frequencies" in context_notice(configs[24])
    assert "texts of up to 77 tokens (index_topk)" in context_notice(configs[77])
    assert "names no context length" in context_notice(transformers.MambaConfig())
    assert context_notice(configs[64]) is None


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_texts_of_a_length_dependent_rope_do_not_depend_on_each_other(kind, tmp_path):
    """Stock transformers changes a short text's logits beside a text longer than the original length."""
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    changes = {"rope_parameters": rope, "max_position_embeddings": 32}
    if kind == "longrope":
        changes |= {"max_position_embeddings": 96, "original_max_position_embeddings": 32}
    folder = checks.save_small_model({"longrope": "phi3", "dynamic": "llama"}[kind], tmp_path, **changes)
    model, _ = load_policy(folder, CPU)
    assert max_context(model.config) == 32
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = [TokenizedExample([5], list(range(2, 33))), TokenizedExample([7, 8], [9])]
    with torch.no_grad():
        alone = [checks._example_logits(stock, row).log_softmax(-1) for row in rows]
        expected = torch.cat(
            [x.gather(1, torch.tensor(r.completion_ids)[:, None])[:, 0] for x, r in zip(alone, rows, strict=True)]
        )
        torch.testing.assert_close(completion_logp(model, collate(rows)), expected, atol=1e-4, rtol=1e-4)


# --- logits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "is_plain"), [("llama", True), ("gemma2", False), ("cohere", False), ("granite", False)]
)
def test_capped_and_scaled_logits_are_found_whatever_their_size(family, is_plain):
    """A cap of 30 changes logits of 0.01 by nothing that float32 could show."""
    model = small_model(family, **({"logits_scaling": 2.0} if family == "granite" else {}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-3)
    assert has_plain_head(model) == is_plain


# --- adapters ------------------------------------------------------------------------------------------------------


def save_adapter(base, folder, **options):
    """Save an adapter with a difference, and return the logits of the model that has it."""
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options),
    )
    adapted.save_pretrained(folder)
    return adapted.eval()(input_ids=torch.tensor([[3, 4, 5, 6]])).logits[0].detach()


@pytest.mark.parametrize("place", ["alone", "relative", "beside"])
def test_an_adapter_is_merged_and_said(place, tmp_path):
    base = checks.save_small_model("llama", tmp_path / "base")
    folder = base if place == "beside" else tmp_path / "adapter"
    expected = save_adapter(base, folder)
    if place == "relative":
        edit_json(folder / "adapter_config.json", lambda config: config.update(base_model_name_or_path="../base"))
    assert find_model_files(folder).base.endswith("base")
    model, tokenizer = load_policy(folder, CPU)
    assert any("is merged into the weights of" in notice for notice in model_notices(model))
    assert model.config._attn_implementation == PACKED_ATTENTION
    with torch.no_grad():
        torch.testing.assert_close(checks.stock_logits(model, [3, 4, 5, 6]), expected, atol=1e-4, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters()), "a stage may train all of it"
    save_policy(model, tokenizer, tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("adapter*"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(checks.stock_logits(stock, [3, 4, 5, 6]), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    base, other = checks.save_small_model("llama", tmp_path / "base"), checks.save_small_model("opt", tmp_path / "opt")
    save_adapter(base, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    edit_json(config, lambda values: values.update(base_model_name_or_path=str(other)))
    with pytest.raises(InputError, match="the adapter does not fit"):
        load_policy(tmp_path / "adapter", CPU)
    edit_json(config, lambda values: values.update(base_model_name_or_path=None))
    with pytest.raises(InputError, match="the adapter names no base model"):
        load_policy(tmp_path / "adapter", CPU)
    edit_json(config, lambda values: values.update(base_model_name_or_path=str(tmp_path / "gone")))
    with pytest.raises(InputError, match="gone: no such directory"):
        load_model_config(tmp_path / "adapter")


def test_a_reward_model_starts_from_the_adapter_of_a_language_model(tmp_path):
    """Most adapters name their task; its class of peft has methods that a classifier lacks."""
    base = checks.save_small_model("llama", tmp_path / "base")
    save_adapter(base, tmp_path / "adapter", task_type="CAUSAL_LM")
    reward = new_reward_model(tmp_path / "adapter", CPU, 0).model
    merged, _ = load_policy(tmp_path / "adapter", CPU)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(reward.state_dict()[name], merged.state_dict()[name])
    assert not torch.equal(reward.state_dict()[name], AutoModelForCausalLM.from_pretrained(base).state_dict()[name])


@pytest.mark.parametrize("labels", [1, 2])
def test_the_adapter_of_a_classifier_over_a_language_model(labels, tmp_path):
    """TRL's reward models with LoRA: the base's configuration knows no labels, the adapter holds the head."""
    base, folder = checks.save_small_model("llama", tmp_path / "base"), tmp_path / "adapter"
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, pad_token_id=0)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="SEQ_CLS")
    adapted = peft.get_peft_model(classifier, lora)
    adapted.save_pretrained(folder)
    if labels == 2:
        with pytest.raises(InputError, match="is a classifier with 2 labels"):
            load_reward_model(folder, CPU)
        return
    expected = adapted.eval()(input_ids=torch.tensor([[3, 4, 5, 6]])).logits[0].detach()
    for loaded in (load_reward_model(folder, CPU), new_reward_model(folder, CPU, 0)):
        score = loaded.sequence_scores(collate([TokenizedExample([3, 4], [5, 6])])).detach()
        torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_without_weights_to_merge_is_named(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(checks.save_small_model("llama", tmp_path / "base"))
    prompt = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    peft.get_peft_model(base, prompt).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="an adapter of the type PROMPT_TUNING cannot be merged into weights"):
        load_policy(tmp_path / "adapter", CPU)


# --- saved types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("gemma2", True)])
def test_weights_are_saved_in_the_type_of_the_base(family, tied, tmp_path):
    folder = tmp_path / "base"
    small_model(family, tie_word_embeddings=tied).to(torch.bfloat16).save_pretrained(folder)
    checks._tokenizer().save_pretrained(folder)
    model, tokenizer = load_policy(folder, CPU)
    assert model.dtype == torch.float32
    save_policy(model, tokenizer, tmp_path / "saved")
    weights = [safetensors.torch.load_file(one / "model.safetensors") for one in (folder, tmp_path / "saved")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert AutoConfig.from_pretrained(tmp_path / "saved").dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").dtype == torch.bfloat16


def test_a_reward_model_of_an_adapter_directory(tmp_path):
    """Adapters of a sequence classifier hold its head too."""
    base = checks.save_small_model("llama", tmp_path / "base")
    (tmp_path / "reward").mkdir()
    save_reward_model(new_reward_model(base, CPU, 0), tmp_path / "reward")
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    adapted = peft.get_peft_model(
        classifier,
        peft.LoraConfig(
            r=2, target_modules=["v_proj"], init_lora_weights=False, task_type="SEQ_CLS", modules_to_save=["score"]
        ),
    ).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted(input_ids=torch.tensor([[3, 4, 5]])).logits[0].detach()
    reward = load_reward_model(tmp_path / "adapter", CPU)
    torch.testing.assert_close(reward.score([TokenizedExample([3], [4, 5])]), expected, atol=1e-4, rtol=1e-4)


def test_refusals_are_by_configuration_alone():
    check_supported(small_config("gemma2"), "x")
    with pytest.raises(InputError, match="'xlm'"):
        check_supported(transformers.XLMConfig(), "x")
    with pytest.raises(InputError, match="cannot be a reward or value model"):
        check_supported(transformers.GraniteConfig(), "x", reward=True)


def test_edits_of_a_copy_do_not_reach_the_original(tmp_path):
    """Adapter files beside a model stay where they are."""
    base = checks.save_small_model("llama", tmp_path / "base")
    save_adapter(base, base)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    load_policy(shutil.copytree(base, tmp_path / "copy"), CPU)
    load_policy(base, CPU)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
