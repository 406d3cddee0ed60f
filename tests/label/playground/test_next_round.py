"""Rounds: which prompts are new, in which shares models answer them, and what a failure or a kill leaves."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import select
from support import playground
from support.openai_server import openai_server
from support.playground import agree, feedback, open_playground, send
from support.site import add_person, client_of, make_site

from instructgpt.label.db.models import (
    Batch,
    CompletionRow,
    PlaygroundRound,
    PlaygroundTurn,
    PromptRow,
    RoundSample,
    Task,
    TaskCompletion,
)
from instructgpt.label.playground import rounds
from instructgpt.label.playground.endpoint import ModelEndpoint
from instructgpt.label.playground.rounds import (
    RoundSettings,
    allocate_models,
    collect_candidates,
    default_shares,
    guess_model_roles,
    resume_rounds,
    start_round,
)

SHARES = {"policy": 50.0, "policy@round-1": 25.0, "sft": 15.0, "base": 10.0}


endpoint, site = playground.endpoint, playground.site


def rows(site, table):
    with site.database.read() as db:
        return list(db.scalars(select(table)))


@pytest.mark.parametrize(("prompts", "k"), [(1, 4), (7, 4), (10, 4), (33, 9), (100, 2)])
def test_shares_are_exact_over_the_batch(prompts, k):
    models = allocate_models(SHARES, prompts, k, seed=3)
    assert [len(row) for row in models] == [k] * prompts
    counts = Counter(name for row in models for name in row)
    for name, share in SHARES.items():
        assert abs(counts[name] - prompts * k * share / 100) < 1
    # Spread evenly: no prompt has two completions more of a model than another one.
    for name in SHARES:
        per_prompt = [row.count(name) for row in models]
        assert max(per_prompt) - min(per_prompt) <= 1


def test_roles_are_guessed_from_names():
    models = ["sft", "policy@round-1", "base-1b", "policy@round-10", "policy@round-2", "database-bot"]
    assert guess_model_roles(models) == {
        "sft": "sft",
        "policy@round-1": "other",
        "base-1b": "base",
        "policy@round-10": "previous",
        "policy@round-2": "other",
        "database-bot": "newest",
    }
    assert default_shares(["policy", "sft"]) == {"policy": 76.9, "sft": 23.1}


def test_a_round_takes_the_new_prompts_and_the_next_one_takes_newer_ones(site, endpoint):
    first, second = open_playground(site), open_playground(site)
    for client in (first, second):
        agree(client)
    turn = send(first, "Write a poem about lenses")
    ids = list(turn["ids"].values())
    assert feedback(first, turn, kind="ranking", ranks={ids[0]: 1, ids[1]: 2}).status_code == 200
    send(first, "Write a poem about lenses")
    send(first, "Call me at john.smith@gmail.com")
    send(second, "What is a mirror?")
    with site.database.read() as db:
        candidates = collect_candidates(db)
    assert +candidates.left_out == {"duplicate": 1, "review": 1}
    assert sorted(candidates.users.values()) == [1, 1]
    assert candidates.use_cases == {"generation": 1, "open_qa": 1}
    with site.database.write() as db:
        start_round(db, RoundSettings(shares=SHARES), None)
    resume_rounds(site, ModelEndpoint(endpoint.url))
    [row] = rows(site, PlaygroundRound)
    assert (row.state, row.error) == ("done", None)
    assert rows(site, RoundSample) == []
    [batch] = [batch for batch in rows(site, Batch) if batch.id == row.batch_id]
    assert (batch.name, batch.kind, batch.state) == ("round 1", "rank", "draft")
    with site.database.read() as db:
        statement = (
            select(PromptRow, CompletionRow)
            .join(Task, Task.prompt_id == PromptRow.id)
            .join(TaskCompletion, TaskCompletion.task_id == Task.id)
            .join(CompletionRow, CompletionRow.id == TaskCompletion.completion_id)
            .where(Task.batch_id == batch.id)
        )
        pairs = db.execute(statement).all()
    assert {prompt.user for prompt, _ in pairs} == set(candidates.users)
    assert all(completion.text.startswith(completion.model) for _, completion in pairs)
    texts = {completion.text for prompt, completion in pairs if "poem" in prompt.text}
    assert set(turn["texts"]) <= texts
    assert all(turn.prompt_id for turn in rows(site, PlaygroundTurn) if turn.round_id)
    send(second, "What is a prism?")
    with site.database.read() as db:
        candidates = collect_candidates(db)
    assert [turn.messages[0]["content"] for turn in candidates.turns] == ["What is a prism?"]


def test_one_user_does_not_fill_a_round(site):
    client = open_playground(site)
    agree(client)
    for number in range(4):
        send(client, f"{number} is a number", answers=1)
    with site.database.read() as db:
        candidates = collect_candidates(db, cap=2)
        assert (len(candidates.turns), candidates.left_out["cap"]) == (2, 2)
        candidates = collect_candidates(db, max_prompts=3)
        assert (len(candidates.turns), candidates.left_out["limit"]) == (3, 1)


def test_a_failing_endpoint_gives_the_prompts_back(tmp_path):
    with openai_server(models=("policy", "sft"), broken_models=("sft",)) as broken:
        site = make_site(tmp_path, endpoint=broken.url, endpoint_models=("policy",))
        client = open_playground(site)
        agree(client)
        send(client, "my words")
        with site.database.write() as db:
            start_round(db, RoundSettings(shares={"policy": 1, "sft": 1}), None)
        resume_rounds(site, ModelEndpoint(broken.url))
        [row] = rows(site, PlaygroundRound)
        assert (row.state, row.error) == ("failed", "the endpoint answered 500")
        with site.database.read() as db:
            assert len(collect_candidates(db).turns) == 1
        site.database.close()


def test_a_killed_round_goes_on_and_an_erased_prompt_leaves_it(site, endpoint, monkeypatch):
    client, other = open_playground(site), open_playground(site)
    for person in (client, other):
        agree(person)
        send(person, f"words of {person is client}")
    with site.database.write() as db:
        start_round(db, RoundSettings(shares=SHARES, k=4), None)

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    monkeypatch.setattr(rounds, "_create_round_batch", die)
    with pytest.raises(Killed):
        resume_rounds(site, ModelEndpoint(endpoint.url))
    monkeypatch.undo()
    samples = rows(site, RoundSample)
    assert len(samples) == 8
    assert all(sample.text for sample in samples)
    calls = len(endpoint.payloads)
    assert client.post("/playground/erase").status_code == 303
    resume_rounds(site, ModelEndpoint(endpoint.url))
    assert len(endpoint.payloads) == calls
    [row] = rows(site, PlaygroundRound)
    assert row.state == "done"
    assert {prompt.text for prompt in rows(site, PromptRow)} == {"words of False"}


def test_the_owners_page_makes_a_batch(site):
    import time

    client = open_playground(site)
    agree(client)
    send(client, "### Task:\nGenerate a concise title")
    send(client, "What is a lens?")
    owner = client_of(site, add_person(site, "olga", role="owner"))
    page = owner.get("/next-round").text
    for part in ("user-", "open", "policy@round-1", "/playground/join/", "background request"):
        assert part in page, part
    form = {f"share:{name}": str(share) for name, share in SHARES.items()} | {"k": "4", "include_answers": "on"}
    assert owner.post("/next-round", data={"share:policy": "0"}).status_code == 422
    assert owner.post("/next-round", data=form).status_code == 303
    deadline = time.monotonic() + 30
    while rows(site, PlaygroundRound)[0].state == "sampling":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "round 1" in owner.get("/next-round").text
    assert owner.post("/next-round", data=form).status_code == 409
    assert owner.post("/next-round/link").status_code == 303
    assert "Next round" in owner.get("/playground/consent/edit").text
