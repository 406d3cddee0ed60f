"""lm-evaluation-harness through HTTP: the numbers of our own wrapper, with the server's tokenizer."""

import json
import logging

import lm_eval
import lm_eval.tasks
import pytest
from conftest import CONTEXT, CPU
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from support.serving import run_endpoint_as

from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.lm_harness import LMHarness, _token_pair_logps
from instructgpt.models.policy import load_policy

ROWS = [{"text": f"the sea {i} is {word}", "label": i % 3} for i, word in enumerate(["wide", "deep", "blue", "a"] * 2)]
TASKS = ("colours", "continuations")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks with log-likelihoods and with generated texts."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    colours = shared | {"task": "colours", "output_type": "multiple_choice", "doc_to_text": "{{text}}, it is"}
    colours |= {"doc_to_target": "label", "doc_to_choice": ["blue", "not red", "wide and deep"]}
    colours |= {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    texts = shared | {"task": "continuations", "output_type": "generate_until", "doc_to_text": "{{text}}"}
    texts |= {"doc_to_target": "{{text}}", "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}]}
    texts |= {"generation_kwargs": {"until": ["e", "\n\n"], "max_gen_toks": 12}}
    for task in (colours, texts):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
    return folder


@pytest.fixture(scope="module", params=["own models", "upstream"])
def endpoint(request, save):
    with run_endpoint_as(request.param, {"policy": save("llama")}) as (front, _):
        yield front


def measure(folder, model):
    """Run the tasks with a model of the harness; returns metrics, and what each question gave."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    return results["results"], results["samples"]


@pytest.fixture(scope="module")
def own(folder, save, tmp_path_factory):
    """Our wrapper's rows, by task and metric."""
    model, words = load_policy(save("llama"), CPU)
    harness = LMHarness(TASKS, folder, {}, None, 0)
    cache = ResultCache(tmp_path_factory.mktemp("cache"))
    rows = harness.measure("policy", "hash", lambda: EvaluatedModel("policy", model, words), cache)
    return {(row.evaluation.removeprefix("harness/"), row.metric): row.value for row in rows}


def test_completions_give_the_numbers_of_our_wrapper(endpoint, folder, own):
    """Log-likelihoods with echo, and generation; the tokenizer is the server's, found by the client."""
    options = {} if endpoint.state.upstream is None else {"num_concurrent": 4, "batch_size": 2}
    client = LocalCompletionsAPI(
        base_url=f"{endpoint.url}/v1/completions",
        model="policy",
        tokenizer_backend="auto",
        max_length=CONTEXT,
        **options,
    )
    assert client.tokenizer_backend == "remote"
    results, samples = measure(folder, client)
    ours = {(task, metric): value for (task, metric), value in own.items()}
    assert {(t, m.partition(",")[0]) for t in results for m in results[t] if "," in m and "stderr" not in m} == set(
        ours
    )
    for (task, metric), value in ours.items():
        assert results[task][f"{metric},none"] == pytest.approx(value, abs=1e-9), (task, metric)
    assert len({sample["resps"][0][0] for sample in samples["continuations"]}) > 3


def test_chat_completions(endpoint, folder):
    client = LocalChatCompletion(base_url=f"{endpoint.url}/v1/chat/completions", model="policy")
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=client, tasks=["continuations"], task_manager=manager, bootstrap_iters=0, log_samples=True,
        apply_chat_template=True,
    )  # fmt: skip
    texts = [sample["resps"][0][0] for sample in results["samples"]["continuations"]]
    expected = [
        endpoint.chat(row["text"], temperature=0, max_tokens=12, stop=["e", "\n\n"])["choices"][0]["message"]["content"]
        for row in ROWS
    ]
    assert texts == expected


def test_log_likelihoods_equal_ours(endpoint, save):
    """Each number, not only the metrics made of them."""
    model, words = load_policy(save("llama"), CPU)
    client = LocalCompletionsAPI(base_url=f"{endpoint.url}/v1/completions", model="policy", tokenizer_backend="auto")
    pairs = [("The sea is", " wide"), ("A frog says", " croak, and more"), ("x", "y")]
    ids = [client._encode_pair(*pair) for pair in pairs]
    assert ids == [(words.encode_text(a), words.encode_text(a + b)[len(words.encode_text(a)) :]) for a, b in pairs]
    requests = [lm_eval.api.instance.Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = client.loglikelihood(requests, disable_tqdm=True)
    expected = _token_pair_logps(model, ids)
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in expected], abs=1e-4)
    assert [bool(greedy) for _, greedy in found] == [greedy for _, greedy in expected]
