"""A small OpenAI-compatible server of its own: models that answer by rule, streamed in the chunks of OpenAI's API."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from support.browser import free_port

MODELS = ("policy", "policy@round-1", "sft", "base")


@dataclass
class OpenAIServer:
    """What it received, and how it behaves."""

    port: int
    models: tuple[str, ...] = MODELS
    key: str | None = None
    delay_s: float = 0.0  # before each word
    words: int = 4
    fixed_answer: str | None = None
    broken_models: tuple[str, ...] = ()
    payloads: list[dict[str, Any]] = field(default_factory=list)
    cancelled: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer_to(self, payload: dict[str, Any]) -> str:
        if self.fixed_answer is not None:
            return self.fixed_answer
        last = payload["messages"][-1]["content"]
        words = [f"{payload['model']}-says-{number}" for number in range(self.words)]
        return " ".join([*words, f"({len(payload['messages'])} messages, {len(last)} characters)"])


def create_openai_app(server: OpenAIServer) -> FastAPI:
    app = FastAPI()

    def refusal(status: int, message: str) -> JSONResponse:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": error}, status_code=status)

    def is_refused(request: Request) -> bool:
        return server.key is not None and request.headers.get("authorization") != f"Bearer {server.key}"

    @app.get("/v1/models")
    async def list_models(request: Request):
        if is_refused(request):
            return refusal(401, "wrong key")
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"} for name in server.models]
        return {"object": "list", "data": data}

    @app.post("/v1/chat/completions")
    async def complete(request: Request):
        payload = await request.json()
        if is_refused(request):
            return refusal(401, "wrong key")
        server.payloads.append(payload)
        if payload["model"] not in server.models:
            return refusal(404, f"no model {payload['model']}; there are {', '.join(server.models)}")
        if payload["model"] in server.broken_models:
            return refusal(500, "this model is broken")
        return StreamingResponse(chunks(payload), media_type="text/event-stream")

    async def chunks(payload: dict[str, Any]) -> AsyncIterator[str]:
        def chunk(delta: dict[str, str], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            body = {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 0,
                "model": payload["model"],
                "system_fingerprint": f"fp_{payload['model']}",
                "choices": [choice],
            }
            return f"data: {json.dumps(body)}\n\n"

        try:
            yield chunk({"role": "assistant", "content": ""})
            yield ": ping\n\n"
            words = server.answer_to(payload).split(" ")
            limit = payload.get("max_tokens") or len(words)
            for place, word in enumerate(words[:limit]):
                await asyncio.sleep(server.delay_s)
                yield chunk({"content": word if place == 0 else f" {word}"})
            yield chunk({}, "stop" if limit >= len(words) else "length")
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):  # while it waits, or while it sends
            server.cancelled += 1
            raise

    return app


@contextmanager
def openai_server(**options: Any) -> Iterator[OpenAIServer]:
    """Run the server on a free port."""
    server = OpenAIServer(free_port(), **options)
    config = uvicorn.Config(
        create_openai_app(server),
        host="127.0.0.1",
        port=server.port,
        log_level="error",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not running.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    try:
        yield server
    finally:
        running.should_exit = running.force_exit = True
        thread.join(20)
