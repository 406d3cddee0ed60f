"""The HTTP endpoint: OpenAI's routes, the tokenizer, health, metrics; from our models or the server behind this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from instructgpt.errors import one_line
from instructgpt.io import format_json_line
from instructgpt.run.use_policy import UsePolicy
from instructgpt.serve.errors import APIError, error_body, invalid_field
from instructgpt.serve.gate import Gate, GateMiddleware, format_error
from instructgpt.serve.generation import LAST_EVENT, Generation, GenerationLimits
from instructgpt.serve.guard.checking import GuardSet, check_use_case
from instructgpt.serve.guard.filtering import GuardedRequest
from instructgpt.serve.metrics import RequestCounts, format_metrics
from instructgpt.serve.request_fields import ChatFields, GenerationFields, TextFields, parse_fields, parse_messages
from instructgpt.serve.request_log import StoredRequest
from instructgpt.serve.served_model import ServedModel
from instructgpt.serve.storage import Storage, generated_requests, passed_requests
from instructgpt.serve.upstream import CollectedAnswer, Upstream, passed_headers

_LOADING_RETRY_S = 2
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_CLIENT_GONE = 499
"""Nobody reads this answer; it is in the counters."""


@dataclass(slots=True)
class EndpointState:
    """What the routes share. `models` is empty while they are loaded, and with `upstream`."""

    models: dict[str, ServedModel] = field(default_factory=dict)
    is_ready: bool = False
    gate: Gate = field(default_factory=Gate)
    limits: GenerationLimits = field(default_factory=GenerationLimits)
    upstream: Upstream | None = None
    storage: Storage = field(default_factory=lambda: Storage(None))
    guards: GuardSet | None = None
    shows_metrics: bool = False
    counts: RequestCounts = field(default_factory=Counter)

    @property
    def policy(self) -> UsePolicy:
        """The owner's policy; without one, high-stakes domains are refused and all else is allowed."""
        return self.guards.policy if self.guards else UsePolicy()

    def describe_use(self) -> dict[str, Any]:
        """Return what each model's entry says about its use."""
        return {"policy": self.policy.describe(), "guards": self.guards.describe() if self.guards else []}

    def guard(self, request: Request, body: Any) -> GuardedRequest | None:
        """Return a request as the guards see it, None without guards.

        Raises:
            APIError: the policy refuses the use case of its key.
        """
        key = request.state.key
        check_use_case(self.policy, key, self.guards.counts if self.guards else None)
        if self.guards is None or not isinstance(body, dict):
            return None
        is_chat = request.url.path.endswith("/chat/completions")
        return GuardedRequest(self.guards, body, key.use_case if key else "", is_chat)

    def get_model(self, name: str | None) -> ServedModel:
        """Return a model by its name, or the first one.

        Raises:
            APIError: there is no such model, or models are still loading.
        """
        if not self.is_ready:
            headers = {"Retry-After": str(_LOADING_RETRY_S)}
            raise APIError(503, "the models are loading", code="model_loading", headers=headers)
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            message = f"there is no model '{name[:200]}'; models: {', '.join(self.models)}"
            raise APIError(404, message, param="model", code="model_not_found")
        return self.models[name]


def create_endpoint_app(state: EndpointState) -> FastAPI:
    """Return the application."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if state.upstream is not None:
            await state.upstream.client.aclose()
        if state.guards is not None:
            await asyncio.to_thread(state.guards.close)

    app = FastAPI(title="instructgpt", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.endpoint = state
    app.add_exception_handler(APIError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_internal_error)
    paths = frozenset((*_POST_ROUTES, *_GET_ROUTES))
    app.add_middleware(GateMiddleware, gate=state.gate, counts=state.counts, paths=paths)
    for path, handler in _POST_ROUTES.items():
        app.add_api_route(path, handler, methods=["POST"])
    for path, handler in _GET_ROUTES.items():
        app.add_api_route(path, handler, methods=["GET"])
    if state.shows_metrics:
        app.add_api_route("/metrics", show_metrics, methods=["GET"])
    return app


def _state(request: Request) -> EndpointState:
    state: EndpointState = request.app.state.endpoint
    return state


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return format_error(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(error.status_code, message), error.status_code, headers=error.headers)


async def _answer_internal_error(_: Request, error: Exception) -> Response:
    message = f"{type(error).__name__}: {one_line(error, 200)}"
    return JSONResponse(error_body(500, message, code="internal_error"), 500)


async def _read_request(request: Request) -> Any:
    """Count a request against its key's rate, and return its JSON."""
    gate = _state(request).gate
    gate.check_rate(request.state.key)
    return await gate.read_body(request)


# ---------------------------------------------------------------- completions


async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    return await _generate(request, ChatFields)


async def create_completion(request: Request) -> Response:
    """Continue texts."""
    return await _generate(request, TextFields)


