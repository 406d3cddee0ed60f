"""The plan of adapters, of less memory and of ranks: numbers worked by hand, torch's own counter,
and runs that tell what they reached.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from test_plan import SMALL, line_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instructgpt import cli
from instructgpt.config import make_config
from instructgpt.data.packing import TokenizedExample
from instructgpt.models.flops import SequenceShape, build_on_meta, get_model_shape
from instructgpt.models.lora import add_lora
from instructgpt.plan import context, memory, stages
from instructgpt.plan.cli import fit_to_memory
from instructgpt.plan.context import PlanContext
from instructgpt.plan.hardware import HOP_LATENCY_S, Machine, with_links
from instructgpt.plan.memory import adam_bytes, count_decode_rows, held_weights, ppo_peaks, rank_memory, training_peaks
from instructgpt.plan.meta_trace import PeakMemory, TracedModel, forward_logp
from instructgpt.plan.roofline import Phase, Plan, forward_backward_phases, optimizer_phase, ring_bytes
from instructgpt.plan.utilization import context_from_run, read_timed_record
from instructgpt.sampling import engine
from instructgpt.train.configs import SFTConfig

sys.path.append(str(Path(__file__).parents[2] / "bench"))

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WIDTH, FEED, LAYERS, VOCABULARY = 8, 16, 2, 50
MATRICES = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * FEED)
ADAPTED = LAYERS * (4 * 2 * WIDTH + 3 * (WIDTH + FEED))
"""Numbers of adapters of rank 1: an input and an output of each matrix."""


def llama():
    """A configuration small enough to count by hand."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": FEED, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    return transformers.LlamaConfig(**sizes, vocab_size=VOCABULARY, tie_word_embeddings=True)


def network(shape=SMALL, gather_sizes=(40, 35, 25), words=(), lora=0):
    """What the plan asks of a model, with numbers of our own."""
    return SimpleNamespace(
        shape=shape,
        gather_sizes=list(gather_sizes),
        gather_bytes=2 if "bf16" in words else 4,
        memory=words,
        lora=lora,
        trainable_sizes=[5000, 100],
    )


def test_adapters_are_counted_and_the_rest_stays():
    shape = get_model_shape(build_on_meta(llama(), lora=3))
    plain = VOCABULARY * WIDTH + MATRICES + (2 * LAYERS + 1) * WIDTH
    assert (shape.parameters, shape.trainable_parameters, shape.frozen_parameters) == (
        plain + 3 * ADAPTED,
        3 * ADAPTED,
        plain,
    )
    assert (shape.matrix_parameters, shape.frozen_matrix_parameters, shape.output_layer_frozen) == (
        MATRICES + 3 * ADAPTED,
        MATRICES,
        True,
    )


def test_a_backward_pass_through_adapters_is_what_torch_counts():
    model, n = add_lora(transformers.AutoModelForCausalLM.from_config(llama(), attn_implementation="sdpa"), 3, 0), 9
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=torch.zeros(1, n, dtype=torch.long), use_cache=False).logits.sum().backward()
    shape = get_model_shape(model)
    unseen = 3 * 4 * WIDTH * LAYERS * (n * n - n * (n + 1) / 2)  # pairs that torch counts and nobody must compute
    first = (
        3 * 2 * n * (WIDTH * WIDTH + 3 * WIDTH)
    )  # nothing below the first layer learns: its q, k and v pass nothing on
    assert (
        shape.forward_flops([SequenceShape(n)], n) + shape.backward_flops([SequenceShape(n)], n)
        == counter.get_total_flops() - unseen + first
    )


def test_what_stays_has_half_a_backward_pass():
    still = replace(
        SMALL,
        parameters=110,
        matrix_parameters=70,
        frozen_parameters=100,
        frozen_matrix_parameters=60,
        output_layer_frozen=True,
    )
    forward = 2 * 70 * 5 + 4 * 4 * 15 + 2 * 4 * 10 * 5
    assert still.backward_flops([SequenceShape(5)], 5) == 2 * forward - 2 * 60 * 5 - 2 * 4 * 10 * 5


