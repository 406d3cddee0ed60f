"""Our own endpoint on a free port of this machine, in this process."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from instructgpt.network import bind_socket
from instructgpt.serve.app import EndpointState, create_endpoint_app
from instructgpt.serve.served_model import ServedModel
from instructgpt.serve.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint and a client for it."""

    url: str
    state: EndpointState
    client: httpx.Client

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.client.post(path, json=fields)

    def chat(self, content: str, **fields: Any) -> dict[str, Any]:
        """Return the answer to one user turn."""
        answer = self.post("/v1/chat/completions", messages=[{"role": "user", "content": content}], **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def complete(self, prompt: Any, **fields: Any) -> dict[str, Any]:
        answer = self.post("/v1/completions", prompt=prompt, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, path: str, **fields: Any) -> list[Any]:
        """Return the events of a stream: JSON objects, and the text [DONE]."""
        with self.client.stream("POST", path, json={"stream": True, **fields}) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextlib.contextmanager
def serve_app(app: Any) -> Iterator[str]:
    """Serve an application in a thread; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    with bind_socket("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def run_endpoint(
    sources: Mapping[str, Path | str], max_rows: int = 64, max_waiting: int = 256, state: EndpointState | None = None
) -> Iterator[Endpoint]:
    """Serve models by their names."""
    state = state or EndpointState()
    for name, source in sources.items():
        state.models[name] = ServedModel.load(name, str(source), torch.device("cpu"), max_rows, max_waiting)
    state.is_ready = True
    try:
        with serve_app(create_endpoint_app(state)) as url, httpx.Client(base_url=url, timeout=60) as client:
            yield Endpoint(url, state, client)
    finally:
        for model in state.models.values():
            model.engine.close()


@contextlib.contextmanager
def run_endpoint_as(kind: str, sources: Mapping[str, Path | str]) -> Iterator[tuple[Endpoint, Endpoint]]:
    """Serve models; yields the endpoint that clients ask and the one with the models.

    They are the same for the kind "own models"; for "upstream" the first passes requests to the second.
    """
    with run_endpoint(sources) as running:
        if kind == "own models":
            yield running, running
        else:
            with run_upstream(running.url) as front:
                yield front, running


@contextlib.contextmanager
def run_upstream(url: str, state: EndpointState | None = None) -> Iterator[Endpoint]:
    """Serve what another endpoint answers."""
    state = state or EndpointState()
    state.upstream = Upstream(f"{url}/v1", None, 60.0)
    with serve_app(create_endpoint_app(state)) as front, httpx.Client(base_url=front, timeout=60) as client:
        yield Endpoint(front, state, client)