async def _generate(request: Request, fields_class: type[GenerationFields]) -> Response:
    state = _state(request)
    body = await _read_request(request)
    guarded = state.guard(request, body)
    if state.upstream is not None:
        return await _pass_generation(request, state.upstream, body, guarded)
    model = state.get_model(_model_name(body))
    generation = Generation(model, parse_fields(fields_class, body), state.limits)
    if guarded is not None:
        if isinstance(generation.fields, TextFields):  # token ids as the text that the model reads
            guarded.body = body | {"prompt": [model.tokenizer.decode(x.prompt) for x in generation.requests]}
        if await guarded.is_prompt_blocked():
            return await _refuse(request, guarded, model.name)
    generation.submit()
    if generation.fields.stream:
        events = _stream_and_store(request, generation, guarded)
        return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
    answer = await _unless_disconnected(request, generation.run())
    if answer is None:
        return Response(status_code=_CLIENT_GONE)
    if guarded is not None:
        answer = await guarded.filter_answer(answer)
    await _keep(request, generated_requests(generation), guarded)
    return JSONResponse(answer)


async def _refuse(request: Request, guarded: GuardedRequest, model: str) -> Response:
    """Answer a prompt that a guard blocks, in the form that was asked for. The model does not see it."""
    await _keep(request, (), guarded)
    if guarded.body.get("stream"):
        return StreamingResponse(guarded.refused_stream(model), media_type="text/event-stream", headers=_STREAM_HEADERS)
    return JSONResponse(guarded.refused_answer(model))


async def _keep(request: Request, requests: Sequence[StoredRequest], guarded: GuardedRequest | None) -> None:
    """Keep what may be kept; a request with a blocked prompt or completion is only counted, once."""
    storage = _state(request).storage
    if guarded is not None and guarded.has_blocked:
        if guarded.body.get("store") is True and not guarded.is_left_out:
            guarded.is_left_out = True
            await storage.leave_out_filtered()
        return
    await storage.keep(request, requests)


async def _stream_and_store(
    request: Request, generation: Generation, guarded: GuardedRequest | None
) -> AsyncIterator[bytes]:
    """Yield a stream; what may be kept is on disk before the stream ends."""
    parts = _encoded(generation)
    async for part in parts if guarded is None else guarded.filter_stream(parts):
        if part.endswith(LAST_EVENT.encode()):
            await _keep(request, generated_requests(generation), guarded)
        yield part


async def _encoded(generation: Generation) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(generation.stream()) as events:
        async for event in events:
            yield event.encode()


async def _unless_disconnected(request: Request, work: Awaitable[Any]) -> Any:
    """Return the result, or None where the client goes before; the work is then cancelled."""
    task = asyncio.ensure_future(work)
    disconnection = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnection}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for pending in (task, disconnection):
            pending.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _model_name(body: Any) -> str | None:
    name = body.get("model") if isinstance(body, dict) else None
    if name is not None and not isinstance(name, str):
        raise invalid_field("model", "expected a text")
    return name


# ---------------------------------------------------------------- the server behind this one


async def _pass_generation(request: Request, upstream: Upstream, body: Any, guarded: GuardedRequest | None) -> Response:
    if not isinstance(body, dict):
        raise APIError(400, "expected a JSON object")
    if guarded is not None and await guarded.is_prompt_blocked():
        return await _refuse(request, guarded, _model_name(body) or "")
    passed = {name: value for name, value in body.items() if name != "store"}  # kept here or nowhere
    answer = await _unless_disconnected(request, upstream.open("POST", request.url.path, passed))
    if answer is None:
        return Response(status_code=_CLIENT_GONE)
    collected = CollectedAnswer()
    if answer.status_code == 200 and answer.headers.get("content-type", "").startswith("text/event-stream"):
        events = _pass_stream(request, upstream.stream(answer, collected), body, collected, guarded)
        return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
    content = await _unless_disconnected(request, upstream.read(answer))
    if content is None:
        return Response(status_code=_CLIENT_GONE)
    if answer.status_code == 200:
        collected.add_whole(content)
        if guarded is not None:
            content = await _filter_content(guarded, content)
        await _keep(request, passed_requests(body, collected), guarded)
    return Response(content, answer.status_code, headers=passed_headers(answer))


async def _filter_content(guarded: GuardedRequest, content: bytes) -> bytes:
    """Return the body of a whole answer after the guards. Raises APIError where it is not what they can read."""
    try:
        answer = json.loads(content)
    except ValueError as error:
        raise APIError(502, "the server behind this one sent no JSON", code="upstream_unreadable") from error
    if not isinstance(answer, dict):
        raise APIError(502, "the server behind this one sent no JSON object", code="upstream_unreadable")
    return format_json_line(await guarded.filter_answer(answer)).encode()


async def _pass_stream(
    request: Request,
    parts: AsyncGenerator[bytes, None],
    body: dict[str, Any],
    collected: CollectedAnswer,
    guarded: GuardedRequest | None,
) -> AsyncIterator[bytes]:
    async for part in parts if guarded is None else guarded.filter_stream(parts):
        if collected.is_complete and body.get("store") is True and b"[DONE]" in part:
            await _keep(request, passed_requests(body, collected), guarded)
            body = {}
        yield part
    await _keep(request, passed_requests(body, collected), guarded)