def test_layers_that_are_computed_again_cost_one_more_forward_pass_without_logits():
    plain = forward_backward_phases(network(), [SequenceShape(5)], 5, microbatch_count=1)
    again = forward_backward_phases(network(words=("checkpointing",)), [SequenceShape(5)], 5, microbatch_count=1)
    assert again[0] == plain[0]
    assert again[1].flops - plain[1].flops == 2 * 60 * 5 + 4 * 4 * 15


def test_what_ranks_send_by_hand():
    """100 numbers in 400 bytes, 160 of them outside the layers; four ranks,
    of which each sends three quarters of what is gathered.
    """
    assert ring_bytes(400, 4) == 300
    forward, backward = forward_backward_phases(network(), [SequenceShape(5)], 0, microbatch_count=2, ranks=4)
    assert (forward.bytes_sent, forward.calls) == (2 * 300, 2 * 3)
    assert (backward.bytes_sent, backward.calls) == (2 * (180 + 300), 2 * 5)
    alone = forward_backward_phases(network(), [SequenceShape(5)], 0, microbatch_count=2)
    assert [phase.bytes_sent + phase.calls for phase in alone] == [0, 0]


def test_gradients_of_models_held_whole_are_sent_twice_before_a_step():
    adding, step = stages.optimizer_phases([network()], PlanContext(CPU, ranks=4))
    assert (adding.bytes_sent, adding.calls) == (2 * 300, 1)
    assert step == optimizer_phase(100, state_bytes=800)
    assert stages.optimizer_phases([network()], PlanContext(CPU)) == [optimizer_phase(100, state_bytes=800)]


def test_a_step_of_divided_models_is_divided(monkeypatch):
    monkeypatch.setattr(context, "MIN_SHARDED_PARAMETERS", 100)
    (step,) = stages.optimizer_phases([network()], PlanContext(CPU, ranks=4), ema_parameters=100)
    assert step.bytes_moved == optimizer_phase(100, ema_parameters=100).bytes_moved / 4


def test_the_slowest_link_of_the_ring_decides():
    machine = Machine(10.0, 2.0)
    assert with_links(machine, 8, 8, 450.0, 400.0) == Machine(10.0, 2.0, 450.0, 7 * HOP_LATENCY_S)
    assert with_links(machine, 16, 8, 450.0, 400.0) == Machine(10.0, 2.0, 400.0, 15 * HOP_LATENCY_S)
    assert with_links(machine, 16, 8, 450.0, 900.0).link == 450.0
    assert Machine(10.0, 2.0, 50.0, 0.5).send_seconds(100, 3) == 3.5
    assert machine.send_seconds(1e12, 9) == 0


def test_a_gpu_sends_while_it_computes_and_a_cpu_does_not():
    phase, machine = Phase("forward", 1, flops=75, bytes_moved=0, bytes_sent=160), Machine(1.0, 1.0, link=2.0)
    assert phase.roofline_seconds(machine) == 80
    assert phase.expected_seconds(machine, "cuda") == max(75 / 0.5, 80 / 0.8)
    assert phase.expected_seconds(machine, "cpu") == 75 / 0.75 + 80 / 0.8


def test_all_wait_for_the_rank_with_most_tokens():
    assert PlanContext(CPU, ranks=2).busiest_rank_rows([9, 5, 3]) == [0]  # 9 on one side, 5 and 3 on the other
    assert PlanContext(CPU, ranks=3).busiest_rank_rows([4, 4, 4, 4]) == [0, 3]
    assert PlanContext(CPU).busiest_rank_rows([1, 2]) == [0, 1]


def test_averages_in_eight_bits():
    """A large tensor has a byte a number and a float for every 256; a small one stays as it is."""
    assert adam_bytes(network(words=("adam8bit",))) == 2 * 5000 * (1 + 4 / 256) + 2 * 100 * 4
    assert adam_bytes(network()) == 800


