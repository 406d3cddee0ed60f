"""Guards through real HTTP: what a client of OpenAI's package gets, whole and in streams, from models and upstream."""

import asyncio
import json
import random
import threading
import time
from datetime import UTC, datetime

import openai
import pytest
from support.endpoint import serving
from support.serving import run_endpoint_as, run_upstream

from instructgpt.serve.app import EndpointState
from instructgpt.serve.guard.checking import GuardSet
from instructgpt.serve.guard.counts import read_guard_counts
from instructgpt.serve.guard.filtering import GuardedRequest
from instructgpt.serve.guard.settings import read_guard_file
from instructgpt.serve.request_log import RequestLog
from instructgpt.serve.storage import Storage

USER = [{"role": "user", "content": "Where is Seoul?"}]
HARMFUL = [{"role": "user", "content": "Tell me how to pick a LOCK, please"}]
MESSAGE = "Not on this server."
BEHIND = {}
"""Endpoints behind endpoints, by the address of the one in front."""


@pytest.fixture(scope="module", params=["own models", "upstream"])
def endpoint(request, save):
    with run_endpoint_as(request.param, {"policy": save("llama")}) as (front, running):
        BEHIND[front.url] = running
        yield front


@pytest.fixture
def client(endpoint):
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="sk-none", max_retries=0) as opened:
        yield opened
    endpoint.state.guards = None


@pytest.fixture
def make_guards(tmp_path):
    """Load guards from a file with these guards and options; `words` becomes a word list."""

    def make(*guards, words="", **options):
        if words:
            (tmp_path / "words.txt").write_text("\n".join(words))
            guards = ({"name": "words", "scorer": "words:words.txt", **(guards[0] if guards else {})},)
        (tmp_path / "guard.yaml").write_text(json.dumps({"guards": guards, "message": MESSAGE, **options}))
        return GuardSet.load(read_guard_file(tmp_path / "guard.yaml"))

    return make


def counts(guards):
    """Counts by side, after what was counted is in the file."""
    guards.counts.flush()
    rows = read_guard_counts(guards.settings.counts_path)
    assert all(row["day"] == datetime.now(UTC).date().isoformat() for row in rows)
    return {(row["guard"], row["reads"]): [row[x] for x in ("checked", "flagged", "blocked", "failed")] for row in rows}


def num_sampled(endpoint):
    return BEHIND[endpoint.url].state.models["policy"].engine.stats.requests


def stream_chat(client, **fields):
    """Return (contents by index, refusals by index, finish reasons by index, usages) of a stream."""
    contents, refusals, finishes, usages = {}, {}, {}, []
    for chunk in client.chat.completions.create(model="policy", stream=True, **fields):
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            contents[choice.index] = contents.get(choice.index, "") + (choice.delta.content or "")
            refusals[choice.index] = refusals.get(choice.index, "") + (choice.delta.refusal or "")
            if choice.finish_reason:
                assert choice.index not in finishes
                finishes[choice.index] = choice.finish_reason
    return contents, refusals, finishes, usages


# ---------------------------------------------------------------- before the model


def test_blocked_prompts_do_not_reach_the_model(endpoint, client, make_guards):
    guards = endpoint.state.guards = make_guards({"reads": "prompt"}, words=["pick a lock"])
    before = num_sampled(endpoint)
    answer = client.chat.completions.create(model="policy", messages=HARMFUL, n=2)
    assert [choice.finish_reason for choice in answer.choices] == ["content_filter"] * 2
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.message.refusal for choice in answer.choices] == [MESSAGE] * 2
    assert [choice.message.content for choice in answer.choices] == [None] * 2
    contents, refusals, finishes, usages = stream_chat(
        client, messages=HARMFUL, n=2, stream_options={"include_usage": True}
    )
    assert (contents, refusals) == ({0: "", 1: ""}, {0: MESSAGE, 1: MESSAGE})
    assert finishes == {0: "content_filter", 1: "content_filter"}
    assert [usage.total_tokens for usage in usages] == [0]
    texts = client.completions.create(model="policy", prompt=["The sea", "How to pick a lock"], max_tokens=3)
    assert [(x.index, x.text, x.finish_reason) for x in texts.choices] == [
        (0, "", "content_filter"),
        (1, "", "content_filter"),
    ]
    with pytest.raises(openai.ContentFilterFinishReasonError):
        client.chat.completions.parse(model="policy", messages=HARMFUL)
    assert num_sampled(endpoint) == before
    assert counts(guards) == {("words", "prompt"): [4, 4, 4, 0]}


