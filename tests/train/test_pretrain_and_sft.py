"""Pretraining and supervised fine-tuning at toy size, and the configurations they refuse.

pytest tests/train/test_pretrain_and_sft.py
"""

import json

import pytest
import torch
import torch.distributed as dist
import transformers
from conftest import CORPUS, CPU, DEMONSTRATIONS, TEXT, assert_same_tensors, weights_of

from instructgpt.config import make_config
from instructgpt.data import packing
from instructgpt.data.packing import TokenizedExample
from instructgpt.data.pretraining_text import build_corpus
from instructgpt.errors import InputError, RunError
from instructgpt.models.policy import load_policy
from instructgpt.models.reward_model import load_reward_model
from instructgpt.models.sharding import shard
from instructgpt.records import Prompt, SkippedLines
from instructgpt.sampling.completions import generate
from instructgpt.train import optim, pretrain, sft
from instructgpt.train.configs import PretrainConfig, SFTConfig
from instructgpt.train.optim import build_muon, build_optimizer, lm_loss, optimizer_step

EXAMPLES = [
    TokenizedExample([5, 9, 70], [40, 41, 0]),
    TokenizedExample([40], [7, 7, 9, 12, 0]),
    TokenizedExample([3, 3, 8, 100], [0]),
    TokenizedExample([7, 1], [2, 2]),
]


@pytest.fixture
def small_pretraining(write, tmp_path):
    def config(**options):
        small = {
            "vocabulary": 280,
            "width": 16,
            "layers": 1,
            "heads": 2,
            "context": 16,
            "window": 16,
            "batch": 8,
            "tokens": 128 * 40,
        }
        return make_config(
            PretrainConfig, {"corpus": (write("corpus.jsonl", CORPUS),), "out": tmp_path / "base", **small}, options
        )

    return config


@pytest.fixture
def small_sft(write, save, tmp_path):
    def config(**options):
        data, fresh = write("demonstrations.jsonl", DEMONSTRATIONS), write("fresh.jsonl", DEMONSTRATIONS[:2])
        small = {"epochs": 3, "batch": 3, "lr": 1e-2, "validation": (fresh,), "out": tmp_path / "sft"}
        return make_config(SFTConfig, {"base": str(save()), "data": (data,), **small}, options)

    return config


