"""Reward models that were not made here: any sequence classifier with one label.

pytest tests/models/test_reward_models.py
"""

import json

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from conftest import CPU, FAMILIES, tiny_model

from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import InputError
from instructgpt.models.precision import apply_memory_options
from instructgpt.models.reward_model import (
    center_scores,
    load_reward_model,
    new_reward_model,
    save_reward_model,
)
from instructgpt.records import Demonstration, Prompt

TEXTS = (("What is it?", "a frog"), ("What is it?", "a very very old frog that sings"), ("Who sings so late?", "it"))
DEMONSTRATIONS = [Demonstration(prompt=prompt, completion=completion) for prompt, completion in TEXTS]
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.5,
    "num_labels": 1,
}
ENCODERS = {
    "bert": lambda **sizes: transformers.BertConfig(type_vocab_size=2, **sizes),
    "roberta": lambda **sizes: transformers.RobertaConfig(type_vocab_size=1, **sizes),
    "deberta": lambda **sizes: transformers.DebertaV2Config(
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, pooler_hidden_size=16, **sizes
    ),
}


@pytest.fixture(scope="module")
def word_pieces():
    """A lower-case word-piece tokenizer with [CLS] a [SEP] b [SEP], as encoders have."""
    raw = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = tokenizers.normalizers.BertNormalizer()
    raw.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    raw.train_from_iterator([text for pair in TEXTS for text in pair] * 3, trainer)
    raw.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=32, **names)


@pytest.fixture
def save_encoder(tmp_path, word_pieces):
    def directory(name):
        torch.manual_seed(0)
        config = ENCODERS[name](vocab_size=len(word_pieces), max_position_embeddings=34, pad_token_id=0, **_SIZES)
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        model.save_pretrained(tmp_path)
        word_pieces.save_pretrained(tmp_path)
        return tmp_path

    return directory


@pytest.fixture
def save_classifier(tmp_path, tokenizer):
    """Save a stock classifier on a random decoder."""

    def directory(family="llama", labels=1, **changes):
        config = tiny_model(family, len(tokenizer), tokenizer.eos_token_id).config
        config.num_labels = labels
        config.update(changes)
        torch.manual_seed(4)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return directory


def encode(reward):
    return [reward.tokenizer.encode_example(prompt, completion) for prompt, completion in TEXTS]


