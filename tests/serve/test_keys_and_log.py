"""Keys, and what is kept: only what says so, from owners who agreed, whatever is killed when."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import httpx
import pytest
from support.commands import SRC
from support.serving import run_endpoint, run_upstream

from instructgpt.cli import run_command
from instructgpt.records import Prompt, read_records
from instructgpt.serve.app import EndpointState
from instructgpt.serve.gate import Gate
from instructgpt.serve.keys import KeyFile, add_key, hash_key
from instructgpt.serve.request_log import REVIEW, RequestLog, StoredRequest, is_background_request
from instructgpt.serve.storage import Storage

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Where is Seoul?"}]


@pytest.fixture
def keys(tmp_path):
    """A file with the keys of three owners: ann agreed to storage, bob did not, eve agreed."""
    path = tmp_path / "keys.jsonl"
    made = {name: add_key(path, f"{name}-key", name, "chat", name != "bob") for name in ("ann", "bob", "eve")}
    return path, made


@pytest.fixture
def guarded(keys, tmp_path, save):
    """An endpoint with keys and storage; a request is sent with a key's name."""
    state = EndpointState(gate=Gate(KeyFile(keys[0])), storage=Storage(RequestLog(tmp_path / "store")))
    with run_endpoint({"policy": save("llama")}, state=state) as endpoint:
        yield endpoint


def send(endpoint, key, path=CHAT, headers=(), **fields):
    fields = {"max_tokens": 4} | ({"messages": USER} if path == CHAT else {}) | fields
    return endpoint.client.post(path, json=fields, headers={"Authorization": f"Bearer {key}", **dict(headers)})


def kept(endpoint):
    return list(endpoint.state.storage.request_log.records())