def test_earlier_turns_are_read_too(endpoint, client, make_guards):
    endpoint.state.guards = make_guards(words=["lock"])
    turns = [
        {"role": "user", "content": "A LOCK"},
        {"role": "assistant", "content": "No"},
        {"role": "user", "content": "Oh"},
    ]
    for messages in (turns, [{"role": "system", "content": "lock"}, {"role": "user", "content": "Hi"}]):
        answer = client.chat.completions.create(model="policy", messages=messages)
        assert answer.choices[0].finish_reason == "content_filter"
    parts = [{"role": "user", "content": [{"type": "text", "text": "A lock?"}]}]
    assert (
        endpoint.post("/v1/chat/completions", messages=parts).json()["choices"][0]["finish_reason"] == "content_filter"
    )


def test_token_ids_are_read_or_refused(endpoint, client, make_guards):
    ids = endpoint.post("/tokenize", prompt="the sea").json()["tokens"]
    assert (
        client.completions.create(model="policy", prompt=ids, max_tokens=2).choices[0].finish_reason != "content_filter"
    )
    endpoint.state.guards = make_guards(words=["sea"])
    if endpoint.state.upstream is None:
        answer = client.completions.create(model="policy", prompt=[ids, ids], max_tokens=2)
        assert [choice.finish_reason for choice in answer.choices] == ["content_filter"] * 2
    else:  # the tokenizer is not here
        with pytest.raises(openai.BadRequestError, match="token ids"):
            client.completions.create(model="policy", prompt=ids, max_tokens=2)


# ---------------------------------------------------------------- after the model


def plain_answers(client, **fields):
    """Texts of an unguarded answer."""
    answer = client.chat.completions.create(model="policy", messages=USER, max_tokens=24, seed=5, **fields)
    return [choice.message.content for choice in answer.choices]


@pytest.mark.parametrize("check_every", [0, 1, 10_000])
def test_completions_are_checked(endpoint, client, make_guards, check_every):
    texts = plain_answers(client, n=3)
    words = [set(text.split()) for text in texts]
    word = sorted(words[1] - words[0] - words[2])[0]  # of the second answer only
    guards = endpoint.state.guards = make_guards({"reads": "completion"}, words=[word], check_every=check_every)
    fields = {"messages": USER, "max_tokens": 24, "seed": 5, "n": 3}
    answer = client.chat.completions.create(model="policy", logprobs=True, **fields)
    assert [choice.message.content for choice in answer.choices] == [texts[0], None, texts[2]]
    assert [choice.finish_reason == "content_filter" for choice in answer.choices] == [False, True, False]
    assert answer.choices[1].logprobs is None
    assert answer.choices[0].logprobs.content
    contents, refusals, finishes, usages = stream_chat(client, stream_options={"include_usage": True}, **fields)
    assert (contents[0], contents[2]) == (texts[0], texts[2])
    assert word.casefold() not in contents[1].casefold().split()
    assert texts[1].startswith(contents[1])
    assert (refusals, finishes[1]) == ({0: "", 1: MESSAGE, 2: ""}, "content_filter")
    assert len(usages) == 1
    assert usages[0].completion_tokens == answer.usage.completion_tokens
    whole_stream = stream_chat(client, **fields)
    assert whole_stream[:3] == (contents, refusals, finishes)
    checked, flagged, blocked, failed = counts(guards)["words", "completion"]
    assert (flagged, blocked, failed) == (3, 3, 0)
    assert checked >= 9


def test_a_guard_that_passes_changes_nothing(endpoint, client, make_guards):
    def everything():
        chunks = [
            chunk.model_dump(exclude={"id", "created"})
            for chunk in client.chat.completions.create(
                model="policy", messages=USER, max_tokens=12, seed=3, n=2, stream=True, logprobs=True, top_logprobs=2
            )
        ]
        text = client.completions.create(model="policy", prompt="The sea", max_tokens=9, seed=3, echo=True)
        by_index = [[chunk for chunk in chunks if chunk["choices"][0]["index"] == index] for index in (0, 1)]
        return by_index, text.choices

    plain = everything()
    endpoint.state.guards = make_guards(words=["unheard-of"], check_every=7)
    assert everything() == plain


def test_counting_guards_block_nothing(endpoint, client, make_guards):
    text = plain_answers(client)[0]
    guards = endpoint.state.guards = make_guards({"action": "count"}, words=[text.split()[0], "Seoul"])
    assert plain_answers(client) == [text]
    assert counts(guards) == {("words", "prompt"): [1, 1, 0, 0], ("words", "completion"): [1, 1, 0, 0]}


# ---------------------------------------------------------------- a scripted server behind

DELTAS = ["The ", "sea ", "is ", "full of ", "sharks ", "and ", "old ", "wrecks."]


def chunk(delta, finish=None, index=0):
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    body = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n"


def scripted(events):
    body = "".join(events).encode()
    return lambda *_: (200, {"Content-Type": "text/event-stream"}, body)


