"""The plan of a stage: arithmetic beside torch's own counter, memory beside a process's own peak,
and what a run has reached.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import CPU, FAMILIES, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instructgpt import cli
from instructgpt.config import make_config
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.formatting import format_seconds, format_si
from instructgpt.models.flops import (
    ModelShape,
    SequenceShape,
    build_on_meta,
    get_model_shape,
    ppo_update_flops,
)
from instructgpt.models.loading import load_model_config
from instructgpt.models.policy import load_policy
from instructgpt.models.reward_model import load_reward_model
from instructgpt.plan.context import PlanContext
from instructgpt.plan.hardware import Machine, benchmark_machine
from instructgpt.plan.lengths import geometric_lengths
from instructgpt.plan.memory import allocator_overhead
from instructgpt.plan.meta_trace import TracedModel, forward_logp
from instructgpt.plan.roofline import optimizer_phase, sampling_phases
from instructgpt.plan.stages import plan_stage
from instructgpt.run.timing import PHASE_TIMER, PhaseTimer
from instructgpt.train.configs import PPOConfig

sys.path.append(str(Path(__file__).parents[2] / "bench"))


@pytest.fixture(params=FAMILIES)
def family(request, save):
    """A model's directory, family by family."""
    return save(request.param)


@pytest.fixture
def model(family):
    """The model in it."""
    return load_policy(family, CPU)[0]


def counted(model, tokens, backward=False):
    """FLOPs by torch's counter, every attention with all pairs of its tokens."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(backward):
        logits = model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def test_forward_and_backward_are_what_torch_counts(model):
    shape, n = get_model_shape(model), 9
    model.set_attn_implementation("sdpa")
    unseen = (
        4 * shape.attention_width * shape.layers * (n * n - n * (n + 1) / 2)
    )  # pairs that torch counts and nobody must compute
    assert shape.forward_flops([SequenceShape(n)], n) == counted(model, n) - unseen
    assert counted(model, n, backward=True) == 3 * counted(model, n)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_last_mlp_counts_tokens_that_are_read_only():
    model = tiny_model("llama", 300, 0)
    shape, mlp = get_model_shape(model), model.model.layers[-1].mlp
    weights = sum(matrix.weight.numel() for matrix in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    assert shape.last_mlp_parameters == weights
    whole = shape.forward_flops([SequenceShape(9)])
    for read in (0, 1, 9):
        assert whole - shape.forward_flops([SequenceShape(9, output_tokens=read)]) == 2 * (9 - read) * weights


def test_a_continued_text_costs_what_is_left_of_the_whole(model):
    shape = get_model_shape(model)
    assert shape.forward_flops([SequenceShape(5), SequenceShape(4, past_tokens=5)], 3) == shape.forward_flops(
        [SequenceShape(9)], 3
    )


def test_a_shape_is_read_from_the_configuration_alone(family, model, tmp_path):
    (tmp_path / "config.json").write_text((family / "config.json").read_text())
    assert get_model_shape(build_on_meta(load_model_config(tmp_path))) == get_model_shape(model)


SMALL = ModelShape(
    parameters=100,
    matrix_parameters=60,
    layers=1,
    attention_width=4,
    kv_cache_size_per_token=8,
    hidden_size=4,
    vocab_size=10,
)


def test_decoding_by_hand():
    """Prompts of 2 and 3 tokens, completions of 1 and 3: two steps, in which only the second row is alive,
    at 3 and 4 tokens before.
    """
    _, decode = sampling_phases(SMALL, [2, 3], [1, 3], rows=2)
    assert decode.tokens == 2
    assert decode.flops == 2 * (2 * 60 + 2 * 4 * 10) + 4 * 4 * (3 + 1 + 4 + 1)
    assert decode.bytes_moved == 4 * (2 * (60 + 4 * 10) + 8 * (3 + 4))


def test_prefill_reads_the_weights_once_a_wave():
    prefill, _ = sampling_phases(SMALL, [2] * 5, [2] * 5, rows=2)
    assert (prefill.tokens, prefill.bytes_moved) == (10, 3 * 400)


def test_the_optimizer_moves_bytes_and_multiplies_nothing():
    phase = optimizer_phase(1000, ema_parameters=500)
    assert (phase.flops, phase.bytes_moved) == (0, 1000 * (28 + 12) + 500 * 12)
    assert phase.roofline_seconds(Machine(matmul=1.0, bandwidth=46_000)) == 1.0


def test_the_slower_of_the_two_decides():
    machine = Machine(matmul=10.0, bandwidth=2.0)
    assert (machine.compute_seconds(100, 4), machine.compute_seconds(10, 4)) == (10, 2)


def test_a_machine_measures_itself_within_reason():
    found = benchmark_machine(CPU)
    assert 1e8 < found.matmul < 1e14
    assert 1e7 < found.bandwidth < 1e13


@pytest.mark.parametrize(("mean", "longest"), [(24, 64), (3, 50), (64, 64), (60, 64), (1, 8)])
def test_lengths_that_end_by_chance_have_their_mean(mean, longest):
    lengths = geometric_lengths(mean, longest, 4000)
    assert min(lengths) >= 1
    assert max(lengths) <= longest
    assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.05)


def test_what_is_held_is_what_autograd_keeps(model):
    """Bytes kept for the backward pass, beside those that autograd's own hooks see of a real pass."""
    examples = [TokenizedExample([1] * 5, [2] * 7), TokenizedExample([3] * 4, [4] * 9)]
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = collate(examples)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = forward_logp(model, batch).sum()
    saved = sum(size for place, size in seen.items() if place not in weights)
    network = TracedModel(model.config, forward_logp)
    kept = network.trace(examples)
    assert total.requires_grad
    assert (
        0.95 * saved <= kept.saved_for_backward <= 1.6 * saved + 20_000
    )  # the batch itself is saved too; some results are alive beside
    assert kept.peak >= kept.saved_for_backward
    assert network.trace(examples, backward=False).saved_for_backward < kept.saved_for_backward


