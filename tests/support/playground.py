"""Users of the playground, in process."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from support.openai_server import openai_server
from support.site import client_of, make_site

from instructgpt.label.auth.consent import add_consent_version, get_latest_consent_text
from instructgpt.label.context import Site
from instructgpt.label.db.models import PlaygroundConsentText
from instructgpt.label.playground.users import ensure_playground_link


@pytest.fixture(scope="module")
def endpoint():
    """An OpenAI-compatible server for the tests of a module."""
    with openai_server() as running:
        yield running


@pytest.fixture
def site(tmp_path, endpoint):
    """A site with that endpoint, in `tmp_path / "site"`."""
    new_site = make_site(tmp_path / "site", endpoint=endpoint.url)
    yield new_site
    new_site.database.close()


def open_playground(site: Site) -> TestClient:
    """A browser that opened the link of the playground."""
    with site.database.write() as db:
        if get_latest_consent_text(db, PlaygroundConsentText) is None:
            add_consent_version(db, {"en": "May we keep them?"}, None, PlaygroundConsentText)
        link = ensure_playground_link(db)
    client = client_of(site)
    assert client.get(f"/playground/join/{link.token}").status_code == 303
    return client


def agree(client: TestClient, version: int = 1) -> None:
    assert client.post("/playground/agree", data={"version": version}).status_code == 303


def send(client: TestClient, text: str | list[dict[str, str]], **more: Any) -> dict[str, Any]:
    """Send a message. -> the last event, with the texts of the answers and the request's key."""
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    body = {"key": str(uuid4()), "messages": messages, "answers": 2, "max_tokens": 100} | more
    headers = body.pop("headers", {})
    with client.stream("POST", "/api/v1/playground/turns", json=body, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        events = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]
    texts = [""] * events[0]["answers"]
    for event in events:
        if "text" in event:
            texts[event["answer"]] += event["text"]
    assert events[-1]["done"]
    return events[-1] | {"texts": texts, "key": body["key"], "events": events}


def feedback(client: TestClient, turn: dict[str, Any], **body: Any) -> Any:
    return client.post(f"/api/v1/playground/turns/{turn['key']}/feedback", json=body)