def test_keys_are_needed_and_end_at_once(guarded, keys, capsys):
    path, made = keys
    assert send(guarded, made["ann"]).status_code == 200
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Basic {made['ann']}"}):
        answer = guarded.client.post(CHAT, json={"messages": USER}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_api_key")
    assert send(guarded, made["ann"] + "x").json()["error"]["code"] == "invalid_api_key"
    for address in ("/v1/models", "/tokenizer_info"):
        assert guarded.client.get(address).status_code == 401
    assert guarded.client.get("/health").status_code == 200
    assert run_command(["serve", "keys", "revoke", "--keys", str(path), "--name", "ann-key"]) == 0
    assert send(guarded, made["ann"]).status_code == 401
    assert run_command(["serve", "keys", "add", "--keys", str(path), "--name", "new", "--owner", "ann"]) == 0
    assert send(guarded, capsys.readouterr().out.split()[-1]).status_code == 200
    text = path.read_text()
    assert not any(key in text for key in made.values())
    assert path.stat().st_mode & 0o077 == 0
    path.write_text(text + "{")
    assert send(guarded, made["bob"]).json()["error"]["code"] == "keys_unreadable"


def test_commands_about_keys(tmp_path, capsys):
    path = tmp_path / "keys.jsonl"

    def keys(*words):
        code = run_command(["serve", "keys", *words, "--keys", str(path)])
        said = capsys.readouterr()
        return code, said.out + said.err

    assert keys("add", "--name", "a", "--owner", "ann", "--use-case", "chat", "--allow-store")[0] == 0
    row = json.loads(path.read_text())
    assert row | {"created": ""} == {
        "name": "a", "sha256": row["sha256"], "owner": "ann", "use_case": "chat", "store": True, "created": "",
        "approved_by": "",
    }  # fmt: skip
    assert keys("list")[1].split("\t")[:5] == ["a", "ann", "chat", "not approved", "store: true is kept"]
    for words, complaint in (
        (("add", "--name", "a", "--owner", "bob"), "there is a key 'a' already"),
        (("add", "--name", "b"), "--owner is required"),
        (("add",), "--name is required"), (("revoke", "--name", "c"), "no key 'c'; keys: a"),
    ):  # fmt: skip
        code, said = keys(*words)
        assert (code, complaint in said) == (2, True)
    path.write_text('{"name": "a", "sha256": "short", "owner": "ann"}\n')
    code, said = keys("list")
    assert (code, "keys.jsonl:1: not a key" in said) == (2, True)


def test_only_consented_requests_are_kept(guarded, keys):
    _, made = keys
    send(guarded, made["ann"])  # does not say so
    send(guarded, made["bob"], store=True)  # the owner did not agree
    send(guarded, made["ann"], store=False)
    assert kept(guarded) == []
    answer = send(guarded, made["ann"], store=True, n=2, seed=5, temperature=0.5).json()
    (record,) = kept(guarded)
    assert record["messages"] == USER
    assert record["completions"] == [
        {"completion": choice["message"]["content"], "finish": choice["finish_reason"]} for choice in answer["choices"]
    ]
    assert (record["id"], record["model"], record["seed"], record["key"]) == (answer["id"], "policy", 5, "ann-key")
    assert record["sampling"] == {"max_tokens": 4, "n": 2, "temperature": 0.5, "top_p": 1.0, "stop": []}
    assert (
        record["sha256"]
        == guarded.client.get("/v1/models/policy", headers={"Authorization": f"Bearer {made['ann']}"}).json()["sha256"]
    )
    folder = guarded.state.storage.request_log.folder
    assert "ann" not in {record["user"]}
    assert not any(b"127.0.0.1" in path.read_bytes() for path in folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0
    prompts = read_records(Prompt, folder / "requests.jsonl")
    assert [(prompt.prompt, prompt.user, prompt.use_case) for prompt in prompts] == [
        ("Where is Seoul?", record["user"], "chat")
    ]


def test_streams_and_texts_are_kept(guarded, keys):
    key = keys[1]["eve"]
    streamed = send(guarded, key, store=True, stream=True, max_tokens=9)
    text = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        for line in streamed.text.splitlines()
        if line.startswith("data: {")
    )
    send(guarded, key, "/v1/completions", prompt=["The sea", "A frog"], store=True)
    records = kept(guarded)
    assert records[0]["completions"][0]["completion"] == text
    assert [record["prompt"] for record in records[1:]] == ["The sea", "A frog"]
    assert len({record["id"] for record in records}) == 3


def test_what_is_left_out_is_counted(guarded, keys):
    key = keys[1]["ann"]
    tasks = [
        "### Task:\nGenerate a concise, 3-5 word title with an emoji",
        "### Task:\nSuggest 3-5 relevant follow-up questions",
    ]
    for task in tasks:
        send(guarded, key, store=True, messages=[{"role": "user", "content": task}], max_tokens=1)
    send(guarded, key, store=True, headers={"x-stainless-retry-count": "1"})
    send(guarded, keys[1]["bob"], store=True)
    send(guarded, key, store=True, messages=[{"role": "user", "content": "Write to ann.lee@mail.de, +49 171 2345678"}])
    request_log = guarded.state.storage.request_log
    assert kept(guarded) == []
    assert request_log.counts() == {
        "kept": 0, "in review": 1, "left out, background request": 2, "left out, no consent": 1, "left out, retry": 1
    }  # fmt: skip
    (record,) = request_log.records(REVIEW)
    assert "email" in record["personal_data"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Provide a concise, 5-word-or-less title for the conversation, using title case", True),
        ("Create a short title for my poem about the sea", True),
        ("What is the title of this book?", False), ("Generate a task list", False), ("Suggest a name", False),
    ],
)  # fmt: skip
def test_background_requests(text, expected):
    assert is_background_request({"messages": [{"role": "user", "content": text}]}) == expected


def test_withdrawal_and_retention(guarded, keys, capsys):
    for name in ("ann", "eve", "ann"):
        send(guarded, keys[1][name], store=True)
    send(guarded, keys[1]["ann"], store=True, messages=[{"role": "user", "content": "mail ann.lee@mail.de"}])
    folder = str(guarded.state.storage.request_log.folder)
    assert run_command(["serve", "log", "delete", "--store", folder, "--owner", "ann"]) == 0
    assert "deleted 3 requests of ann" in capsys.readouterr().out
    assert [record["key"] for record in kept(guarded)] == ["eve-key"]
    send(guarded, keys[1]["ann"], store=True)  # a running server goes on in the new file
    assert [record["key"] for record in kept(guarded)] == ["eve-key", "ann-key"]
    assert run_command(["serve", "log", "expire", "--store", folder, "--days", "1"]) == 0
    assert len(kept(guarded)) == 2
    assert run_command(["serve", "log", "expire", "--store", folder, "--days", "0"]) == 0
    assert kept(guarded) == []
    assert run_command(["serve", "log", "counts", "--store", folder + "x"]) == 2