def test_deep_models_are_continued_in_a_straight_line():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
    config = transformers.LlamaConfig(num_hidden_layers=11, **sizes)
    examples = [TokenizedExample([1] * 20, [2] * 30)]
    network = TracedModel(config, forward_logp)
    whole = network._trace(examples, True, False, False)
    assert network.trace(examples).peak == pytest.approx(whole.peak, rel=0.02)


def test_the_plan_of_ppo_has_the_flops_that_must_be_done(ppo_options, tmp_path):
    config = make_config(
        PPOConfig, {**ppo_options, "out": tmp_path, "batch": 4, "minibatch": 2, "episodes": 8, "max_tokens": 6}
    )
    made = plan_stage(config, PlanContext(CPU, prompt_tokens=5, completion_tokens=6))
    policy = get_model_shape(build_on_meta(load_model_config(config.policy)))
    scalar = get_model_shape(build_on_meta(load_model_config(config.reward[0]), scalar=True))
    must = ppo_update_flops(policy, scalar, scalar, [TokenizedExample([0] * 5, [0] * 6)] * 4)
    by_name = {phase.name: phase.flops for phase in made.phases}
    assert by_name["prefill"] + by_name["decode"] == must.pop("sampling")
    assert {name: pytest.approx(flops) for name, flops in must.items()} == {name: by_name[name] for name in must}
    assert made.steps == 2


@pytest.fixture(scope="module")
def ppo_options(tmp_path_factory):
    """A policy and a reward model of a toy size, and prompts."""
    from ppo import make_models

    folder = tmp_path_factory.mktemp("models")
    make_models("toy", folder)
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{3 + i} {4 + i} {5 + i}"}) + "\n" for i in range(8))
    )
    assert load_reward_model(folder / "reward", CPU).offset == 0
    return {"policy": str(folder / "policy"), "reward": folder / "reward", "prompts": (folder / "prompts.jsonl",)}