def test_what_a_rank_holds_by_hand(monkeypatch):
    whole = rank_memory(network(), PlanContext(CPU, ranks=4))
    assert (whole.weights, whole.gradients, whole.optimizer_state, whole.gathered) == (400, 400, 800, 0)
    monkeypatch.setattr(context, "MIN_SHARDED_PARAMETERS", 100)
    part = rank_memory(network(), PlanContext(CPU, ranks=4))
    assert (part.weights, part.gradients, part.optimizer_state) == (100, 100, 200)
    assert part.gathered == 2 * 4 * (40 + 2 * 35)  # weights and gradients: outside the layers, and of two groups


def test_weights_that_wait_on_the_cpu_take_no_room_on_the_gpu():
    own = rank_memory(network(words=("offload",)), PlanContext(CUDA))
    assert (own.weights, own.gradients, own.optimizer_state, own.gathered) == (0, 0, 0, 880)


def test_moments_that_only_ranks_have(monkeypatch):
    held = PeakMemory(peak=1000, saved_for_backward=0)
    assert set(training_peaks(network(), held, PlanContext(CUDA))) == {"updating"}
    several = training_peaks(network(), held, PlanContext(CUDA, ranks=2))
    assert (
        sum(several["adding up gradients"].values())
        == 400 + 400 + 800 + several["adding up gradients"]["gradients in a row"]
        == 2000
    )
    assert several["updating"]["activations and logits"] == 600
    monkeypatch.setattr(context, "MIN_SHARDED_PARAMETERS", 100)
    divided = training_peaks(network(), held, PlanContext(CPU, ranks=2))
    assert divided["loading"] == {"a whole model": 400, "parts of all models": 200}
    assert divided["updating"]["activations and logits"] == 1000  # gradients went to others as soon as they were made


def test_ppo_with_adapters_holds_two_models():
    shape = replace(SMALL, parameters=110, matrix_parameters=70, frozen_parameters=100)
    adapted, held = network(shape, lora=1), (PeakMemory(500, 0), PeakMemory(500, 0), None)
    parts = ppo_peaks(adapted, adapted, [], held, True, 3, 20, PlanContext(CUDA))["updating"]
    assert parts["weights: policy, reference, average"] == 440 + 40
    assert parts["weights: reward and value model"] == 440
    assert (parts["gradients"], parts["Adam's moments"], parts["activations and logits"]) == (80, 160, 460)
    sampling = ppo_peaks(network(), network(), [network()], held, True, 3, 20, PlanContext(CUDA))["sampling"]
    assert sampling["weights: policy, reference, average"] == 1200
    assert sampling["key-value cache"] == 4 * 8 * 3 * 20


def test_frozen_matrices_in_bf16_by_hand(monkeypatch):
    """100 numbers, 70 of them in matrices: 70 x 2 + 30 x 4 bytes where they are frozen."""
    bf16 = network(words=("bf16",))
    matrices = bf16.shape.matrix_parameters
    assert rank_memory(bf16, PlanContext(CUDA)).weights == 400
    assert rank_memory(bf16, PlanContext(CUDA), frozen=True).weights == 400 - 2 * matrices
    assert rank_memory(network(), PlanContext(CUDA), frozen=True).weights == 400
    held = PeakMemory(500, 0), PeakMemory(500, 0), None
    parts = ppo_peaks(bf16, bf16, [bf16], held, True, 3, 20, PlanContext(CUDA))["sampling"]
    assert parts["weights: policy, reference, average"] == 1200 - 2 * matrices
    assert parts["weights: reward and value model"] == 800 - 2 * matrices
    assert parts["matrices in bf16, to sample"] == 2 * matrices
    monkeypatch.setattr(context, "MIN_SHARDED_PARAMETERS", 100)
    sharded = ppo_peaks(bf16, bf16, [], held, True, 3, 20, PlanContext(CUDA, ranks=4))["sampling"]
    assert sharded["weights gathered from other ranks"] == 400 - 2 * matrices
    assert sharded["matrices in bf16, to sample"] == 0
    assert rank_memory(bf16, PlanContext(CUDA, ranks=4)).gathered == 4 * 40 + 2 * 70 + 4 * 110


