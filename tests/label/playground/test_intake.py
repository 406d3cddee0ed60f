"""Prompts of API users: from the request log that `serve` writes to the next round, and back out of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from support import playground
from support.playground import agree, open_playground, send
from support.site import add_person, client_of

from instructgpt.cli import run_command
from instructgpt.label.auth.consent import get_latest_consent_text
from instructgpt.label.db.models import (
    CompletionRow,
    PlaygroundAnswer,
    PlaygroundConsentText,
    PlaygroundUser,
    PromptRow,
    current_time_ms,
)
from instructgpt.label.playground.endpoint import ModelEndpoint
from instructgpt.label.playground.erasure import erase_texts_of_pseudonym
from instructgpt.label.playground.intake import import_request_log
from instructgpt.label.playground.rounds import RoundSettings, collect_candidates, resume_rounds, start_round
from instructgpt.serve import request_log as log_module
from instructgpt.serve.keys import APIKey
from instructgpt.serve.request_log import RequestLog, StoredRequest

endpoint, site = playground.endpoint, playground.site

ANN = APIKey("ann", "0" * 64, "ann", "rewrite", store=True)
BOB = APIKey("bob", "0" * 64, "bob", "", store=True)


@pytest.fixture
def at(monkeypatch):
    """Set the time at which requests are kept, in seconds from now."""

    def set_time(seconds):
        monkeypatch.setattr(log_module, "_now", lambda: datetime.now(UTC) + timedelta(seconds=seconds))

    set_time(-1_000)
    return set_time


@pytest.fixture
def log(tmp_path, at):  # noqa: ARG001
    return RequestLog(tmp_path / "store")


def keep(log, key, text, number, retries=0):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    completions = [{"completion": f"answer {number}{letter}", "finish": "stop"} for letter in "ab"]
    request = StoredRequest(f"chatcmpl-{number}", {"messages": messages}, completions, "policy", "ab12", {"n": 2}, 7)
    return log.add(request, key, retries=retries)


def rows(site, table):
    with site.database.read() as db:
        return list(db.scalars(select(table)))


def new_prompts(site):
    with site.database.read() as db:
        candidates = collect_candidates(db)
        return {turn.messages[-1]["content"] for turn in candidates.turns}, candidates


def test_kept_requests_are_in_the_next_round(site, log, endpoint):
    keep(log, ANN, "What is a lens?", 1)
    keep(log, ANN, "Write to ann.lee@gmail.com for me", 2)
    keep(log, BOB, "What is a prism?", 3)
    keep(log, BOB, "What is a prism?", 3, retries=1)
    keep(log, None, "nobody's words", 4)
    report = import_request_log(site, log.folder)
    assert (report.imported, report.in_review, report.erased) == (3, 1, 0)
    assert report.endpoint_left_out == {"retry": 1, "no consent": 1}
    texts, candidates = new_prompts(site)
    assert texts == {"What is a lens?", "What is a prism?"}
    assert candidates.users == {f"api-{log.pseudonym(name)}": 1 for name in ("ann", "bob")}
    assert +candidates.left_out == {"review": 1}
    assert candidates.use_cases["rewrite"] == 1, "the use case of the key"
    answers = {(row.text, row.model, row.checkpoint, row.sampling["seed"]) for row in rows(site, PlaygroundAnswer)}
    assert ("answer 1a", "policy", "ab12", 7) in answers
    assert import_request_log(site, log.folder).imported == 0, "nothing twice"
    with site.database.write() as db:
        start_round(db, RoundSettings(shares={"policy": 1, "sft": 1}, k=2), None)
    resume_rounds(site, ModelEndpoint(endpoint.url))
    prompts = {row.text: row for row in rows(site, PromptRow) if "What is" in row.text}
    assert {row.use_case for row in prompts.values()} == {"rewrite", None}
    assert {row.source for row in prompts.values()} == {"api"}
    assert len(prompts) == 2
    page = client_of(site, add_person(site, "olga", role="owner")).get("/next-round")
    assert page.status_code == 200


def test_a_withdrawal_reaches_the_site(site, log, at, endpoint):
    """Also what is in a batch already; what the owner allows later is new again."""
    keep(log, ANN, "What is a lens?", 1)
    keep(log, BOB, "What is a prism?", 2)
    import_request_log(site, log.folder)
    with site.database.write() as db:
        start_round(db, RoundSettings(shares={"policy": 1, "sft": 1}, k=2), None)
    resume_rounds(site, ModelEndpoint(endpoint.url))
    at(-500)
    keep(log, ANN, "never imported", 3)
    log.delete_owner("ann")
    at(-100)
    keep(log, ANN, "after it", 4)
    report = import_request_log(site, log.folder)
    assert (report.imported, report.erased) == (1, 1)
    assert {row.text for row in rows(site, PromptRow)} == {
        "",
        *(r.text for r in rows(site, PromptRow) if "prism" in r.text),
    }
    assert not any("lens" in row.text for row in rows(site, CompletionRow))
    content = b"".join(path.read_bytes() for path in site.settings.folder.rglob("*") if path.is_file())
    assert b"a lens" not in content
    assert b"a prism" in content
    assert new_prompts(site)[0] == {"after it"}
    assert (import_request_log(site, log.folder).imported, new_prompts(site)[0]) == (0, {"after it"})


def test_what_the_site_erased_stays_away(site, log):
    keep(log, ANN, "my words", 1)
    import_request_log(site, log.folder)
    with site.database.write() as db:
        assert erase_texts_of_pseudonym(db, f"api-{log.pseudonym('ann')}", current_time_ms(), "olga") == 1
    keep(log, ANN, "kept before, imported after", 2)
    report = import_request_log(site, log.folder)
    assert (report.imported, report.left_out) == (0, {"erased on the site": 2})
    assert new_prompts(site)[0] == set()


def test_the_playgrounds_consent_text_stays(site, log):
    """The consent of a key's owner is no text that the playground shows, whichever came first."""
    keep(log, ANN, "my words", 1)
    import_request_log(site, log.folder)
    with site.database.read() as db:
        assert get_latest_consent_text(db, PlaygroundConsentText) is None
    visitor = open_playground(site)
    agree(visitor)
    send(visitor, "their words")
    import_request_log(site, log.folder)
    assert new_prompts(site)[0] == {"my words", "their words"}
    assert len(rows(site, PlaygroundUser)) == 2