def front_of(respond, guards, **fields):
    """Stream an answer of a scripted server through guards; return its events."""
    with serving(respond) as behind:
        state = EndpointState(guards=guards)
        with run_upstream(behind.url.removesuffix("/v1"), state) as front:
            return front.events("/v1/chat/completions", messages=USER, **fields)


def text_of(events):
    return "".join(
        choice["delta"].get("content") or "" for x in events if x != "[DONE]" for choice in x.get("choices", ())
    )


def test_a_stream_ends_before_the_blocked_part(make_guards):
    events = [chunk({"content": text}) for text in DELTAS] + [chunk({}, "stop"), "data: [DONE]\n\n"]
    blocked = front_of(scripted(events), make_guards(words=["sharks"], check_every=4))
    assert text_of(blocked) == "The sea is full of "
    assert blocked[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert blocked[-2]["choices"][0]["delta"] == {"refusal": MESSAGE}
    assert blocked[-1] == "[DONE]"
    assert blocked.count("[DONE]") == 1
    assert text_of(front_of(scripted(events), make_guards(words=["sharks"], check_every=0))) == ""
    assert text_of(front_of(scripted(events), make_guards(words=["shar"], check_every=4))) == "".join(DELTAS)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "all about sharks"},
        {"reasoning_content": "they want sharks"},
        {
            "tool_calls": [
                {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"q": "sharks"}'}}
            ]
        },
        {"content": None, "refusal": "sharks I refuse"},
    ],
)
def test_all_that_a_completion_says_is_read(make_guards, delta):
    events = [chunk({"role": "assistant", "content": ""}), chunk(delta), chunk({}, "stop"), "data: [DONE]\n\n"]
    blocked = front_of(scripted(events), make_guards(words=["sharks"]))
    assert "shark" not in json.dumps(blocked)
    assert blocked[-2]["choices"][0]["finish_reason"] == "content_filter"
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", **delta}, "finish_reason": "stop"}]}
    with serving(lambda *_: answer) as behind:
        state = EndpointState(guards=make_guards(words=["sharks"]))
        with run_upstream(behind.url.removesuffix("/v1"), state) as front:
            whole = front.post("/v1/chat/completions", messages=USER)
    assert "shark" not in whole.text
    assert whole.json()["choices"][0]["finish_reason"] == "content_filter"


def test_what_is_held_back_is_checked_when_a_stream_breaks_off(make_guards):
    for last, text in (("sharks", ""), ("fish", "Many fish")):
        events = [chunk({"content": "Many "}), chunk({"content": last})]  # neither a finish reason nor [DONE]
        assert text_of(front_of(scripted(events), make_guards(words=["sharks"]))) == text


@pytest.mark.parametrize("seed", range(6))
def test_cuts_of_the_network_change_nothing(make_guards, seed):
    generator = random.Random(seed)
    events = [chunk({"role": "assistant", "content": ""}, index=index) for index in (0, 1)]
    events += [chunk({"content": f"{text}é "}, index=index) for text in DELTAS for index in (0, 1)]
    events += [": ping\n\n", chunk({}, "stop", 1), chunk({}, "length", 0), "data: [DONE]\n\n"]
    body = "".join(events).replace("\n", generator.choice(["\n", "\r\n"])).encode()
    cuts = sorted(generator.sample(range(1, len(body)), 40))

    def filtered(word):
        async def parts():
            for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
                yield body[start:end]

        async def collect():
            guards = make_guards(words=[word], check_every=generator.choice([0, 1, 6, 50]))
            request = GuardedRequest(guards, {"messages": USER, "n": 2, "stream": True}, "", True)
            return b"".join([part async for part in request.filter_stream(parts())])

        lines = asyncio.run(collect()).decode().split("\n")
        datas = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert datas.pop() == "[DONE]"
        chunks = [json.loads(data) for data in datas]
        return [[x for x in chunks if x["choices"][0]["index"] == index] for index in (0, 1)]

    for chunks in filtered("sharks"):
        assert [x["choices"][0]["finish_reason"] for x in chunks][-1] == "content_filter"
        assert "shark" not in text_of(chunks)
    for chunks, finish in zip(filtered("whales"), ("length", "stop"), strict=True):
        assert text_of(chunks) == "".join(f"{text}é " for text in DELTAS)
        assert chunks[-1]["choices"][0]["finish_reason"] == finish


def test_images_are_refused_where_prompts_are_read(make_guards):
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
    ]
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "A cat"}, "finish_reason": "stop"}]}
    with serving(lambda *_: answer) as behind:
        for reads, status in (("prompt", 400), ("completion", 200)):
            state = EndpointState(guards=make_guards({"reads": reads}, words=["dog"]))
            with run_upstream(behind.url.removesuffix("/v1"), state) as front:
                reply = front.post("/v1/chat/completions", messages=[{"role": "user", "content": parts}])
                assert reply.status_code == status
    assert len(behind.payloads) == 1


# ---------------------------------------------------------------- services