def stock_scores(folder, rows):
    """Score rows of token ids one by one with transformers alone."""
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.stack([stock(**row).logits[0, 0] for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_classifier_scores_as_transformers_does(save_classifier, family):
    folder = save_classifier(family)
    reward = load_reward_model(folder, CPU)
    assert (reward.offset, reward.offset_source, reward.has_token_outputs) == (0.0, "none", True)
    rows = [{"input_ids": torch.tensor([e.prompt_ids + e.completion_ids])} for e in encode(reward)]
    torch.testing.assert_close(reward.score(encode(reward)), stock_scores(folder, rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_an_encoder_scores_pairs_of_texts(save_encoder, name):
    """As its users do: tokenizer(prompt, completion), one row at a time."""
    folder = save_encoder(name)
    reward = load_reward_model(folder, CPU)
    assert not reward.has_token_outputs
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"return_tensors": "pt", "return_token_type_ids": name == "bert"}
    rows = [tokenizer(prompt, completion, **options) for prompt, completion in TEXTS]
    expected = stock_scores(folder, rows)
    assert expected.std() > 1e-3
    torch.testing.assert_close(reward.score(encode(reward)), expected, atol=1e-5, rtol=1e-4)
    shared = [
        reward.tokenizer.encode_example(Prompt(prompt="Who sings?"), text) for text in ("it", "a frog", "it sings")
    ]
    alone = torch.cat([reward.score([example]) for example in shared])
    torch.testing.assert_close(reward.sequence_scores(collate(shared)).detach(), alone, atol=1e-5, rtol=1e-4)


def test_text_that_spells_a_separator_stays_text(save_encoder):
    reward = load_reward_model(save_encoder("bert"), CPU)
    example = reward.tokenizer.encode_example("Who [SEP] sings", "it [SEP] it")
    assert (example.prompt_ids + example.completion_ids).count(reward.tokenizer.hf_tokenizer.sep_token_id) == 2


def test_too_long_texts_are_cut_from_the_left(save_encoder, save_reward):
    encoder = load_reward_model(save_encoder("bert"), CPU)
    assert encoder.context == 32
    long = encoder.tokenizer.encode_example("Who sings so late? " * 9, "a frog")
    (cut, short), count = encoder.truncate([long, encode(encoder)[0]])
    ids = long.prompt_ids + long.completion_ids
    assert (cut.prompt_ids + cut.completion_ids, count) == ([ids[0], *ids[-31:]], 1)
    assert short == encode(encoder)[0]
    assert encoder.score([cut]).isfinite().all()
    decoder = load_reward_model(save_reward(), CPU)
    (cut,), count = decoder.truncate([TokenizedExample([5] * 10, list(range(100)))])
    assert (cut.prompt_ids, cut.completion_ids, count) == ([], list(range(36, 100)), 1)


def test_several_labels_are_refused_by_name(save_classifier):
    folder = save_classifier(labels=2, id2label={0: "worse", 1: "better"}, label2id={"worse": 0, "better": 1})
    for load in (lambda: load_reward_model(folder, CPU), lambda: new_reward_model(folder, CPU, 0)):
        with pytest.raises(InputError, match=r"classifier with 2 labels \(worse, better\), expected a reward model"):
            load()


def test_a_bias_without_a_place_in_the_stock_class_is_read(save_classifier):
    folder = save_classifier()
    plain = load_reward_model(folder, CPU)
    before = plain.score(encode(plain))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(tensors | {"score.bias": torch.tensor([0.5])}, folder / "model.safetensors")
    biased = load_reward_model(folder, CPU)
    torch.testing.assert_close(biased.score(encode(biased)), before + 0.5)
    safetensors.torch.save_file(tensors | {"score.dense.weight": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"no place for weights of the head \(score.dense.weight\)"):
        load_reward_model(folder, CPU)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_training_goes_on_from_the_head(save_classifier, save_encoder, name, tmp_path):
    """A padding token may be added; scores of before stay, and survive saving."""
    folder = save_encoder(name) if name in ENCODERS else save_classifier(name)
    before, base = load_reward_model(folder, CPU), new_reward_model(folder, CPU, seed=7)
    torch.testing.assert_close(base.score(encode(base)), before.score(encode(before)))
    assert base.tokenizer.hf_tokenizer.pad_token_id not in (None, base.tokenizer.eos)
    base.sequence_scores(collate(encode(base))).sum().backward()
    assert all(p.grad is not None for p in base.model.parameters() if p.ndim == 2 and p.shape[0] == 1)
    base.measure_offset(DEMONSTRATIONS)
    (tmp_path / "again").mkdir()
    save_reward_model(base, tmp_path / "again")
    again = load_reward_model(tmp_path / "again", CPU)
    assert again.offset == base.offset
    torch.testing.assert_close(again.score(encode(again)), base.score(encode(base)))


def test_the_offset_is_measured_on_demonstrations(save_classifier):
    folder = save_classifier()
    reward = load_reward_model(folder, CPU)
    raw = reward.score(encode(reward))
    assert "records no offset" in center_scores(reward, "rm", [])
    assert reward.offset == 0
    assert "measured on 3 demonstrations" in center_scores(reward, "rm", DEMONSTRATIONS)
    torch.testing.assert_close(reward.score(encode(reward)), raw - raw.mean())
    save_reward_model(reward, folder)
    recorded = load_reward_model(folder, CPU)
    assert json.loads((folder / "config.json").read_text())["score_offset"] == pytest.approx(raw.mean().item())
    assert center_scores(recorded, "rm", []) is None
    assert "recorded offset is used" in center_scores(recorded, "rm", DEMONSTRATIONS[:1])
    assert recorded.offset == pytest.approx(raw.mean().item())


def test_an_encoder_reads_text_in_ppo(save_encoder, render):
    """Its tokenizer is no other model's, so completions reach it as text."""
    encoder = load_reward_model(save_encoder("bert"), CPU)
    assert not encoder.tokenizer.is_compatible(render)
    assert not PromptTokenizer.is_compatible(render, encoder.tokenizer)


def test_prompt_and_completion_of_an_encoder_are_encoded_apart(save_encoder, word_pieces):
    """Rankings share a prompt's tokens."""
    tokenizer = load_reward_model(save_encoder("roberta"), CPU).tokenizer
    for prompt, completion in TEXTS:
        ids = tokenizer.encode_prompt(prompt) + tokenizer.encode_completion(completion)
        assert ids == word_pieces(prompt, completion)["input_ids"]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_reads_its_score_at_an_end_token(family, tokenizer, tmp_path):
    """Both refuse texts without an end token, which PPO cuts off, and rows with different numbers of them."""
    eos, vocabulary = tokenizer.eos_token_id, len(tokenizer)
    sizes = {"vocab_size": vocabulary, "d_model": 16, "num_labels": 1, "eos_token_id": eos, "pad_token_id": 3}
    config = (
        transformers.T5Config(d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=3, **sizes)
        if family == "t5"
        else transformers.BartConfig(
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=16,
            decoder_start_token_id=3,
            **sizes,
        )
    )
    torch.manual_seed(0)
    stock = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    stock.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = load_reward_model(tmp_path, CPU)
    text = [number for number in range(5, 40) if number != eos]
    rows = [
        (text[:3], [*text[3:5], eos]),
        (text[:3], text[3:5]),
        ([text[0], eos], [*text[1:3], eos]),
        (text[:8], text[8:16]),
    ]
    whole = [[*prompt, *completion] for prompt, completion in rows]
    whole = [one if one[-1] == eos else [*one, eos] for one in whole]
    room = 16 if family == "bart" else 100
    with torch.no_grad():
        expected = [float(stock(input_ids=torch.tensor([one[-room:]])).logits) for one in whole]
        scores = reward.sequence_scores(collate([TokenizedExample(*row) for row in rows]))
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_an_encoder_computes_in_bf16(name, save_encoder):
    """BERT's head reads the pooled state, which its trunk returns in bf16."""
    folder = save_encoder(name)
    exact, narrow = (load_reward_model(folder, CPU) for _ in range(2))
    apply_memory_options(narrow.model, ("bf16",))
    batch = collate([TokenizedExample([5, 6, 7], [8, 9]), TokenizedExample([5], [6, 7])])
    with torch.no_grad():
        scores = narrow.sequence_scores(batch)
        torch.testing.assert_close(scores, exact.sequence_scores(batch), atol=2e-2, rtol=2e-2)
    assert scores.dtype == torch.float32