def test_through_upstream(keys, tmp_path, save):
    """The same keys and the same log in front of a server that needs no keys; it never learns of `store`."""
    state = EndpointState(gate=Gate(KeyFile(keys[0])), storage=Storage(RequestLog(tmp_path / "store")))
    with run_endpoint({"policy": save("llama")}) as behind, run_upstream(behind.url, state) as front:
        assert front.client.post(CHAT, json={"messages": USER}).status_code == 401
        plain = send(front, keys[1]["ann"], store=True, seed=3, max_tokens=6).json()
        streamed = send(front, keys[1]["ann"], store=True, seed=3, max_tokens=6, stream=True)
        send(front, keys[1]["bob"], store=True)
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert behind.chat("Where is Seoul?", seed=3, max_tokens=6)["choices"] == plain["choices"]
        records = list(state.storage.request_log.records())
        answer = {
            "completion": plain["choices"][0]["message"]["content"],
            "finish": plain["choices"][0]["finish_reason"],
        }
        assert [record["completions"] for record in records] == [[answer], [answer]]
        assert (records[0]["model"], records[0]["seed"], records[0]["messages"]) == ("policy", 3, USER)
        error = send(front, keys[1]["ann"], model="gpt-9").json()["error"]
        assert error["code"] == "model_not_found"
    with run_upstream(behind.url) as front:
        answer = front.post(CHAT, messages=USER)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")


WRITER = """
import sys
from instructgpt.serve.keys import APIKey
from instructgpt.serve.request_log import RequestLog, StoredRequest
from pathlib import Path
log = RequestLog(Path(sys.argv[1]))
for i in range(10**6):
    text = f"{sys.argv[2]} {i} " + "x" * 5_000
    log.add(StoredRequest(str(i), {"prompt": text}, [], "m", "h", {}, 0), APIKey("k", "", sys.argv[2], "", True))
    print(i, flush=True)
"""


def test_killed_writers_lose_nothing_and_leave_no_half_lines(tmp_path):
    """What was reported as kept is there, whole, in order, whoever is killed; a cut line goes with the next write."""
    generator = random.Random(0)
    reported = {}
    for round_number in range(3):
        names = [f"owner-{round_number}-{i}" for i in range(2)]
        processes = {
            name: subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path / "store"), name],
                stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SRC)},
            )
            for name in names
        }  # fmt: skip
        for process in processes.values():
            process.stdout.readline()
        time.sleep(generator.uniform(0.05, 0.3))
        for name, process in processes.items():
            process.send_signal(signal.SIGKILL)
            rest = process.communicate()[0].split("\n")
            reported[name] = max([int(x) for x in rest[:-1] if x], default=0)
        with (tmp_path / "store" / "requests.jsonl").open("ab") as stream:
            stream.write(b'{"id": "cut')  # as a kill within the write would leave it
    request_log = RequestLog(tmp_path / "store")
    found = {}
    for record in request_log.records():
        name, number, _ = record["prompt"].split(" ", 2)
        assert int(number) == found.get(name, -1) + 1
        found[name] = int(number)
    assert found.keys() == reported.keys()
    assert all(0 <= found[name] - reported[name] <= 1 for name in found)
    request_log.add(StoredRequest("last", {"prompt": "x"}, [], "m", "h", {}, 0), None)


def test_other_machines_need_keys(tmp_path, save, capsys):
    assert run_command(["serve", "--model", str(save("llama")), "--host", "0.0.0.0"]) == 2
    assert "with keys only" in capsys.readouterr().err
    for words in (
        ["--model", str(tmp_path / "none")], ["--model", "a=x", "--upstream", "http://x"], [], ["--upstream", "x"],
        ["--upstream", "http://x", "--keys", str(tmp_path / "none")],
        ["--upstream", "http://x", "--store", str(tmp_path)],
    ):  # fmt: skip
        assert run_command(["serve", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_hash_by_hand():
    assert hash_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_command(save):
    """From the command line to an answer and an end without a traceback."""
    line = [sys.executable, "-m", "instructgpt", "serve", "--model", f"policy={save('llama')}", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        said = ""
        while "ready" not in said:
            said += process.stdout.readline()
        url = said[said.index("http://") :].split()[0]
        assert (
            httpx.post(f"{url}/chat/completions", json={"messages": USER, "max_tokens": 3}, timeout=60).status_code
            == 200
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err, out.splitlines()[-1]) == (0, "", "stopped")