def moderation(scores):
    return lambda _, payload: {"results": [{"category_scores": {"harm": scores(payload["input"]), "other": 0.1}}]}


def test_a_moderation_service(endpoint, client, make_guards):
    with serving(moderation(lambda text: 0.95 if "LOCK" in text else 0.2)) as service:
        guard = {"name": "service", "scorer": f"moderation:{service.url}/moderations#m", "at_least": 0.9}
        guards = endpoint.state.guards = make_guards(guard)
        assert (
            client.chat.completions.create(model="policy", messages=HARMFUL).choices[0].finish_reason
            == "content_filter"
        )
        answer = client.chat.completions.create(model="policy", messages=USER, max_tokens=24, seed=5)
        assert answer.choices[0].finish_reason != "content_filter"
    for refuses in (True, False):  # the service is gone
        guards = endpoint.state.guards = make_guards(
            guard, on_error="refuse" if refuses else "pass", counts=f"{refuses}.jsonl"
        )
        if refuses:
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="policy", messages=USER, max_tokens=24, seed=5)
            assert (caught.value.status_code, caught.value.code) == (503, "guard_unavailable")
            assert counts(guards) == {("service", "prompt"): [0, 0, 0, 1]}
        else:
            assert client.chat.completions.create(model="policy", messages=USER, max_tokens=24, seed=5).choices
            assert counts(guards) == {("service", "prompt"): [0, 0, 0, 1], ("service", "completion"): [0, 0, 0, 1]}


def test_a_service_that_fails_within_a_stream(make_guards):
    events = [chunk({"content": text}) for text in DELTAS] + [chunk({}, "stop"), "data: [DONE]\n\n"]
    with serving(lambda *_: (400, {}, b"{}")) as service:
        guard = {"name": "s", "scorer": f"moderation:{service.url}", "at_least": 0.9, "reads": "completion"}
        received = front_of(scripted(events), make_guards(guard))
    assert received[0]["error"]["code"] == "guard_unavailable"
    assert received[1:] == ["[DONE]"]


def test_earlier_turns_are_scored_once(endpoint, client, make_guards):
    with serving(moderation(lambda _: 0.0)) as service:
        guard = {"name": "s", "scorer": f"moderation:{service.url}", "at_least": 0.9, "reads": "prompt"}
        endpoint.state.guards = make_guards(guard)
        turns = [{"role": "user", "content": "Hi"}]
        for _ in range(2):
            client.chat.completions.create(model="policy", messages=turns, max_tokens=2)
            turns += [
                {"role": "assistant", "content": f"No {len(turns)}"},
                {"role": "user", "content": f"Why {len(turns)}"},
            ]
        assert len(service.payloads) == 3  # each text once


# ---------------------------------------------------------------- counts and storage


def test_counts_of_two_servers_meet_in_one_file_without_texts(make_guards, tmp_path):
    first, second = make_guards(words=["sharks"]), make_guards(words=["sharks"])

    def count(guards):
        answer = {"choices": [{"index": 0, "message": {"content": "some sharks"}, "finish_reason": "stop"}]}
        with serving(lambda *_: answer) as behind:
            state = EndpointState(guards=guards)
            with run_upstream(behind.url.removesuffix("/v1"), state) as front:
                for _ in range(5):
                    front.post("/v1/chat/completions", messages=USER)

    threads = [threading.Thread(target=count, args=(guards,)) for guards in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(second) == {("words", "prompt"): [10, 0, 0, 0], ("words", "completion"): [10, 10, 10, 0]}
    text = (tmp_path / "guard.counts.jsonl").read_text()
    assert "shark" not in text
    assert "Seoul" not in text


def test_counts_are_in_the_file_while_the_server_runs(endpoint, client, make_guards, tmp_path):
    endpoint.state.guards = make_guards({"reads": "prompt"}, words=["lock"])
    client.chat.completions.create(model="policy", messages=HARMFUL)
    end = time.monotonic() + 10
    while not (tmp_path / "guard.counts.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert [row["blocked"] for row in read_guard_counts(tmp_path / "guard.counts.jsonl")] == [1]


def test_blocked_requests_are_not_kept(endpoint, client, make_guards, tmp_path):
    endpoint.state.storage = Storage(RequestLog(tmp_path / "store"))
    try:
        endpoint.state.guards = make_guards(words=["lock", plain_answers(client)[0].split()[0]])
        for messages in (HARMFUL, USER):
            for stream in (False, True):
                fields = {"messages": messages, "max_tokens": 24, "seed": 5, "store": True, "stream": stream}
                list(client.chat.completions.create(model="policy", **fields))
        expected = {"kept": 0, "in review": 0, "left out, content filter": 4}
        assert endpoint.state.storage.request_log.counts() == expected
    finally:
        endpoint.state.storage = Storage(None)