def run_json(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


# --- language-model loss -------------------------------------------------------------------------------------------


def slow_loss(model, examples):
    """Return minus the mean log-probability of completion tokens, token by token with transformers' own forward."""
    total, count = 0.0, 0
    for example in examples:
        for place, token in enumerate(example.completion_ids):
            before = torch.tensor([example.prompt_ids + example.completion_ids[:place]])
            total -= model(input_ids=before).logits[0, -1].log_softmax(-1)[token].item()
            count += 1
    return total / count


@torch.no_grad()
def test_loss_is_the_mean_over_completion_tokens(policy):
    assert lm_loss(policy[0], EXAMPLES, backward=False) == pytest.approx(slow_loss(policy[0], EXAMPLES), abs=1e-5)


def test_gradients_are_microbatch_and_rank_invariant(policy, gradients, monkeypatch, in_two_processes):
    model, _ = policy
    loss = lm_loss(model, EXAMPLES, weight=0.7)
    whole = gradients(model)
    for budget in (1, 6, 12):
        monkeypatch.setitem(packing.MICROBATCH_TOKENS, "cpu", budget)
        assert lm_loss(model, EXAMPLES, weight=0.7) == pytest.approx(loss, abs=1e-6)
        assert_same_tensors(gradients(model), whole)
    parts = in_two_processes(optim, lambda: lm_loss(model, EXAMPLES, weight=0.7))
    assert sum(parts) == pytest.approx(loss, abs=1e-6)
    assert_same_tensors(gradients(model), whole)
    lm_loss(model, EXAMPLES)
    assert_same_tensors({name: 0.7 * gradient for name, gradient in gradients(model).items()}, whole)


def test_rank_without_rows_adds_nothing(policy, gradients, in_two_processes):
    model, _ = policy
    loss = lm_loss(model, EXAMPLES[:1])
    gradients(model)
    assert in_two_processes(optim, lambda: lm_loss(model, EXAMPLES[:1])) == [pytest.approx(loss), 0.0]


@pytest.mark.parametrize(("max_norm", "factor"), [(1.0, 0.5), (4.0, 2.0), (0.0, None)])
def test_gradient_norm_is_clipped(policy, max_norm, factor):
    model, _ = policy
    parameter = model.get_input_embeddings().weight
    parameter.grad = torch.full_like(parameter, 3.0)
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    before = parameter.detach().clone()
    norm = 3.0 * parameter.numel() ** 0.5
    assert optimizer_step(optimizer, 0.5, max_norm) == pytest.approx(norm, rel=1e-5)
    moved = before - parameter.detach()
    assert moved.norm().item() == pytest.approx(factor or 0.5 * norm, rel=1e-4)
    assert parameter.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_gradient_stops_the_run(policy, bad):
    model, _ = policy
    before = {name: p.clone() for name, p in model.named_parameters()}
    lm_loss(model, EXAMPLES)
    model.get_input_embeddings().weight.grad[0, 0] = bad
    with pytest.raises(RunError, match=r"the learning rate .* is likely too high"):
        optimizer_step(build_optimizer(model), 1e-3)
    assert_same_tensors(dict(model.named_parameters()), before, 0)


def test_nonfinite_loss_stops_the_run(policy):
    model, _ = policy
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")
    with pytest.raises(RunError, match="the loss is nan"):
        lm_loss(model, EXAMPLES)


def test_weight_decay_acts_on_matrices_only(policy):
    model, _ = policy
    decays = {
        id(p): group["weight_decay"]
        for group in build_optimizer(model, weight_decay=0.1).param_groups
        for p in group["params"]
    }
    assert {name for name, p in model.named_parameters() if not decays[id(p)]} == {
        name for name, _ in model.named_parameters() if "norm" in name
    }


def test_muon_moves_layer_matrices_by_the_nearest_orthogonal_matrix(policy):
    """The first step of a matrix is lr sqrt(max(1, rows / columns)) U V^T, with G = U S V^T by SVD."""
    model, _ = policy
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lm_loss(model, EXAMPLES)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizers = build_muon(model, lr_ratio=4.0)
    optimizer_step(list(optimizers.values()), 1e-2, max_norm=0)
    for name, parameter in model.named_parameters():
        step = before[name] - parameter.detach()
        if parameter.ndim == 2 and ".layers." in name:
            u, s, v = torch.linalg.svd(gradients[name], full_matrices=False)
            scale = 0.04 * max(1, parameter.shape[0] / parameter.shape[1]) ** 0.5
            aligned = (u.T @ step @ v.T) / scale  # Newton-Schulz maps singular values into about 0.7 to 1.2
            large = s > 1e-2 * s[0]
            assert aligned.diagonal()[large].min() > 0.6
            assert aligned.diagonal()[large].max() < 1.3
            assert (aligned - aligned.diagonal().diag())[large][:, large].abs().max() < 0.1
        else:  # the first step of Adam is the sign of the gradient
            moved = gradients[name].abs() > 1e-6
            assert torch.allclose(step[moved], 1e-2 * gradients[name][moved].sign(), rtol=2e-2)


def test_muon_refuses_sharded_model(policy):
    model, _ = policy
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shard(model, memory=("offload",))
        with pytest.raises(InputError, match="--optimizer muon needs whole matrices"):
            build_muon(model, lr_ratio=1.0)
    finally:
        dist.destroy_process_group()


def test_muon_on_two_replicas_matches_one_process(small_pretraining, rows_of, tmp_path):
    """Muon orthogonalizes in bfloat16, which makes the rounding of a sum over ranks visible."""
    folders = [
        pretrain.main(
            small_pretraining(optimizer="muon", muon_lr=0.02, lr=1e-2, processes=count, out=tmp_path / str(count))
        )
        for count in (1, 2)
    ]
    losses = [[row["loss/train"] for row in rows_of(folder / "metrics.jsonl")] for folder in folders]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0] - 0.5
    first, second = map(weights_of, folders)
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=3e-3, rtol=0)


# --- pretraining ---------------------------------------------------------------------------------------------------


