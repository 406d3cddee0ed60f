"""What a client may send and what it gets back, over HTTP, from tiny random models."""

import json
import socket
import threading
import time

import httpx
import pytest
from conftest import CONTEXT, CPU
from support.serving import run_endpoint, serve_app

from instructgpt.models.policy import load_policy
from instructgpt.sampling.engine import sample_tokens
from instructgpt.sampling.random_streams import default_stream_keys
from instructgpt.serve import engine as engine_module
from instructgpt.serve.app import EndpointState, create_endpoint_app
from instructgpt.serve.gate import Gate
from instructgpt.serve.generation import GenerationLimits, format_event
from instructgpt.serve.rate_limit import RateLimiter
from instructgpt.serve.request_fields import ACCEPTED_FIELDS, NEUTRAL_VALUES


@pytest.fixture(scope="module")
def endpoint(save):
    with run_endpoint({"policy": save("llama"), "sft": save("gpt2", "chat")}) as running:
        yield running


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


def error_of(answer, status):
    """The error of an answer, in OpenAI's form."""
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    return answer.json()["error"]


# ---------------------------------------------------------------- fields


def test_null_is_an_absent_field(endpoint):
    names = "max_tokens temperature top_p n stop seed logprobs top_logprobs user store stream stream_options model"
    nulls = dict.fromkeys([*names.split(), "max_completion_tokens", *NEUTRAL_VALUES])
    answer = endpoint.chat("hello", **nulls)
    assert (answer["object"], answer["model"], len(answer["choices"])) == ("chat.completion", "policy", 1)