def test_four_bits_and_loading_by_hand():
    """100 numbers, 70 in matrices, 60 of them in 4 bits with a scale of 4 bytes for 64: 40 x 4 + 60 x 0.5625."""
    shape = replace(SMALL, matrix_parameters=70, frozen_matrix_parameters=60, frozen_parameters=90)
    policy = network(replace(shape, quantized_parameters=60), words=("4bit",), lora=1)
    assert held_weights(policy) == 40 * 4 + 60 * 0.5625
    both = network(replace(shape, quantized_parameters=60, frozen_matrix_parameters=64), words=("4bit", "bf16"), lora=1)
    assert held_weights(both) == 36 * 4 + 4 * 2 + 60 * 0.5625
    peaks = training_peaks(policy, PeakMemory(500, 0), PlanContext(CUDA))
    assert peaks["loading"] == {"a whole model in float32": 400.0, "other models": 0.0}
    held = PeakMemory(500, 0), PeakMemory(500, 0), None
    loading = ppo_peaks(policy, both, [], held, True, 3, 20, PlanContext(CUDA))["loading"]
    assert loading == {"a whole model in float32": 400.0, "other models": held_weights(both)}


def test_as_many_rows_at_once_as_the_decoder_would_take(monkeypatch):
    """Of 100,000 bytes 30,000 are held: half of 70,000 is for keys and values, 8 numbers of 2 bytes a token."""
    policy = network(replace(SMALL, kv_cache_size_per_token=8, vocab_size=50), words=("bf16",))
    gpu, held = PlanContext(CUDA, capacity=100_000.0), {"weights": 10_000.0, "Adam's moments": 20_000.0}
    assert count_decode_rows(policy, held, 100, 512, gpu) == 35_000 // (8 * 2 * 100) == 21
    assert count_decode_rows(policy, held, 100, 12, gpu) == 12
    assert count_decode_rows(policy, {"weights": 120_000.0}, 100, 512, gpu) == 1
    assert count_decode_rows(policy, held, 100, 512, PlanContext(CUDA)) == 512
    monkeypatch.setattr(engine, "free_gpu_memory", lambda _: 70_000)
    monkeypatch.setattr(engine, "compute_device", lambda _: CUDA)
    monkeypatch.setattr(engine, "vocabulary_rows", lambda _: 50)
    assert engine.max_batch_rows(None, 8 * 2 * 100) == 21
    monkeypatch.setattr(engine, "MAX_LOGITS", 50 * 9)
    assert count_decode_rows(policy, held, 100, 512, gpu) == engine.max_batch_rows(None, 8 * 2 * 100) == 9