def line_of(options, **more):
    """Options as a command line."""
    words = []
    for name, value in {**options, **more}.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def test_a_stage_is_planned_by_its_own_command_line_and_its_run_tells_what_was_reached(ppo_options, tmp_path, capsys):
    line = line_of(ppo_options, batch=4, minibatch=2, episodes=8, max_tokens=6)
    machine = ["--matmul", "50", "--bandwidth", "10"]
    assert cli.run_command(["plan", "ppo", *line, *machine]) == 0
    said = capsys.readouterr().out
    assert "ppo: 2 times an update on 4 episodes" in said
    assert all(
        name in said
        for name in ("prefill", "decode", "reference", "policy update", "value update", "optimizer", "weights:")
    )

    assert cli.run_command(["ppo", *line, "--out", str(tmp_path / "run")]) == 0
    phases = json.loads((tmp_path / "run" / "run.json").read_text())["phases"]
    assert {"sampling", "score", "reference", "values", "policy update", "value update", "optimizer", "parity"} == set(
        phases
    )
    assert phases["policy update"]["tokens"] == phases["values"]["tokens"] > 0
    capsys.readouterr()
    assert cli.run_command(["plan", str(tmp_path / "run"), *machine]) == 0
    said = capsys.readouterr().out
    assert "sampling" in said
    assert "together" in said
    assert "%" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["plan"], "name a stage with its options"),
        (["plan", "nowhere"], "no run.json in it"),
        (["plan", "sft", "--bases", "x"], "unknown option '--bases'"),
        (["plan", "sft", "--base", "./nowhere", "--data", "f"], "no such directory"),
    ],
)
def test_bad_input_is_one_line(words, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run_command([*words, "--matmul", "1", "--bandwidth", "1"]) == 2
    assert complaint in capsys.readouterr().err


def test_phases_belong_to_the_outermost():
    phases, now = PhaseTimer(), [0.0]
    phases.clock = lambda: now[0]
    with phases("outer", 5):
        now[0] += 2
        with phases("inner", 7):
            now[0] += 3
    with phases("outer", 1):
        now[0] += 1
    assert phases.summary() == {"outer": {"seconds": 6.0, "tokens": 6}}
    again = PhaseTimer()
    again.clear(phases.summary())
    assert again.summary() == phases.summary()
    assert PHASE_TIMER is not again


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0"), (999, "999"), (1234, "1.23 k"), (2.5e9, "2.5 G"), (999.6e3, "1 M")]
)
def test_numbers_are_short(number, said):
    assert format_si(number) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (150, "2.5 min"), (10_000, "2.78 h")]
)
def test_durations_have_the_unit_that_suits_them(seconds, said):
    assert format_seconds(seconds) == said


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read where Linux writes it"
)
def test_planned_memory_is_what_a_process_needs():
    from memory import CASES, compare

    planned, measured = compare(CASES["sft"])
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    ("preloaded", "expected"),
    [
        (None, True),
        ("", True),
        ("/usr/lib/libSegFault.so", True),
        ("libtcmalloc_minimal.so.4", False),
        ("libm.so.6:/usr/lib/libjemalloc.so.2", False),
    ],
)
def test_holes_of_the_heap_count_where_there_are_some(preloaded, expected, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    if preloaded is not None:
        monkeypatch.setenv("LD_PRELOAD", preloaded)
    told = PlanContext(CPU)
    assert told.glibc_malloc == expected
    assert allocator_overhead(10.0, 70.0, adapters=False, context=told) == (2 * 10.0 if expected else 0)
    assert allocator_overhead(10.0, 70.0, adapters=True, context=told) == (70.0 if expected else 0)
    assert allocator_overhead(10.0, 70.0, adapters=False, context=PlanContext(torch.device("cuda"))) == 0