async def _pass(request: Request, upstream: Upstream, body: Any = None) -> Response:
    """Pass a request that generates nothing."""
    answer = await upstream.open(request.method, request.url.path, body, dict(request.query_params))
    content = await upstream.read(answer)
    return Response(content, answer.status_code, headers=passed_headers(answer))


# ---------------------------------------------------------------- models, tokenizer, health


async def list_served_models(request: Request) -> Response:
    """List the models with their contexts."""
    state = _state(request)
    if state.upstream is not None:
        return await _pass_description(request, state.upstream, state.describe_use())
    state.get_model(None)
    use = state.describe_use()
    return JSONResponse({"object": "list", "data": [model.describe() | use for model in state.models.values()]})


async def retrieve_model(request: Request, name: str) -> Response:
    """Describe one model."""
    state = _state(request)
    if state.upstream is not None:
        return await _pass_description(request, state.upstream, state.describe_use())
    return JSONResponse(state.get_model(name).describe() | state.describe_use())


async def _pass_description(request: Request, upstream: Upstream, use: dict[str, Any]) -> Response:
    """Pass a description of models, with the policy of this server."""
    answer = await upstream.open("GET", request.url.path, None, dict(request.query_params))
    content = await upstream.read(answer)
    try:
        described = json.loads(content) if answer.status_code == 200 else None
    except ValueError:
        described = None
    if isinstance(described, dict):
        models = described.get("data") if isinstance(described.get("data"), list) else [described]
        for model in models or ():
            if isinstance(model, dict):
                model.update(use)
        content = format_json_line(described).encode()
    return Response(content, answer.status_code, headers=passed_headers(answer))


async def check_health(request: Request) -> Response:
    """Answer 200 when the models are loaded, or the server behind this one answers."""
    state = _state(request)
    if state.upstream is not None:
        answer = await state.upstream.open("GET", "/v1/models")
        await answer.aclose()
        return JSONResponse({"status": "ok"}) if answer.status_code < 500 else Response(status_code=503)
    if not state.is_ready:
        return JSONResponse({"status": "loading"}, 503, headers={"Retry-After": str(_LOADING_RETRY_S)})
    return JSONResponse({"status": "ok", "models": list(state.models)})


async def show_metrics(request: Request) -> Response:
    """Show counters in Prometheus' text format."""
    state = _state(request)
    text = format_metrics(state.counts, {name: model.engine for name, model in state.models.items()})
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def tokenize(request: Request) -> Response:
    """Turn a text or a conversation into token ids."""
    state = _state(request)
    body = await state.gate.read_body(request)
    if state.upstream is not None:
        return await _pass(request, state.upstream, body)
    model = state.get_model(_model_name(body))
    body = {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else {}
    if isinstance(body.get("messages"), list):
        tokens = list(model.encode_chat(parse_messages(body["messages"])))
    elif isinstance(body.get("prompt"), str):
        add_special_tokens = body.get("add_special_tokens", True) is not False
        tokens = model.tokenizer.hf_tokenizer.encode(body["prompt"], add_special_tokens=add_special_tokens)
    else:
        raise invalid_field("prompt", "expected a text, or messages")
    answer = {"count": len(tokens), "max_model_len": model.context, "tokens": tokens, "model": model.name}
    if body.get("return_token_strs"):
        answer["token_strs"] = [model.texts.token_text(token) for token in tokens]
    return JSONResponse(answer)


async def detokenize(request: Request) -> Response:
    """Turn token ids into text, special tokens included."""
    state = _state(request)
    body = await state.gate.read_body(request)
    if state.upstream is not None:
        return await _pass(request, state.upstream, body)
    model = state.get_model(_model_name(body))
    tokens = body.get("tokens") if isinstance(body, dict) else None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise invalid_field("tokens", "expected a list of token ids")
    model.check_token_ids("tokens", tokens)
    text = model.tokenizer.hf_tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    return JSONResponse({"prompt": text, "model": model.name})


async def describe_tokenizer(request: Request) -> Response:
    """Return the tokenizer's special tokens and chat template, so that clients need no download."""
    state = _state(request)
    if state.upstream is not None:
        return await _pass(request, state.upstream)
    model = state.get_model(request.query_params.get("model"))
    tokenizer = model.tokenizer.hf_tokenizer
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    description = {"tokenizer_class": type(tokenizer).__name__, "model": model.name, **tokens}
    return JSONResponse(description | {"model_max_length": model.context, "chat_template": tokenizer.chat_template})


_Handler = Callable[..., Awaitable[Response]]
_POST_ROUTES: dict[str, _Handler] = {
    "/v1/chat/completions": create_chat_completion,
    "/v1/completions": create_completion,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
_GET_ROUTES: dict[str, _Handler] = {
    "/v1/models": list_served_models,
    "/v1/models/{name:path}": retrieve_model,
    "/health": check_health,
    "/tokenizer_info": describe_tokenizer,
}