def test_as_many_tokens_at_once_as_fit(monkeypatch):
    """2,048 tokens need 2,048 bytes beside 500 that are always there;
    with room for 1,100 the stage would come to 512.
    """

    def planned(_, asked):
        return Plan(
            stage="sft",
            step="",
            steps=1,
            phases=[],
            memory_peaks={"updating": {"weights": 500.0, memory.ACTIVATIONS_PART: float(asked.budget)}},
        )

    monkeypatch.setattr("instructgpt.plan.cli.plan_stage", planned)
    config = make_config(SFTConfig, {"base": "b", "data": ("d",), "out": Path("o")})
    assert fit_to_memory(config, PlanContext(CPU, capacity=3000)).microbatch_tokens == 2048
    assert fit_to_memory(config, PlanContext(CPU, capacity=1100)).microbatch_tokens == 512
    too_small = fit_to_memory(config, PlanContext(CPU, capacity=499))
    assert (too_small.microbatch_tokens, too_small.peak_bytes, too_small.notes) == (
        0,
        2548,
        ["does not fit into 499 B"],
    )


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Toy models, and data for PPO and SFT."""
    from ppo import make_models

    folder = tmp_path_factory.mktemp("ranks")
    make_models("toy", folder)
    rows = [{"prompt": f"{3 + i} {4 + i} {5 + i}", "completion": f"{6 + i} {7 + i}"} for i in range(40)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    return folder


def reached(folder, capsys):
    """The table of a run, as words a line, and what its lengths were taken to be."""
    capsys.readouterr()
    assert cli.run_command(["plan", str(folder), "--matmul", "50", "--bandwidth", "10"]) == 0
    table = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines() if "%" in line}
    record, _ = read_timed_record(folder)
    return table, record, context_from_run(folder, record, PlanContext(CPU))


def test_a_run_with_adapters_tells_what_it_reached(options, tmp_path, capsys):
    files = {"policy": options / "policy", "reward": options / "reward", "prompts": options / "prompts.jsonl"}
    sizes = {"batch": 4, "minibatch": 2, "episodes": 8, "max_tokens": 6, "lora": 2, "out": tmp_path / "run"}
    assert cli.run_command(["ppo", *line_of(files, **sizes)]) == 0
    table, record, lengths = reached(tmp_path / "run", capsys)
    assert all(
        table[name][-1].endswith("%") for name in ("sampling", "score", "reference", "policy update", "optimizer")
    )
    assert lengths.prompt_tokens == 3
    assert record["ranks"] == 1


def test_a_run_of_two_ranks_tells_what_its_first_reached(options, tmp_path, capsys):
    files = {"policy": options / "policy", "reward": options / "reward", "prompts": options / "prompts.jsonl"}
    sizes = {"batch": 4, "minibatch": 2, "episodes": 8, "max_tokens": 6, "processes": 2, "out": tmp_path / "run"}
    assert cli.run_command(["ppo", *line_of(files, **sizes)]) == 0
    table, record, lengths = reached(tmp_path / "run", capsys)
    phases = record["phases"]
    assert record["ranks"] == 2
    assert phases["policy update"]["tokens"] == pytest.approx(phases["values"]["tokens"], abs=12)  # of one rank, both
    assert lengths.prompt_tokens == pytest.approx(3, abs=1)
    assert all(table[name][-1].endswith("%") for name in ("sampling", "score", "policy update", "optimizer"))


def test_several_numbers_of_ranks_give_a_line_each(options, capsys):
    line = line_of(
        {"base": options / "policy", "data": options / "data.jsonl"},
        prompt_tokens=40,
        completion_tokens=20,
        device="cuda",
    )
    words = [
        "--matmul",
        "1000",
        "--bandwidth",
        "100",
        "--link",
        "1",
        "--network",
        "0.5",
        "--host",
        "2",
        "--capacity",
        "9",
    ]
    assert cli.run_command(["plan", "sft", *line, *words, "--ranks", "1", "2", "4"]) == 0
    rows = [row for row in map(str.split, capsys.readouterr().out.splitlines()) if row and row[0] in ("1", "2", "4")]
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert rows[0][-1] == "100%"
    assert float(rows[2][-1].rstrip("%")) < 100


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["--ranks", "0"], "at least 1 process"), (["--network", "5"], "no effect without --link")],
)
def test_rates_nobody_would_use_are_refused(words, complaint, options, capsys):
    line = line_of({"base": options / "policy", "data": options / "data.jsonl"})
    assert cli.run_command(["plan", "sft", *line, "--matmul", "1", "--bandwidth", "1", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_groups_of_layers_are_those_that_are_gathered():
    """Forty million parameters: eight layers of 3.2 million come to more than 25 million,
    the other four to the rest.
    """
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "vocab_size": 4096,
    }
    groups = TracedModel(transformers.LlamaConfig(**sizes, tie_word_embeddings=True), forward_logp).gather_sizes
    layer = 4 * 512 * 512 + 3 * 512 * 1376 + 2 * 512
    assert groups == [4096 * 512 + 512, 8 * layer, 4 * layer]
    assert PlanContext(CPU, ranks=2).shards(network(replace(SMALL, parameters=sum(groups))))
    assert TracedModel(llama(), forward_logp).trace([TokenizedExample([1] * 5, [2] * 4)], sharded=True).peak > 0
