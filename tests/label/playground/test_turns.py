"""The playground over HTTP, with a real OpenAI-compatible server behind it: what is stored, and what is not."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select
from support import playground
from support.openai_server import openai_server
from support.playground import agree, feedback, open_playground, send
from support.site import client_of, make_site

from instructgpt.label.db.models import (
    PlaygroundAnswer,
    PlaygroundCount,
    PlaygroundFeedback,
    PlaygroundTurn,
    PlaygroundUser,
    PromptRow,
    Task,
)

endpoint, site = playground.endpoint, playground.site


def rows(site, table):
    with site.database.read() as db:
        return list(db.scalars(select(table).order_by(*table.__table__.primary_key)))


def counts(site):
    return {row.reason: row.count for row in rows(site, PlaygroundCount)}


def test_nothing_is_stored_without_an_agreement(site):
    client = open_playground(site)
    turn = send(client, "a secret question")
    assert not turn["stored"]
    assert turn["reason"] == "no_agreement"
    assert all("says" in text for text in turn["texts"])
    assert rows(site, PlaygroundTurn) == rows(site, PlaygroundAnswer) == rows(site, PromptRow) == []
    assert counts(site) == {"no_agreement": 1}
    assert feedback(client, turn, kind="report", reason="x").status_code == 403


def test_a_turn_is_stored_with_everything_a_later_reader_needs(site, endpoint):
    client = open_playground(site)
    agree(client)
    turn = send(client, "what is a lens?", answers=4, temperature=0.7)
    assert turn["stored"]
    [stored] = rows(site, PlaygroundTurn)
    assert stored.messages == [{"role": "user", "content": "what is a lens?"}]
    answers = sorted(rows(site, PlaygroundAnswer), key=lambda row: row.position)
    assert sorted(row.model for row in answers) == sorted(endpoint.models)
    assert [row.text for row in answers] == turn["texts"]
    assert [turn["ids"][str(row.position)] for row in answers] == [row.id for row in answers]
    for row in answers:
        assert row.text.startswith(f"{row.model}-says")
        assert row.checkpoint == f"fp_{row.model}"
        assert row.sampling["temperature"] == 0.7
        sent = [payload for payload in endpoint.payloads if payload["seed"] == row.sampling["seed"]]
        assert [payload["model"] for payload in sent] == [row.model]
        assert sent[0]["store"] is False
    assert "models" not in turn  # blind until the ranking
    [user] = rows(site, PlaygroundUser)
    assert user.pseudonym.startswith("user-")


def test_positions_are_random(site):
    client = open_playground(site)
    orders = {tuple(text.split("-says")[0] for text in send(client, f"q{n}", answers=4)["texts"]) for n in range(12)}
    assert len(orders) > 3  # 24 orders: 12 draws have at most 3 different ones once in 10^8


def test_another_session_must_agree_again(site):
    client = open_playground(site)
    agree(client)
    assert send(client, "one")["stored"]
    client.cookies.delete("playground_session")
    page = client.get("/playground").text
    assert "/playground/agree" in page
    assert send(client, "two")["reason"] == "no_agreement"
    agree(client)
    assert "/playground/agree" not in client.get("/playground").text
    assert send(client, "three")["stored"]
    [user] = rows(site, PlaygroundUser)
    assert user is not None


def test_a_new_text_ends_all_agreements(site):
    from instructgpt.label.auth.consent import add_consent_version
    from instructgpt.label.db.models import PlaygroundConsentText

    client = open_playground(site)
    agree(client)
    with site.database.write() as db:
        add_consent_version(db, {"en": "new text"}, None, PlaygroundConsentText)
    assert send(client, "one")["reason"] == "no_agreement"
    assert client.post("/playground/agree", data={"version": 1}).status_code == 409
    agree(client, 2)
    assert send(client, "two")["stored"]


def test_a_conversation_is_stored_if_all_of_it_was_sent_under_an_agreement(site):
    client = open_playground(site)
    earlier = send(client, "before the agreement")
    agree(client)
    context = [
        {"role": "user", "content": "before the agreement"},
        {"role": "assistant", "content": earlier["texts"][0]},
        {"role": "user", "content": "and now?"},
    ]
    assert send(client, context, parent=earlier["key"])["reason"] == "context"
    first = send(client, "first")
    context = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": first["texts"][1]},
        {"role": "user", "content": "second"},
    ]
    second = send(client, context, parent=first["key"])
    assert second["stored"]
    forged = [*context[1:2], {"role": "assistant", "content": "words of nobody"}, context[3]]
    assert send(client, forged, parent=first["key"])["reason"] == "context"
    assert [turn.parent_id is None for turn in rows(site, PlaygroundTurn)] == [True, False]
    assert "before the agreement" not in str([turn.messages for turn in rows(site, PlaygroundTurn)])


def test_excluding_a_message_erases_what_followed_and_is_final(site):
    client = open_playground(site)
    agree(client)
    first = send(client, "alpha")
    context = [
        {"role": "user", "content": "alpha"},
        {"role": "assistant", "content": first["texts"][0]},
        {"role": "user", "content": "beta"},
    ]
    second = send(client, context, parent=first["key"])
    other = send(client, "gamma")
    answer = client.post(f"/api/v1/playground/turns/{first['key']}/exclude")
    assert answer.json() == {"turns": 2}
    states = {turn.key: turn.state for turn in rows(site, PlaygroundTurn)}
    assert states == {first["key"]: "erased", second["key"]: "erased", other["key"]: "kept"}
    assert {row.turn_id for row in rows(site, PlaygroundAnswer)} == {
        turn.id for turn in rows(site, PlaygroundTurn) if turn.state == "kept"
    }
    assert send(client, "alpha", key=first["key"])["reason"] == "excluded"
    third = [*context, {"role": "assistant", "content": second["texts"][0]}, {"role": "user", "content": "delta"}]
    assert send(client, third, parent=second["key"])["reason"] == "context"
    stranger = open_playground(site)
    assert stranger.post(f"/api/v1/playground/turns/{other['key']}/exclude").json() == {"turns": 0}


def test_a_retry_gets_the_stored_answers_and_is_stored_once(site):
    client = open_playground(site)
    agree(client)
    first = send(client, "once")
    again = send(client, "once", key=first["key"])
    assert again["texts"] == first["texts"]
    assert again["ids"] == first["ids"]
    assert len(rows(site, PlaygroundTurn)) == 1
    assert counts(site) == {"retry": 1}
    body = {"key": first["key"], "messages": [{"role": "user", "content": "other words"}]}
    assert client.post("/api/v1/playground/turns", json=body).status_code == 409
    assert send(client, "by an SDK", headers={"x-stainless-retry-count": "1"})["reason"] == "retry"


@pytest.mark.parametrize(
    "text",
    [
        "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.",
        "### Task:\nSuggest 3-5 relevant follow-up questions",
        "Provide a concise, 5-word-or-less title for the conversation",
    ],
)
def test_background_requests_of_front_ends_are_left_out_and_counted(site, text):
    client = open_playground(site)
    agree(client)
    assert send(client, text)["reason"] == "background"
    assert counts(site) == {"background": 1}


@pytest.mark.parametrize(
    "text",
    [
        "### Task: my homework\nis late",
        "Write a concise poem about titles",
        "Summarize the conversation in Hamlet, act 3",
    ],
)
def test_people_may_write_like_programs(site, text):
    client = open_playground(site)
    agree(client)
    assert send(client, text)["stored"]


def test_personal_data_goes_to_review(site):
    client = open_playground(site)
    agree(client)
    turn = send(client, "Write to john.smith@gmail.com for me")
    assert turn["stored"]
    assert turn["state"] == "review"
    [stored] = rows(site, PlaygroundTurn)
    assert stored.personal_data == ["email"]
    [prompt] = rows(site, PromptRow)
    assert (prompt.id, prompt.sensitive, prompt.source) == (stored.prompt_id, True, "playground")
    [task] = rows(site, Task)
    assert (task.kind, task.prompt_id) == ("review", prompt.id)


def test_feedback_of_each_kind(site):
    client = open_playground(site)
    agree(client)
    turn = send(client, "which is better?", answers=3)
    ids = [turn["ids"][str(place)] for place in range(3)]
    assert feedback(client, turn, kind="ranking", ranks={ids[0]: 1, ids[1]: 1}).status_code == 422
    answer = feedback(client, turn, kind="ranking", ranks={ids[0]: 3, ids[1]: 1, ids[2]: 1})
    assert answer.status_code == 200, answer.text
    models = {row["answer"]: row["model"] for row in answer.json()["models"]}
    assert [models[answer_id] for answer_id in ids] == [text.split("-says")[0] for text in turn["texts"]]
    for up in (True, False):
        assert feedback(client, turn, kind="thumb", answer=ids[0], up=up).status_code == 200
    assert feedback(client, turn, kind="edit", answer=ids[1], text=turn["texts"][1]).status_code == 422
    assert feedback(client, turn, kind="edit", answer=ids[1], text="better").status_code == 200
    assert feedback(client, turn, kind="report", reason="rude").status_code == 200
    current = {row.kind: row.value for row in rows(site, PlaygroundFeedback) if row.replaced_at is None}
    assert current == {
        "ranking": {"ranks": {ids[0]: 2, ids[1]: 1, ids[2]: 1}, "all_bad": False},
        "thumb": {"up": False},
        "edit": {"text": "better", "personal_data": []},
        "report": {"reason": "rude"},
    }
    assert [turn.state for turn in rows(site, PlaygroundTurn)] == ["review"]
    stranger = open_playground(site)
    agree(stranger)
    assert feedback(stranger, turn, kind="report", reason="x").status_code == 404
    own = client.get("/api/v1/playground/data").json()
    assert [row["messages"][0]["content"] for row in own["turns"]] == ["which is better?"]
    assert {row["kind"] for row in own["turns"][0]["feedback"]} == {"ranking", "thumb", "edit", "report"}


def test_delete_all_of_mine(site):
    client, other = open_playground(site), open_playground(site)
    for person in (client, other):
        agree(person)
        send(person, "my words")
        send(person, "mail me at jane.doe@gmail.com")
    assert client.post("/playground/erase").status_code == 303
    with site.database.read() as db:
        assert db.scalar(select(func.count()).where(PlaygroundTurn.state == "erased")) == 2
        assert db.scalar(select(func.count()).where(PromptRow.text == "", PromptRow.withdrawn_at.is_not(None))) == 1
        assert db.scalar(select(func.count()).where(Task.state == "withdrawn")) == 1
    assert client.get("/api/v1/playground/data").json()["turns"] == []
    assert len(other.get("/api/v1/playground/data").json()["turns"]) == 2
    assert send(client, "later")["reason"] == "no_agreement"


def test_an_answer_that_fails_is_named_and_the_others_are_stored(tmp_path):
    with openai_server(models=("good", "bad"), broken_models=("bad",)) as endpoint:
        site = make_site(tmp_path, endpoint=endpoint.url)
        client = open_playground(site)
        agree(client)
        turn = send(client, "hello")
        [failed] = [event for event in turn["events"] if "error" in event]
        assert "500" in failed["error"]
        assert turn["stored"]
        assert [row.model for row in rows(site, PlaygroundAnswer)] == ["good"]
        assert rows(site, PlaygroundAnswer)[0].position == 1 - failed["answer"]
        site.database.close()


def test_the_endpoints_key_and_models(tmp_path):
    with openai_server(key="k1") as endpoint:
        site = make_site(tmp_path, endpoint=f"{endpoint.url}/v1", endpoint_key="k1", endpoint_models=("sft", "base"))
        client = open_playground(site)
        models = {text.split("-says")[0] for n in range(4) for text in send(client, f"{n}")["texts"]}
        assert models == {"sft", "base"}
        assert "k1" not in client.get("/playground").text
        wrong = make_site(tmp_path / "other", endpoint=endpoint.url, endpoint_key="k2")
        body = {"key": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "messages": [{"role": "user", "content": "x"}]}
        answer = open_playground(wrong).post("/api/v1/playground/turns", json=body)
        assert (answer.status_code, answer.json()["error"]) == (502, "endpoint_failed")
        for made in (site, wrong):
            made.database.close()


def test_only_the_link_admits(site):
    open_playground(site)
    stranger = client_of(site)
    assert stranger.get("/playground").status_code == 401
    assert stranger.get("/playground/join/wrong").status_code == 404
    assert stranger.post("/api/v1/playground/turns", json={}).status_code in (401, 422)


def test_a_site_without_an_endpoint_has_no_playground(tmp_path):
    site = make_site(tmp_path)
    assert client_of(site).get("/playground").status_code == 404
    site.database.close()
