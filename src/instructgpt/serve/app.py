"""The HTTP endpoint: OpenAI's routes, the tokenizer, health."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from instructgpt.errors import one_line
from instructgpt.records import Message
from instructgpt.serve.errors import APIError, error_body, invalid_field
from instructgpt.serve.generation import Generation, GenerationLimits, internal_error
from instructgpt.serve.request_fields import ChatFields, GenerationFields, TextFields, parse_fields, parse_messages
from instructgpt.serve.served_model import ServedModel

_LOADING_RETRY_S = 2


@dataclass(slots=True)
class EndpointState:
    """What the routes share. `models` is empty while they are loaded."""

    models: dict[str, ServedModel] = field(default_factory=dict)
    is_ready: bool = False
    limits: GenerationLimits = field(default_factory=GenerationLimits)
    max_body_bytes: int = 4 * 2**20
    loopback_only: bool = True
    """Whether requests must name a loopback host: without keys, no web page may reach the server by another name."""

    def get_model(self, name: str | None) -> ServedModel:
        """Return a model by its name, or the first one.

        Raises:
            APIError: there is no such model, or models are still loading.
        """
        if not self.is_ready:
            raise APIError(
                503, "the models are loading", code="model_loading", headers={"Retry-After": str(_LOADING_RETRY_S)}
            )
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            names = ", ".join(self.models)
            message = f"there is no model '{name[:200]}'; models: {names}"
            raise APIError(404, message, param="model", code="model_not_found")
        return self.models[name]


def create_app(state: EndpointState) -> FastAPI:
    """Return the application."""
    app = FastAPI(title="instructgpt", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.endpoint = state
    app.add_exception_handler(APIError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_internal_error)
    app.middleware("http")(_refuse_foreign_pages)
    for path, handler in _POST_ROUTES.items():
        app.add_api_route(path, handler, methods=["POST"])
    for path, handler in _GET_ROUTES.items():
        app.add_api_route(path, handler, methods=["GET"])
    return app


def _state(request: Request) -> EndpointState:
    state: EndpointState = request.app.state.endpoint
    return state


async def _refuse_foreign_pages(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse requests that a browser sends for the page of another site."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return _error_response(APIError(403, "requests from pages of other sites are refused", code="cross_origin"))
    if _state(request).loopback_only and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        message = "without keys only loopback addresses are served; make a key with 'instructgpt serve keys add'"
        return _error_response(APIError(403, message, code="not_loopback"))
    return await call_next(request)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _error_response(error: APIError) -> JSONResponse:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return _error_response(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(error.status_code, message), error.status_code, headers=error.headers)


async def _answer_internal_error(_: Request, error: Exception) -> Response:
    return JSONResponse(internal_error(f"{type(error).__name__}: {one_line(error, 200)}"), 500)


async def read_body(request: Request) -> Any:
    """Return the JSON of a request.

    Raises:
        APIError: it is too large, or no JSON.
    """
    limit = _state(request).max_body_bytes
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise APIError(413, f"the request is larger than {limit} bytes", code="request_too_large")
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        if b"\\ud" in body.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise APIError(400, f"the body is not valid JSON ({one_line(error, 100)})", code="invalid_json") from error
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


async def _generate(request: Request, fields_class: type[GenerationFields]) -> Response:
    state = _state(request)
    body = await read_body(request)
    model = state.get_model(_model_name(body))
    fields = parse_fields(fields_class, body)
    generation = Generation(model, fields, state.limits)
    generation.submit()
    if fields.stream:
        return StreamingResponse(_encoded(generation.stream()), media_type="text/event-stream", headers=_STREAM_HEADERS)
    task = asyncio.create_task(generation.run())
    disconnection = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnection}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(task.result())
    finally:
        generation.cancel()
        for pending in (task, disconnection):
            pending.cancel()


_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def _encoded(events: AsyncIterator[str]) -> AsyncIterator[bytes]:
    async for event in events:
        yield event.encode()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _model_name(body: Any) -> str | None:
    name = body.get("model") if isinstance(body, dict) else None
    if name is not None and not isinstance(name, str):
        raise invalid_field("model", "expected a text")
    return name


async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    return await _generate(request, ChatFields)


async def create_completion(request: Request) -> Response:
    """Continue texts."""
    return await _generate(request, TextFields)


async def list_models(request: Request) -> Response:
    """List the models with their contexts."""
    state = _state(request)
    state.get_model(None)
    return JSONResponse({"object": "list", "data": [model.describe() for model in state.models.values()]})


async def retrieve_model(request: Request, name: str) -> Response:
    """Describe one model."""
    return JSONResponse(_state(request).get_model(name).describe())


async def check_health(request: Request) -> Response:
    """Answer 200 when the models are loaded."""
    state = _state(request)
    if not state.is_ready:
        return JSONResponse({"status": "loading"}, 503, headers={"Retry-After": str(_LOADING_RETRY_S)})
    return JSONResponse({"status": "ok", "models": list(state.models)})


async def tokenize(request: Request) -> Response:
    """Turn a text or a conversation into token ids."""
    body = await read_body(request)
    model = _state(request).get_model(_model_name(body))
    body = {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else {}
    if isinstance(body.get("messages"), list):
        messages: tuple[Message, ...] = parse_messages(body["messages"])
        tokens = list(model.encode_chat(messages))
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
    body = await read_body(request)
    model = _state(request).get_model(_model_name(body))
    tokens = body.get("tokens") if isinstance(body, dict) else None
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise invalid_field("tokens", "expected a list of token ids")
    model.check_token_ids("tokens", tokens)
    text = model.tokenizer.hf_tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    return JSONResponse({"prompt": text, "model": model.name})


async def describe_tokenizer(request: Request) -> Response:
    """Return the tokenizer's special tokens and chat template, so that clients need no download."""
    model = _state(request).get_model(request.query_params.get("model"))
    tokenizer = model.tokenizer.hf_tokenizer
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return JSONResponse(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "model": model.name,
            **tokens,
            "model_max_length": model.context,
            "chat_template": tokenizer.chat_template,
        }
    )


Handler = Callable[..., Awaitable[Response]]
_POST_ROUTES: dict[str, Handler] = {
    "/v1/chat/completions": create_chat_completion,
    "/v1/completions": create_completion,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
_GET_ROUTES: dict[str, Handler] = {
    "/v1/models": list_models,
    "/v1/models/{name:path}": retrieve_model,
    "/health": check_health,
    "/tokenizer_info": describe_tokenizer,
}
