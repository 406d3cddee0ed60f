"""Loading, refusing and scoring models of four families, against transformers' own classes.

pytest tests/models/test_models.py
"""

import json
import shutil

import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from conftest import CONTEXT, CPU, FAMILIES, assert_same_tensors, tiny_model
from support.commands import edit_json

from instructgpt import cli, functional
from instructgpt.data import packing
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.errors import InputError
from instructgpt.models import policy as load_module
from instructgpt.models.loading import model_notices
from instructgpt.models.policy import (
    completion_logp,
    context_length,
    load_policy,
    load_tokenizer,
    per_token_outputs,
    pick_device,
    save_policy,
)
from instructgpt.models.reward_model import (
    SCORE_OFFSET_KEY,
    load_reward_model,
    new_reward_model,
    read_score_offset,
    save_reward_model,
    value_model_from_copy,
)
from instructgpt.train.optim import build_optimizer, lm_loss, optimizer_step

EXAMPLES = [
    TokenizedExample([5, 9, 70], [40, 41, 0]),
    TokenizedExample([40], [7, 7, 7, 7, 7, 7, 9, 12, 0]),
    TokenizedExample([3, 3, 3, 8, 100, 21, 77, 50], [0]),
    TokenizedExample([33, 90], []),
    TokenizedExample([7, 150, 2, 2], [255, 31]),  # cut off: no end-of-text
]


def copy_folder(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit_weights(folder, change):
    """Rewrite model.safetensors: change(tensors, metadata) in place."""
    file = folder / "model.safetensors"
    with safetensors.safe_open(file, framework="pt") as weights:
        metadata = dict(weights.metadata())
    tensors = safetensors.torch.load_file(file)
    change(tensors, metadata)
    safetensors.torch.save_file(tensors, file, metadata)


# --- policies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_logits_equal_stock_transformers(save, family):
    model, render = load_policy(save(family), CPU)
    stock = transformers.AutoModelForCausalLM.from_pretrained(save(family)).eval()
    assert type(model) is type(stock)
    assert not model.training
    assert context_length(model) == CONTEXT
    batch = collate(EXAMPLES[:3])
    with torch.no_grad():
        for row, example in enumerate(EXAMPLES[:3]):
            alone = stock(input_ids=torch.tensor([example.prompt_ids + example.completion_ids])).logits[0]
            expected = alone[len(example.prompt_ids) - 1 : -1]  # the logits before each completion token
            picked = per_token_outputs(model, batch, lambda logits, _: logits)[0][
                sum(len(e.completion_ids) for e in EXAMPLES[:row]) :
            ][: len(expected)]
            torch.testing.assert_close(picked, expected, atol=1e-5, rtol=1e-5)
    assert render.eos == stock.config.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_policies_load_with_stock_classes(save, family, tmp_path):
    model, render = load_policy(save(family), CPU)
    save_policy(model, render, tmp_path)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[remark] for remark in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert again.generation_config.eos_token_id == render.eos
    assert load_tokenizer(tmp_path).is_compatible(render)
    assert not list(tmp_path.glob("*.bin"))


def test_dropout_is_on_the_residual_stream_only(save):
    """GPT-2's own configuration has dropout on embeddings and attention, too."""
    model, _ = load_policy(save("gpt2"), CPU, 0.2)
    config = model.config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.2, 0.0, 0.0)
    probabilities = {
        name: part.p for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout) and part.p
    }
    assert {name.split(".")[-1] for name in probabilities} <= {"resid_dropout", "dropout"}
    assert set(probabilities.values()) == {0.2}
    quiet, _ = load_policy(save("gpt2"), CPU)
    assert not any(part.p for part in quiet.modules() if isinstance(part, torch.nn.Dropout))


def test_models_that_cannot_be_loaded_are_refused(save, tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        load_policy(tmp_path / "nowhere", CPU)
    with pytest.raises(InputError, match="no tokenizer"):
        load_policy(tmp_path, CPU)
    load_tokenizer(save()).hf_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"not a model directory \(no config.json\)"):
        load_policy(tmp_path, CPU)


def test_a_model_directory_without_tokenizer_is_refused(save, tmp_path):
    folder = copy_folder(save(), tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="no tokenizer in this model directory"):
        load_policy(folder, CPU)
    with pytest.raises(InputError, match="no tokenizer in this model directory"):
        new_reward_model(folder, CPU, 0)


def test_a_model_with_missing_weights_is_refused(save, tmp_path):
    """Weights that are in no file would be random."""
    folder = copy_folder(save("gpt_neox"), tmp_path)
    edit_weights(folder, lambda tensors, _: tensors.pop("gpt_neox.layers.1.mlp.dense_h_to_4h.weight"))
    for load in (lambda: load_policy(folder, CPU), lambda: new_reward_model(folder, CPU, 0)):
        with pytest.raises(InputError, match=r"weights are missing from the files: .*dense_h_to_4h.weight"):
            load()