def test_lines_by_other_hands(log, tmp_path, capsys):
    """A background request is found here too; a bad line stops everything, or is skipped and named."""
    keep(log, ANN, "a good line", 1)
    line = {"id": "x", "time": "2026-11-30T10:00:00+00:00", "user": "u", "completions": [], "model": "m"}
    title = line | {"id": "y", "prompt": "### Task:\nGenerate a concise title"}
    with (log.folder / "requests.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(title) + "\n" + json.dumps(line) + "\n" + '{"id": "half')
    folder = str(tmp_path / "other")
    assert run_command(["label", "init", "--site", folder]) == 0
    words = ["label", "import", "--site", folder, "--requests", str(log.folder)]
    assert run_command(words) == 2
    assert "requests.jsonl:3: " in capsys.readouterr().err
    assert run_command([*words, "--skip-bad"]) == 0
    printed = capsys.readouterr().out
    assert "1 new prompts of API users" in printed
    assert "1 background request, 1 bad lines" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--requests", "none"], "no requests are kept there"),
        (["--requests", "none", "--name", "x"], "--name has no effect with --requests"),
        (["--requests", "none", "--data", "x"], "give one of --data, --archive and --requests"),
        ([], "give one of"),
    ],
)
def test_bad_input(tmp_path, capsys, options, message):
    folder = str(tmp_path / "other")
    assert run_command(["label", "init", "--site", folder]) == 0
    assert run_command(["label", "import", "--site", folder, *options]) == 2
    assert message in capsys.readouterr().err