def test_pretraining_learns(small_pretraining, rows_of):
    folder = pretrain.main(small_pretraining(lr=1e-2))
    rows = rows_of(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[0]["loss/train"] == pytest.approx(5.6, abs=0.5)  # about log 280
    assert rows[-1]["loss/train"] < 0.7 * rows[0]["loss/train"]
    assert rows[-1]["loss/validation"] < 0.75 * rows[0]["loss/train"]
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert run_json(folder) | {"finished": True, "tokens": 128 * 40} == run_json(folder)
    _, render = load_policy(folder, CPU)
    held_out = [row["text"] for row in CORPUS[::100]]
    validation = build_corpus(held_out, render, 16, 0).examples(0, 2)
    assert lm_loss(model, validation, backward=False) == pytest.approx(rows[-1]["loss/validation"], abs=0.5)


@pytest.mark.parametrize("copy_init", [True, False])
def test_copy_init_makes_heads_write_what_they_attend_to(small_pretraining, copy_init):
    config = small_pretraining(layers=2, heads=4, width=32, copy_init=copy_init)
    texts, _ = pretrain.read_texts(config, SkippedLines(False))
    model = pretrain.build_base_model(config, pretrain.load_or_train_tokenizer(config, texts))
    for layer in model.model.layers:
        values, outputs = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        for head in range(4):
            rows = slice(8 * head, 8 * head + 8)
            eigenvalues = torch.linalg.eigvals((outputs[:, rows] @ values[rows]).detach()).real
            assert (eigenvalues.min().item() > -1e-5) is copy_init  # the circuit of a head copies


@pytest.mark.slow
def test_two_processes_match_one(small_pretraining, rows_of, tmp_path):
    losses = []
    for count in (1, 2):
        folder = pretrain.main(small_pretraining(processes=count, out=tmp_path / str(count), tokens=128 * 6))
        losses.append([row["loss/train"] for row in rows_of(folder / "metrics.jsonl")])
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert_same_tensors(weights_of(tmp_path / "1"), weights_of(tmp_path / "2"), 1e-4)


def test_plain_text_corpus(small_pretraining, tmp_path):
    (tmp_path / "book.txt").write_text("".join(TEXT * 60), encoding="utf-8")
    assert run_json(pretrain.main(small_pretraining(corpus=(tmp_path / "book.txt",), tokens=256)))["finished"]


# --- supervised fine-tuning ----------------------------------------------------------------------------------------


def test_best_epoch_is_saved(small_sft, save, write, rows_of):
    """Dropout acts in training, not in validation, and is not saved."""
    other = [
        {"prompt": "Name a frog?", "completion": "The sea is deep."},
        {"prompt": "What is a cat?", "completion": "Croak."},
    ]
    config = small_sft(
        base=str(save("gpt2")), epochs=6, lr=3e-2, dropout=0.3, validation=(write("other.jsonl", other),)
    )
    folder = sft.main(config)
    rows = rows_of(folder / "metrics.jsonl")
    validations = [row["loss/validation"] for row in rows if "loss/validation" in row]
    best = min(range(6), key=validations.__getitem__)
    assert best < 5, "overfitting must make the last epoch worse than an earlier one for this test to say anything"
    assert run_json(folder)["epoch"] == best + 1
    model, render = load_policy(folder, CPU)
    fresh = [render.encode_example(row["prompt"], row["completion"]) for row in other]
    assert slow_loss(model, fresh) == pytest.approx(validations[best], abs=1e-4)
    saved = json.loads((folder / "config.json").read_text())
    assert [saved[name] for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")] == [0, 0, 0]


def test_keep_last_saves_the_last_epoch(small_sft, save, write, rows_of):
    other = [
        {"prompt": "Name a frog?", "completion": "The sea is deep."},
        {"prompt": "What is a cat?", "completion": "Croak."},
    ]
    folder = sft.main(
        small_sft(base=str(save("gpt2")), epochs=6, lr=3e-2, keep="last", validation=(write("other.jsonl", other),))
    )
    validations = [row["loss/validation"] for row in rows_of(folder / "metrics.jsonl") if "loss/validation" in row]
    assert validations[-1] > min(validations), "the last epoch must not be the best one for this test to say anything"
    assert run_json(folder)["epoch"] == 6
    model, render = load_policy(folder, CPU)
    assert slow_loss(
        model, [render.encode_example(row["prompt"], row["completion"]) for row in other]
    ) == pytest.approx(validations[-1], abs=1e-4)


@pytest.mark.parametrize(("rate", "quiet"), [(0.0, True), (0.3, False)])
def test_dropout_acts_in_training(small_sft, save, rows_of, rate, quiet):
    folder = sft.main(small_sft(base=str(save("gpt2")), dropout=rate, epochs=1, batch=8))
    first = rows_of(folder / "metrics.jsonl")[0]["loss/train"]
    model, render = load_policy(save("gpt2"), CPU)
    exact = slow_loss(model, [render.encode_example(row["prompt"], row["completion"]) for row in DEMONSTRATIONS])
    assert (abs(first - exact) < 1e-4) == quiet


def test_mix_weights_the_pretraining_gradient(small_sft, write, save, monkeypatch):
    """The gradient of a step is that of (1 - mix) * demonstration loss + mix * text loss."""
    config = small_sft(pretraining=(write("corpus.jsonl", CORPUS),), mix=0.25, batch=6, epochs=1)
    seen = []
    monkeypatch.setattr(
        sft,
        "optimizer_step",
        lambda optimizers, *_: seen.append([p.grad.clone() for g in optimizers[0].param_groups for p in g["params"]]),
    )
    sft.main(config)
    model, render = load_policy(save(), CPU)
    order = packing.epoch_permutation(8, 0, 0)[:6]
    demonstrations = [
        render.encode_example(DEMONSTRATIONS[row]["prompt"], DEMONSTRATIONS[row]["completion"]) for row in order
    ]
    assert sft.mix_rows_per_step(config) == 2  # 2 of 8 rows: a quarter
    text = build_corpus([row["text"] for row in CORPUS], render, 63, 0, 2 * 2)
    lm_loss(model, demonstrations, weight=0.75)
    lm_loss(model, text.examples(0, 2), weight=0.25)
    expected = [p.grad for group in build_optimizer(model).param_groups for p in group["params"]]
    for got, wanted in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


def test_reward_model_selects_the_epoch(small_sft, save_reward, rows_of):
    folder = sft.main(small_sft(reward=save_reward(), max_tokens=4, epochs=4, lr=3e-2))
    scores = [row["validation/score"] for row in rows_of(folder / "metrics.jsonl") if "validation/score" in row]
    best = max(range(4), key=scores.__getitem__)
    assert run_json(folder)["epoch"] == best + 1
    model, render = load_policy(folder, CPU)
    answers = generate(
        model, render, [Prompt(prompt=row["prompt"]) for row in DEMONSTRATIONS[:2]], max_tokens=4, seed=0
    )
    examples = [
        TokenizedExample(render.encode_prompt(answer.prompt), answer.example.completion_ids) for answer in answers
    ]
    assert load_reward_model(save_reward(), CPU).score(examples).mean().item() == pytest.approx(scores[best], abs=1e-4)


def test_a_tenth_of_the_prompts_is_held_out(write, save, tmp_path):
    rows = [{"prompt": f"Name number {n}", "completion": str(n)} for n in range(60)]
    config = make_config(
        SFTConfig, {"base": str(save()), "data": (write("d.jsonl", rows),), "out": tmp_path / "sft", "epochs": 1}
    )
    run = sft.RunDirectory.open(config)
    _, render = load_policy(save(), CPU)
    training, validation, prompts = sft.load_data(config, render, 64, run)
    assert len(training) + len(validation) == 60
    assert 2 <= len(validation) <= 12
    assert not {tuple(e.prompt_ids) for e in training} & {tuple(e.prompt_ids) for e in validation}
    assert prompts == [], "128 tokens do not fit a context of 64"


# --- refused configurations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        (SFTConfig, {"mix": 0.2}, "--mix has no effect without --pretraining"),
        (SFTConfig, {"max_tokens": 9}, "--max-tokens has no effect without --reward"),
        (SFTConfig, {"epoch": 2}, "unknown option 'epoch', did you mean 'epochs'"),
        (SFTConfig, {"epochs": 0}, "--epochs 0"),
        (SFTConfig, {"seed": 2**32}, "--seed 4294967296"),
        (PretrainConfig, {"window": 200}, "--window 200 is longer than --context 128"),
        (PretrainConfig, {"width": 36, "heads": 4}, "--width 36 is not a multiple of twice --heads 4"),
    ],
)
def test_ineffective_options_are_refused(kind, options, complaint, tmp_path):
    needed = {"base": "b", "data": (tmp_path / "d",), "corpus": (tmp_path / "c",), "out": tmp_path}
    with pytest.raises(InputError, match=complaint):
        make_config(kind, {name: value for name, value in needed.items() if name in kind.model_fields}, options)


def test_dropout_without_effect_is_refused(small_sft):
    with pytest.raises(InputError, match="--dropout has no effect: the model family 'llama'"):
        sft.main(small_sft(dropout=0.1))


def test_reward_selection_needs_a_fitting_prompt(small_sft, save_reward):
    with pytest.raises(InputError, match="no validation prompt leaves room for --max-tokens 60"):
        sft.main(small_sft(reward=save_reward(), max_tokens=60))


def test_finished_run_is_reused_and_changes_are_refused(small_sft, write):
    folder = sft.main(small_sft(epochs=1))
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    sft.main(small_sft(epochs=1))
    assert before == {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    with pytest.raises(InputError, match=r"--lr was .* when the run started and is 0.5 now"):
        sft.main(small_sft(epochs=1, lr=0.5))
    changed = small_sft(epochs=1)
    write("fresh.jsonl", DEMONSTRATIONS[:3])
    with pytest.raises(InputError, match=r"'validation fresh.jsonl' \(.*\) has changed"):
        sft.main(changed)
    assert run_json(sft.main(small_sft(epochs=2, resume=False)))["config"]["epochs"] == 2