def test_files_that_do_not_fit_together_are_refused(save, save_reward, tmp_path):
    folder = copy_folder(save("llama"), tmp_path)
    with pytest.raises(InputError, match="is a file, expected the directory of a model"):
        load_policy(folder / "config.json", CPU)
    edit_weights(folder, lambda tensors, _: tensors["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(InputError, match=r"logits are not finite; its weights are damaged"):
        load_policy(folder, CPU)
    edit_json(folder / "config.json", lambda config: config.update(intermediate_size=3))
    with pytest.raises(InputError, match=r"shapes of the weights differ from config\.json"):
        load_policy(folder, CPU)
    reward = shutil.copytree(save_reward("llama"), tmp_path / "tied")
    edit_json(
        reward / "config.json",
        lambda config: config.update(tie_word_embeddings=True, architectures=["LlamaForCausalLM"]),
    )
    with pytest.raises(InputError, match=r"is a reward model, expected a language model"):
        load_policy(reward, CPU)
    folder = shutil.copytree(save(), tmp_path / "another end")
    words = load_tokenizer(folder).hf_tokenizer
    words.add_special_tokens({"eos_token": "<|another end|>"})
    words.save_pretrained(folder)
    with pytest.raises(InputError, match="the end-of-text token is outside the model's vocabulary"):
        load_policy(folder, CPU)


def test_only_safetensors_are_loaded(save, tmp_path):
    folder = copy_folder(save(), tmp_path)
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for load in (load_policy, lambda source, device: new_reward_model(source, device, 0), load_reward_model):
        with pytest.raises(InputError, match="cannot be loaded"):
            load(folder, CPU)


def test_a_damaged_weights_file_is_refused(save, tmp_path):
    folder = copy_folder(save(), tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_policy(folder, CPU)


def test_a_tokenizer_without_end_of_text_is_refused(save, tmp_path):
    folder = copy_folder(save(), tmp_path)
    edit_json(folder / "tokenizer_config.json", lambda values: values.pop("eos_token"))
    with pytest.raises(InputError, match="no end-of-text token"):
        load_policy(folder, CPU)


def test_a_missing_device_is_refused():
    assert pick_device("cpu") == CPU
    for name in ("cuda:9", "abacus"):
        with pytest.raises(InputError, match=f"--device {name}"):
            pick_device(name)


# --- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_batch_invariant(save_reward, family, monkeypatch):
    reward = load_reward_model(save_reward(family), CPU)
    alone = torch.cat([reward.score([example]) for example in EXAMPLES])
    assert alone.std() > 0.1
    torch.testing.assert_close(reward.score(EXAMPLES), alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(reward.score(EXAMPLES[::-1]).flip(0), alone, atol=1e-5, rtol=0)
    long = TokenizedExample([1] * 30, [2] * 30)
    torch.testing.assert_close(reward.score([long, *EXAMPLES, long])[1:-1], alone, atol=1e-5, rtol=0)
    for budget in (1, 13, 25):
        monkeypatch.setitem(packing.MICROBATCH_TOKENS, "cpu", budget)
        torch.testing.assert_close(reward.score(EXAMPLES), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["plain", "pad_is_eos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stock_scores_equal_ours_up_to_the_offset(save_reward, family, kind, side):
    """The stock classifier finds the last token by the padding id, ours by position."""
    folder = save_reward(family, kind)
    reward = load_reward_model(folder, CPU)
    stock, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[remark] for remark in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    padded = tokenizer.pad({"input_ids": [e.prompt_ids + e.completion_ids for e in EXAMPLES]}, return_tensors="pt")
    positions = (padded["attention_mask"].cumsum(-1) - 1).clamp_min(
        0
    )  # stock GPT-2 does not count from the first real token
    with torch.no_grad():
        scores = stock.eval()(**padded, position_ids=positions).logits[:, 0]
    torch.testing.assert_close(scores - 0.75, reward.score(EXAMPLES), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_survive_saving_and_loading(save, family, tmp_path):
    reward = new_reward_model(save(family), CPU, seed=1)
    reward.offset = -1.2345678901
    save_reward_model(reward, tmp_path)
    again = load_reward_model(tmp_path, CPU)
    torch.testing.assert_close(again.score(EXAMPLES), reward.score(EXAMPLES), atol=1e-6, rtol=0)
    assert (
        json.loads((tmp_path / "config.json").read_text())[SCORE_OFFSET_KEY]
        == read_score_offset(tmp_path)
        == -1.2345678901
    )
    once = (tmp_path / "model.safetensors").read_bytes()
    save_reward_model(reward, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == once


def test_the_offset_is_subtracted_everywhere(reward):
    before = reward.score(EXAMPLES), reward.token_outputs(collate(EXAMPLES))
    reward.offset += 2.0
    torch.testing.assert_close(reward.score(EXAMPLES), before[0] - 2)
    torch.testing.assert_close(reward.token_outputs(collate(EXAMPLES)), before[1] - 2)


def test_the_head_is_initialized_from_the_seed(save):
    """Mean 0, standard deviation 1 / sqrt(D + 1), whatever the state of the global generator."""
    torch.manual_seed(1)
    one = new_reward_model(save(), CPU, seed=5).model.score.weight
    torch.manual_seed(2)
    again, other = (new_reward_model(save(), CPU, seed=seed).model.score.weight for seed in (5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    drawn = torch.cat([new_reward_model(save(), CPU, seed=seed).model.score.weight[0] for seed in range(30)])
    assert abs(drawn.std().item() * 17**0.5 - 1) < 0.1
    assert abs(drawn.mean().item()) < 0.05


def test_the_value_model_is_a_copy_of_the_reward_model(reward):
    value, reward = value_model_from_copy(reward)
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())
    batch = collate(EXAMPLES)
    torch.testing.assert_close(value.token_outputs(batch), reward.token_outputs(batch))
    with torch.no_grad():
        value.model.score.weight.add_(1)
    assert not torch.equal(value.token_outputs(batch), reward.token_outputs(batch))


@pytest.mark.parametrize("place", ["config", "weights"])
def test_one_place_of_the_offset_suffices(save_reward, tmp_path, place):
    """Stock tools lose the metadata of the weights when they save again; others rewrite config.json."""
    folder = copy_folder(save_reward(), tmp_path)
    if place == "weights":
        edit_json(folder / "config.json", lambda values: values.pop(SCORE_OFFSET_KEY))
    else:
        edit_weights(folder, lambda _, metadata: metadata.pop(SCORE_OFFSET_KEY))
    reward = load_reward_model(folder, CPU)
    assert (reward.offset, reward.offset_source) == (0.75, "recorded")


def test_an_offset_of_another_model_is_refused(save_reward, tmp_path):
    folder = copy_folder(save_reward(), tmp_path)
    edit_json(folder / "config.json", lambda values: values.update({SCORE_OFFSET_KEY: 0.5}))
    with pytest.raises(InputError, match=r"config.json says the offset is 0.5, the weights say 0.75"):
        load_reward_model(folder, CPU)


def test_a_policy_is_refused_as_reward_model(save):
    for family in FAMILIES:
        with pytest.raises(InputError, match="not a reward model, weights are missing"):
            load_reward_model(save(family), CPU)


def test_a_reward_model_without_head_is_refused(save_reward, tmp_path):
    folder = copy_folder(save_reward(), tmp_path)
    edit_weights(folder, lambda tensors, _: tensors.pop("score.weight"))
    with pytest.raises(InputError, match=r"weights are missing from the files: score\.weight"):
        load_reward_model(folder, CPU)


def test_a_classifier_with_two_labels_is_refused(save, tmp_path):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(save(), num_labels=2)
    model.save_pretrained(tmp_path)
    load_tokenizer(save()).hf_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"classifier with 2 labels \(LABEL_0, LABEL_1\)"):
        load_reward_model(tmp_path, CPU)


def test_examples_longer_than_the_context_are_refused(save_reward):
    for family in ("gpt2", "llama"):
        reward = load_reward_model(save_reward(family), CPU)
        assert len(reward.score([TokenizedExample([1] * 32, [2] * 32)])) == 1
        with pytest.raises(InputError, match=f"65 tokens.*context is {CONTEXT}"):
            reward.score([TokenizedExample([1] * 33, [2] * 32)])


# --- end-of-text ---------------------------------------------------------------------------------------


def test_end_of_text_is_learned_when_padding_is_the_same_token(save):
    """The end-of-text token is in the loss by its position; searching for the padding id would have masked it."""
    losses = {}
    for kind in ("plain", "pad_is_eos"):
        model, render = load_policy(save("llama", kind), CPU)
        examples = [
            render.encode_example("Name a frog.", "croak"),
            render.encode_example("What is in the sky?", "blue and black, by day and by night"),
        ]
        ends = [len(example) - 2 for example in examples]

        @torch.no_grad()
        def chance_of_end(model=model, examples=examples, ends=ends, eos=render.eos):
            logits = [
                model(input_ids=torch.tensor([e.prompt_ids + e.completion_ids])).logits[0, end]
                for e, end in zip(examples, ends, strict=True)
            ]
            return torch.stack(logits).softmax(-1)[:, eos]

        before = chance_of_end()
        optimizer = build_optimizer(model)
        losses[kind] = []
        for _ in range(25):
            losses[kind].append(lm_loss(model, examples))
            optimizer_step(optimizer, 1e-2)
        assert (before < 0.1).all()
        assert (chance_of_end() > 0.8).all()
    assert losses["plain"] == losses["pad_is_eos"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_computed_in_chunks(save, family, gradients, monkeypatch):
    """Whatever the chunk size, values and gradients are the same, and no chunk is larger."""
    model, _ = load_policy(save(family), CPU)
    vocabulary = len(model.get_output_embeddings().weight)
    examples = [*EXAMPLES, TokenizedExample([1] * 9, [4, 5, 6]), TokenizedExample([1] * 9, [7])]
    count = sum(len(example.completion_ids) for example in examples)

    def losses():
        seen = []
        found = per_token_outputs(
            model, collate(examples), functional.token_logp, lambda x, _: seen.append(x.numel()) or x.square().mean(-1)
        )
        (found[0].sum() + found[1].sum()).backward()
        return torch.stack(found).detach(), gradients(model), seen

    whole, expected, seen = losses()
    assert seen == [count * vocabulary]
    for held in (1, 3 * vocabulary, 5 * vocabulary - 1):
        monkeypatch.setattr(load_module, "MAX_LOGITS", held)
        numbers, found, seen = losses()
        assert max(seen) <= max(held, vocabulary)
        assert count * vocabulary < sum(seen) <= 2 * count * vocabulary, (
            "computed again in the backward pass, as far as needed"
        )
        torch.testing.assert_close(numbers, whole, atol=1e-5, rtol=1e-5)
        assert_same_tensors(found, expected, 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_of_a_row_do_not_attend_to_each_other(save, family):
    policy, _ = load_policy(save(family), CPU)
    row = [5, 7, 9, 0, 11, 12, 13, 14, 0, 21, 22]
    apart = [
        TokenizedExample([5], [7, 9, 0]),
        TokenizedExample([0], [11, 12, 13, 14, 0]),
        TokenizedExample([0], [21, 22]),
    ]
    together = collate([TokenizedExample(row[:1], row[1:], document_starts=(3, 8))] * 2)
    with torch.no_grad():
        found = completion_logp(policy, together)
        wanted = [completion_logp(policy, collate([one])) for one in apart]
        mixed = completion_logp(policy, collate([TokenizedExample(row[:1], row[1:])]))
    torch.testing.assert_close(found, torch.cat(wanted * 2), atol=1e-5, rtol=0)
    assert (mixed - torch.cat(wanted)).abs().max() > 0.01


def test_model_fixtures_are_deterministic():
    one, other = (tiny_model("qwen2", 300, 0).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert load_module.count_parameters(tiny_model("qwen2", 300, 0)) == sum(
        {p.data_ptr(): p.numel() for p in one.values()}.values()
    )


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, "temperature"),
        ({"min_p": 0.1, "typical_p": 0.5, "top_k": 10, "do_sample": False}, "min_p"),
        ({"num_beams": 4, "early_stopping": True, "length_penalty": 2.0}, "num_beams"),
        ({"num_beams": 1, "early_stopping": True, "length_penalty": 2.0}, None),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value),
)
def test_settings_of_generation_are_saved_or_left_out_with_a_notice(settings, kept, save, tmp_path):
    """Some that transformers loads it refuses to save; what no setting can mend is left out, and said."""
    folder = shutil.copytree(save("llama"), tmp_path / "base")
    eos = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos], **settings}))
    model, tokenizer = load_policy(folder, CPU)
    assert any("generation_config.json" in notice for notice in model_notices(model)) == (kept is None)
    save_policy(model, tokenizer, tmp_path / "saved")
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "saved")
    assert again.eos_token_id == eos
    if kept is not None:
        assert getattr(again, kept) == settings[kept]


def test_family_without_a_language_model_is_refused_in_one_line(save, write, tmp_path, capsys):
    folder = shutil.copytree(save("llama"), tmp_path / "llava")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlavaConfig(text_config=transformers.LlamaConfig(), vision_config=vision)
    config.save_pretrained(folder)
    with pytest.raises(InputError, match="transformers has no causal language model of the family 'llava'") as error:
        load_policy(folder, CPU)
    assert len(str(error.value)) < 250
    line = ["--base", str(folder), "--data", str(write("d.jsonl", [{"prompt": "a", "completion": "b"}]))]
    assert cli.run_command(["plan", "sft", *line, "--matmul", "1", "--bandwidth", "1"]) == 2
    assert "of the family 'llava'" in capsys.readouterr().err
