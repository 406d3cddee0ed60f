"""Another OpenAI-compatible server behind ours: requests pass through as they are, answers come back as they are."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx

from instructgpt.errors import one_line
from instructgpt.serve.errors import APIError, error_body
from instructgpt.serve.generation import format_event

UPSTREAM_KEY_VARIABLE = "INSTRUCTGPT_UPSTREAM_KEY"
_PASSED_HEADERS = ("content-type", "retry-after", "x-request-id")


class CollectedAnswer:
    """The completions of an answer, from its JSON or from the chunks of its stream."""

    def __init__(self) -> None:
        self.completions: dict[int, dict[str, Any]] = {}
        self.id = self.model = self.fingerprint = ""
        self.has_error = False
        self._buffer = b""

    def add_json(self, body: Any) -> None:
        """Take a whole answer or a chunk."""
        if not isinstance(body, dict) or body.get("error"):
            self.has_error = True
            return
        self.id = str(body.get("id") or self.id)
        self.model = str(body.get("model") or self.model)
        self.fingerprint = str(body.get("system_fingerprint") or self.fingerprint)
        for choice in body.get("choices") or ():
            turn = choice.get("message") or choice.get("delta") or {}
            entry = self.completions.setdefault(choice.get("index", 0), {"completion": "", "finish": None})
            entry["completion"] += turn.get("content") or choice.get("text") or ""
            entry["finish"] = choice.get("finish_reason") or entry["finish"]

    def add_whole(self, content: bytes) -> None:
        """Take the body of an answer that is no stream."""
        try:
            self.add_json(json.loads(content))
        except ValueError:
            self.has_error = True

    def add_bytes(self, part: bytes) -> None:
        """Take a part of a stream, cut anywhere."""
        *lines, self._buffer = (self._buffer + part).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip()
            if line.startswith(b"data:") and not data.startswith(b"[DONE]"):
                try:
                    self.add_json(json.loads(data))
                except ValueError:
                    self.has_error = True

    @property
    def is_complete(self) -> bool:
        """Whether every completion has ended, without an error."""
        return (
            not self.has_error
            and bool(self.completions)
            and all(entry["finish"] is not None for entry in self.completions.values())
        )


class Upstream:
    """A client of the other server."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        """Connect to `url`, which ends with /v1 as clients write it.

        Args:
            key: sent to that server instead of the client's key.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=10),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )

    async def open(
        self, method: str, path: str, body: Any = None, params: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Send a request and return the answer, of which the body is not read yet.

        Raises:
            APIError: that server does not answer.
        """
        content = {} if body is None else {"json": body}
        request = self.client.build_request(method, path, params=params, **content)
        try:
            return await self.client.send(request, stream=True)
        except httpx.TimeoutException as error:
            raise APIError(504, "the server behind this one took too long", code="upstream_timeout") from error
        except httpx.HTTPError as error:
            reason = one_line(error, 150) or type(error).__name__
            message = f"the server behind this one does not answer ({reason})"
            raise APIError(502, message, code="upstream_unreachable") from error

    @staticmethod
    async def read(answer: httpx.Response) -> bytes:
        """Read the rest of an answer. Raises APIError where the connection breaks."""
        try:
            return await answer.aread()
        except httpx.HTTPError as error:
            raise APIError(502, "the server behind this one broke off", code="upstream_unreachable") from error
        finally:
            await answer.aclose()

    @staticmethod
    async def stream(answer: httpx.Response, collected: CollectedAnswer) -> AsyncGenerator[bytes, None]:
        """Yield a stream as it comes, and collect its text; a broken connection becomes an error event."""
        try:
            async for part in answer.aiter_bytes():
                collected.add_bytes(part)
                yield part
        except httpx.HTTPError:
            collected.has_error = True
            body = error_body(502, "the server behind this one broke off", code="upstream_unreachable")
            yield f"\n\n{format_event(body)}data: [DONE]\n\n".encode()  # an event may have been cut
        finally:
            await answer.aclose()


def passed_headers(answer: httpx.Response) -> dict[str, str]:
    """Return the headers of an answer that clients read."""
    return {name: answer.headers[name] for name in _PASSED_HEADERS if name in answer.headers}