def test_neutral_values_pass(endpoint):
    neutral = {name: values[-1] for name, values in NEUTRAL_VALUES.items() if values}
    accepted = dict.fromkeys(ACCEPTED_FIELDS, "x")
    plain = endpoint.chat("hi", seed=1, max_tokens=5)["choices"]
    assert endpoint.chat("hi", seed=1, max_tokens=5, store=True, **neutral, **accepted)["choices"] == plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 0.5), ("presence_penalty", -1), ("logit_bias", {"5": 10}), ("top_k", 40), ("min_p", 0.1),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"), ("response_format", {"type": "json_object"}),
        ("repetition_penalty", 1.1), ("best_of", 3), ("min_tokens", 4), ("suffix", "x"), ("functions", [1]),
        ("skip_special_tokens", False),
        ("prompt_logprobs", 1), ("bad_words", ["a"]),
        ("temperatur", 1), ("top_k", True),
        ("temperature", -1), ("temperature", "hot"),
        ("top_p", 0), ("n", 0), ("n", 1.5), ("seed", "a"), ("max_tokens", -1),
        ("stop", [*"abcdefghijklmnopq"]), ("stop", 5),
        ("stream", "yes"), ("stream_options", {"include_usage": True}),
        ("max_tokens", 0),
        ("max_tokens", True), ("stop_token_ids", "a"), ("model", 5), ("store", 1),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name(endpoint, name, value):
    for path, fields in ((CHAT, {"messages": USER}), (TEXT, {"prompt": "hi"})):
        error = error_of(endpoint.post(path, **fields, **{name: value}), 400)
        assert (error["param"], error["type"]) == (name, "invalid_request_error")
        assert error["message"].startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "is empty"), ([{"role": "tool", "content": "x"}], "tool"), ([{"content": "x"}], "role"),
        ([{"role": []}], "message 0"),
        ([{"role": "user", "content": 5}], "content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image_url"),
        ([*USER, {"role": "assistant", "content": "x"}], "must end"),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "tool_calls"),
        ("hello", "list"), (["hello"], "dictionary"), ([{"role": "user", "content": "x", "colour": 1}], "colour"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_read(endpoint, messages, complaint):
    error = error_of(endpoint.post(CHAT, messages=messages), 400)
    assert error["param"] == "messages"
    assert complaint in error["message"]


def test_messages_as_clients_send_them(endpoint):
    plain = endpoint.chat("hi there", seed=2, max_tokens=6)["choices"]
    parts = [{"type": "text", "text": "hi "}, {"type": "text", "text": "there"}]
    sent = [{"role": "user", "content": parts, "name": "ann", "type": "text", "tool_calls": None}]
    assert endpoint.post(CHAT, messages=sent, seed=2, max_tokens=6).json()["choices"] == plain
    turns = [{"role": "developer", "content": "Be short."}, *USER, {"role": "assistant", "content": None}, *USER]
    assert endpoint.post(CHAT, messages=turns, max_tokens=1).status_code == 200


def test_prompts_of_all_forms(endpoint):
    words = endpoint.state.models["policy"].tokenizer
    ids = words.encode_text("The sea")
    by_text = endpoint.complete(["The sea", "A frog"], seed=4, max_tokens=5, n=2)
    by_ids = endpoint.complete([ids, words.encode_text("A frog")], seed=4, max_tokens=5, n=2)
    assert by_text["choices"] == by_ids["choices"]
    assert [choice["index"] for choice in by_text["choices"]] == [0, 1, 2, 3]
    assert by_text["usage"]["prompt_tokens"] == len(ids) + len(words.encode_text("A frog"))
    assert endpoint.complete(ids, seed=4, max_tokens=5)["choices"][0] == by_ids["choices"][0]
    assert endpoint.complete("", max_tokens=1)["usage"]["prompt_tokens"] == 1
    for prompt in ([], [10**6], [-1], [["a"]], 5, [[5], "a"]):
        assert error_of(endpoint.post(TEXT, prompt=prompt), 400)["param"] == "prompt"
    assert error_of(endpoint.post(TEXT), 400)["message"] == "prompt: is required"


# ---------------------------------------------------------------- lengths


def test_token_limits(endpoint):
    both = endpoint.chat("hi", max_tokens=9, max_completion_tokens=3, ignore_eos=True)
    assert both["usage"]["completion_tokens"] == 3
    unlimited = endpoint.chat("hi", ignore_eos=True)
    assert unlimited["usage"]["total_tokens"] == CONTEXT
    assert unlimited["choices"][0]["finish_reason"] == "length"
    assert endpoint.chat("hi", ignore_eos=True, max_tokens=10**9)["usage"]["total_tokens"] == CONTEXT
    ids = [5] * CONTEXT
    assert endpoint.complete(ids, ignore_eos=True)["usage"]["completion_tokens"] == 1
    error = error_of(endpoint.post(TEXT, prompt=[5, *ids]), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert (
        error_of(endpoint.post(CHAT, messages=[{"role": "user", "content": "sea " * 99}]), 400)["param"] == "messages"
    )


# ---------------------------------------------------------------- completions


def test_completions_are_the_model_s(endpoint, save):
    """The likeliest tokens, as our own sampler and a plain forward pass give them."""
    model, words = load_policy(save("llama"), CPU)
    prompt = words.encode_prompt("Where is Seoul?")
    (expected,) = sample_tokens(model, [prompt], stop_tokens=words.stop_tokens, max_tokens=12, seed=0, temperature=0)
    answer = endpoint.chat("Where is Seoul?", temperature=0, max_tokens=12, logprobs=True, return_token_ids=True)
    assert answer["prompt_token_ids"] == prompt
    assert answer["choices"][0]["token_ids"] == expected.tokens
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == pytest.approx(expected.logp, abs=1e-5)
    spelled = b"".join(bytes(entry["bytes"]) for entry in content).decode(errors="replace")
    assert spelled.startswith(answer["choices"][0]["message"]["content"])


def test_the_same_text_alone_and_among_64(endpoint):
    """A seed fixes the completions, whatever else is sampled, and whether they are streamed."""
    alone = [endpoint.chat(f"Name {i}", seed=i, n=2, max_tokens=12, temperature=1.2)["choices"] for i in range(4)]
    started = threading.Barrier(65)
    results = {}

    def send(i):
        started.wait()
        if i < 4:
            results[i] = endpoint.chat(f"Name {i}", seed=i, n=2, max_tokens=12, temperature=1.2)["choices"]
        else:
            endpoint.chat(f"Something else, {i}", seed=i, max_tokens=1 + i % 20)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    started.wait()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(4)] == alone
    assert alone[0][0]["message"]["content"] != alone[0][1]["message"]["content"]
    assert endpoint.chat("Name 0", seed=10**30 - 1, max_tokens=3)  # any whole number


def test_the_same_random_numbers_as_our_sampler(endpoint, save):
    """Prompts of one call are numbered like the lines of a file of prompts, their completions like those of -n."""
    model, words = load_policy(save("llama"), CPU)
    prompts = [words.encode_text(text) for text in ("Where is Seoul?", "The sea", "The sea")]
    sampled = sample_tokens(
        model,
        [prompt for prompt in prompts for _ in range(3)],
        stop_tokens=words.stop_tokens,
        max_tokens=12,
        seed=17,
        temperature=0.9,
        keys=default_stream_keys(3, 3),
    )
    fields = {"n": 3, "seed": 17, "max_tokens": 12, "temperature": 0.9, "return_token_ids": True}
    answer = endpoint.complete(prompts, **fields)
    assert [choice["token_ids"] for choice in answer["choices"]] == [row.tokens for row in sampled]
    assert len({tuple(row.tokens) for row in sampled}) == 9


def test_unseeded_requests_differ(endpoint):
    texts = {endpoint.chat("hi", max_tokens=12, ignore_eos=True)["choices"][0]["message"]["content"] for _ in range(4)}
    assert len(texts) > 1


def test_n_shares_one_prefill(endpoint):
    stats = endpoint.state.models["policy"].engine.stats
    before = stats.prefills
    endpoint.complete("The sea is wide", n=8, max_tokens=3)
    assert stats.prefills == before + 1


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_stream_is_the_answer(endpoint, path):
    fields = {"messages": USER} if path == CHAT else {"prompt": "hi"}
    fields |= {"seed": 3, "n": 2, "max_tokens": 20, "return_token_ids": True}
    fields |= {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    whole = endpoint.post(path, **fields).json()
    events = endpoint.events(path, **fields)
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], "policy")
    }
    assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in chunks)
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        if path == CHAT:
            assert parts[0]["delta"] == {"role": "assistant", "content": ""}
            text = "".join(part["delta"].get("content", "") for part in parts)
            assert text == choice["message"]["content"]
            logprobs = [entry for part in parts for entry in (part["logprobs"] or {"content": []})["content"]]
            assert logprobs == choice["logprobs"]["content"]
        else:
            assert "".join(part["text"] for part in parts) == choice["text"]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert [x for part in parts for x in part["logprobs"][name]] == choice["logprobs"][name]
        assert [token for part in parts for token in part.get("token_ids", [])] == choice["token_ids"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
    with_usage = endpoint.events(path, **fields, stream_options={"include_usage": True})
    assert (with_usage[-2]["choices"], with_usage[-2]["usage"]) == ([], whole["usage"])


def test_stop_strings(endpoint):
    """The text ends before the first of them; neither pieces nor log-probabilities show a part of it."""
    free = endpoint.complete("The sea", seed=5, max_tokens=30, ignore_eos=True, logprobs=0)["choices"][0]
    text = free["text"]
    stop = text[9:12]
    fields = {"prompt": "The sea", "seed": 5, "max_tokens": 30, "ignore_eos": True, "stop": [stop, "never there"]}
    choice = endpoint.post(TEXT, **fields, logprobs=0).json()["choices"][0]
    assert choice["text"] == text[: text.find(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert max(choice["logprobs"]["text_offset"]) < len(choice["text"])
    pieces = [event["choices"][0]["text"] for event in endpoint.events(TEXT, **fields)[:-1]]
    assert "".join(pieces) == choice["text"]
    assert endpoint.post(TEXT, **{**fields, "stop": ""}).json()["choices"][0]["text"] == text


def test_echo_has_the_prompts_logps(endpoint):
    words = endpoint.state.models["policy"].tokenizer
    text = "The sea is 🌊"
    answer = endpoint.complete(text, echo=True, logprobs=3, max_tokens=2, temperature=0, ignore_eos=True)["choices"][0]
    assert answer["text"].startswith(text)
    logprobs, ids = answer["logprobs"], words.encode_text(text)
    assert len(logprobs["tokens"]) == len(ids) + 2
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    alone = endpoint.complete(ids, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert alone["text"] == text
    assert alone["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][: len(ids)]
    streamed = endpoint.events(TEXT, prompt=[text, "A frog"], echo=True, logprobs=3, max_tokens=2, ignore_eos=True)
    assert [
        e["choices"][0]["text"] for e in streamed[:-1] if e["choices"][0]["logprobs"]["token_logprobs"][:1] == [None]
    ] == [
        text,
        "A frog",
    ]


@pytest.mark.parametrize("text", ["a\u2028b\u2029c", "a\x85b", "a\x1cb\x0bc\x0cd\r\n", "서울 🌊"])
def test_an_event_is_one_line_for_every_client(text):
    """Clients such as httpx and openai end lines at every Unicode separator."""
    line, *rest = format_event({"text": text}).splitlines()
    assert rest == [""]
    assert json.loads(line.removeprefix("data: ")) == {"text": text}


# ---------------------------------------------------------------- load


def wait_until(condition, patience=20):
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.fixture
def slow(endpoint, monkeypatch):
    """The engine of `policy` with at least 20 ms a step."""
    engine = endpoint.state.models["policy"].engine
    step = engine.batch.step
    monkeypatch.setattr(engine.batch, "step", lambda: (time.sleep(0.02), step())[1])
    return engine


def raw_request(endpoint, fields):
    body = json.dumps(fields).encode()
    host, port = endpoint.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def token_counts(endpoint, path, **fields):
    """Yield the number of tokens of each chunk of a stream as it is read."""
    with endpoint.client.stream("POST", path, json={"stream": True, "return_token_ids": True, **fields}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield sum(len(choice.get("token_ids", ())) for choice in json.loads(line[6:])["choices"])


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_chunk_is_sent_before_the_next_token_is_computed(endpoint, monkeypatch, path):
    """The engine stands still after a step until the client has read the text of that step."""
    fields = {"messages": USER} if path == CHAT else {"prompt": "hi"}
    fields |= {"max_tokens": 6, "ignore_eos": True}
    seeds = (seed for seed in range(500) if max(token_counts(endpoint, path, seed=seed, **fields)) == 1)
    fields["seed"] = next(seeds)  # each token of this completion is text, so that each is sent by itself
    engine, is_read = endpoint.state.models["policy"].engine, threading.Semaphore(0)
    step = engine.batch.step

    def step_when_read():
        if engine.batch.rows[0].tokens:
            assert is_read.acquire(timeout=30), "the client did not get the last token's text"
        return step()

    monkeypatch.setattr(engine.batch, "step", step_when_read)
    num_tokens = 0
    for count in token_counts(endpoint, path, **fields):
        num_tokens += count
        if count:
            is_read.release()
    assert num_tokens == 6


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slots(endpoint, slow, stream):
    cancelled = slow.stats.cancelled
    connection = raw_request(endpoint, {"messages": USER, "n": 3, "ignore_eos": True, "stream": stream})
    wait_until(lambda: slow.num_running == 3)
    connection.close()
    wait_until(lambda: slow.num_running == 0)
    assert slow.stats.cancelled == cancelled + 3
    assert not slow.batch.rows


def test_slots_are_free_after_one_step(save):
    """Between `cancel` and the next step nothing else happens."""
    with run_endpoint({"policy": save("llama")}) as endpoint:
        engine = endpoint.state.models["policy"].engine
        seen = []
        step = engine.batch.step

        def watched_step():
            if engine._active:
                request = next(iter(engine._active.values())).request
                seen.append(request.is_cancelled)
                if engine.stats.steps == 3:
                    engine.cancel([request])
            return step()

        engine.batch.step = watched_step
        connection = raw_request(endpoint, {"messages": USER, "ignore_eos": True, "stream": True})
        wait_until(lambda: engine.stats.cancelled == 1)
        connection.close()
        assert seen == [False] * 4


def test_a_full_queue_refuses(save):
    with run_endpoint({"policy": save("llama")}, max_rows=4, max_waiting=2) as endpoint:
        engine = endpoint.state.models["policy"].engine
        step = engine.batch.step
        engine.batch.step = lambda: (time.sleep(0.02), step())[1]
        connections = [raw_request(endpoint, {"messages": USER, "ignore_eos": True, "n": n}) for n in (3, 3)]
        wait_until(lambda: (engine.num_running, engine.num_waiting) == (4, 2))
        answer = endpoint.post(CHAT, messages=USER)
        assert error_of(answer, 503)["code"] == "engine_overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        for connection in connections:
            connection.close()
        wait_until(lambda: engine.num_running == 0)
        assert endpoint.post(CHAT, messages=USER, max_tokens=1).status_code == 200


def test_time_limit(endpoint, slow, monkeypatch):
    monkeypatch.setattr(endpoint.state, "limits", GenerationLimits(timeout_s=0.2))
    fields = {"messages": USER, "ignore_eos": True}
    assert error_of(endpoint.post(CHAT, **fields), 504)["code"] == "timeout"
    events = endpoint.events(CHAT, **fields)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "timeout"
    wait_until(lambda: slow.num_running == 0)


def test_a_fault_of_the_engine_is_an_error_and_no_end(endpoint, monkeypatch):
    engine = endpoint.state.models["policy"].engine
    step, faults = engine.batch.step, [RuntimeError("no memory\nleft")]
    monkeypatch.setattr(engine.batch, "step", lambda: (_ for _ in ()).throw(faults.pop()) if faults else step())
    monkeypatch.setattr(engine_module._log, "exception", lambda *_: None)
    error = error_of(endpoint.post(CHAT, messages=USER), 500)
    assert (error["message"], error["type"]) == ("no memory left", "server_error")
    assert endpoint.post(CHAT, messages=USER, max_tokens=2).status_code == 200


def test_a_prompt_that_cannot_be_computed_fails_with_an_error(endpoint, monkeypatch):
    engine = endpoint.state.models["policy"].engine
    add, faults = engine.batch.add, [RuntimeError("out of memory")]
    monkeypatch.setattr(engine.batch, "add", lambda row: (_ for _ in ()).throw(faults.pop()) if faults else add(row))
    monkeypatch.setattr(engine_module._log, "exception", lambda *_: None)
    error = error_of(endpoint.post(CHAT, messages=USER, n=3), 500)
    assert error["message"] == "out of memory"
    assert endpoint.post(CHAT, messages=USER, max_tokens=2).status_code == 200
    assert engine.num_running == engine.num_waiting == 0


# ---------------------------------------------------------------- the rest


def test_models_and_tokenizer(endpoint):
    models = endpoint.client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [(model["id"], model["max_model_len"]) for model in models["data"]] == [
        ("policy", CONTEXT),
        ("sft", CONTEXT),
    ]
    assert models["data"][0]["chat_template"].startswith("plain")
    assert endpoint.client.get("/v1/models/sft").json() == models["data"][1]
    error = error_of(endpoint.client.get("/v1/models/gpt-9"), 404)
    assert "policy, sft" in error["message"]
    for text in ("The sea 🌊", ""):
        tokens = endpoint.post("/tokenize", prompt=text, add_special_tokens=False).json()
        assert tokens["count"] == len(tokens["tokens"])
        assert endpoint.post("/detokenize", tokens=tokens["tokens"]).json()["prompt"] == text
    chat = endpoint.post("/tokenize", messages=USER, model="sft", return_token_strs=True).json()
    assert chat["token_strs"][0] == "<|start|>"
    assert (
        endpoint.post(CHAT, messages=USER, model="sft", return_token_ids=True, max_tokens=1).json()["prompt_token_ids"]
        == chat["tokens"]
    )
    assert endpoint.client.get("/tokenizer_info", params={"model": "sft"}).json()["bos_token"] == "<|start|>"
    assert endpoint.client.get("/health").json()["status"] == "ok"
    for path, fields in (("/tokenize", {}), ("/detokenize", {"tokens": ["a"]}), ("/detokenize", {"tokens": [10**9]})):
        error_of(endpoint.post(path, **fields), 400)
    assert endpoint.client.get("/metrics").status_code == 404


def test_http_errors_have_the_same_form(endpoint):
    assert error_of(endpoint.client.get("/v1/embeddings"), 404)["message"].startswith("GET /v1/embeddings")
    error_of(endpoint.client.get(CHAT), 405)
    for body in (b"", b"{", b"[1]", b'{"messages": NaN}', b'"\\ud800"', b"[" * 100_000, b"\xff"):
        error_of(endpoint.client.post(CHAT, content=body), 400)
    error = error_of(endpoint.client.post(CHAT, content=b" " * (5 * 2**20)), 413)
    assert error["code"] == "request_too_large"


def test_pages_of_other_sites_are_refused(endpoint):
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"}, {"host": "["}):
        answer = endpoint.client.post(CHAT, json={"messages": USER}, headers=headers)
        assert error_of(answer, 403)["type"] == "permission_error"
        assert "access-control-allow-origin" not in answer.headers
    assert endpoint.client.options(CHAT, headers={"origin": "https://evil.example"}).status_code == 403


def test_while_models_load():
    with serve_app(create_endpoint_app(EndpointState())) as url:
        for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("POST", "/tokenize"), ("GET", "/health")):
            answer = httpx.request(method, url + path, json={"messages": USER} if method == "POST" else None)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1


def test_rate_limit_by_hand():
    now = [0.0]
    limiter = RateLimiter(60, lambda: now[0])
    assert [limiter.take("a") for _ in range(61)] == [0] * 60 + [1]
    assert limiter.take("b") == 0
    now[0] = 1.0
    assert [limiter.take("a"), limiter.take("a")] == [0, 1]
    slow = RateLimiter(2, lambda: now[0])
    assert [slow.take("a") for _ in range(3)] == [0, 0, 30]
    assert [RateLimiter(0).take("a") for _ in range(5)] == [0] * 5


def test_rate_limit_and_metrics(save):
    state = EndpointState(gate=Gate(limiter=RateLimiter(2)), shows_metrics=True)
    with run_endpoint({'po"licy': save("llama")}, state=state) as endpoint:
        for _ in range(2):
            endpoint.chat("hi", max_tokens=2, ignore_eos=True)
        answer = endpoint.post(CHAT, messages=USER)
        error_of(answer, 429)
        assert int(answer.headers["retry-after"]) in (29, 30)
        lines = endpoint.client.get("/metrics").text.splitlines()
    assert 'instructgpt_completion_tokens_total{model="po\\"licy"} 4' in lines
    assert f'instructgpt_http_requests_total{{path="{CHAT}",status="429"}} 1' in lines
    assert 'instructgpt_completions_running{model="po\\"licy"} 0' in lines
