"""Feedback of users from other tools: who wins against whom, what is left out, and what is not carried over."""

from __future__ import annotations

import json

import pytest

from instructgpt.data.importing.fields import RowContext, SkipRowError
from instructgpt.data.importing.registry import IMPORTERS, match_format


def chat(*answers: tuple[str, str, str]) -> dict:
    """A snapshot whose second question has these answers: (id, model, text)."""
    messages = {
        "q1": {"id": "q1", "parentId": None, "role": "user", "content": "hello", "childrenIds": ["a1"]},
        "a1": {"id": "a1", "parentId": "q1", "role": "assistant", "content": "hi", "model": "m"},
        "q2": {"id": "q2", "parentId": "a1", "role": "user", "content": "which?"},
    }
    for key, model, text in answers:
        messages[key] = {"id": key, "parentId": "q2", "role": "assistant", "content": text, "model": model}
    return {"chat": {"id": "c", "chat": {"history": {"messages": messages, "currentId": "x"}}}}


def open_webui(
    rating, message_id="x", siblings=(), answers=(("x", "m", "one"), ("y", "n", "two"), ("z", "o", "three"))
):
    return {
        "id": "f",
        "user_id": "person-7",
        "type": "rating",
        "data": {"rating": rating, "model_id": "m", "sibling_model_ids": list(siblings), "comment": "my address is"},
        "meta": {"arena": False, "chat_id": "c", "message_id": message_id, "tags": []},
        "snapshot": chat(*answers),
        "user": {"name": "Jane", "email": "jane@corp.com"},
    }


def convert(row):
    name = match_format(row)
    importer = IMPORTERS[name]
    return name, importer.convert(row, RowContext(extra=importer.carried_columns(row)))


@pytest.mark.parametrize(
    ("rating", "siblings", "completions", "ranks"),
    [
        (1, [], ("one", "two", "three"), (1, 2, 2)),
        (1, ["n"], ("one", "two"), (1, 2)),
        (-1, ["o"], ("one", "three"), (2, 1)),
        ("-1", ["n", "o"], ("one", "two", "three"), (2, 1, 1)),
    ],
)
def test_open_webui_comparisons(rating, siblings, completions, ranks):
    name, (ranking,) = convert(open_webui(rating, siblings=siblings))
    assert name == "open_webui"
    assert (ranking.completions, ranking.ranks, ranking.cohort) == (completions, ranks, "user")
    assert [turn.content for turn in ranking.messages] == ["hello", "hi", "which?"]
    assert ranking.models[0] == "m"
    line = json.dumps(ranking.model_dump())
    assert not [word for word in ("Jane", "corp.com", "person-7", "address") if word in line]


@pytest.mark.parametrize(
    "row",
    [
        open_webui(1, answers=(("x", "m", "alone"),)),
        open_webui(1, message_id="gone"),
        open_webui(5),
        open_webui(1) | {"snapshot": None},
        open_webui(1, siblings=["nobody"]),
    ],
)
def test_what_is_no_comparison_is_left_out(row):
    with pytest.raises(SkipRowError):
        convert(row)


def test_one_user_has_one_pseudonym():
    first, second = (convert(open_webui(rating))[1][0].labeler for rating in (1, -1))
    assert first == second
    assert convert(open_webui(1) | {"user_id": "person-8"})[1][0].labeler != first


def turns(*texts):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("winner", "ranks", "all_bad"),
    [("model_a", (1, 2), False), ("model_b", (2, 1), False), ("tie", (1, 1), False), ("tie (bothbad)", (1, 1), True)],
)
def test_published_votes(winner, ranks, all_bad):
    row = {
        "question_id": "q",
        "model_a": "alpha",
        "model_b": "beta",
        "winner": winner,
        "judge": "arena_user_9",
        "conversation_a": turns("p", "a"),
        "conversation_b": turns("p", "b"),
        "tstamp": 1.5,
        "openai_moderation": {"flagged": False},
    }
    name, (ranking,) = convert(row)
    assert name == "arena"
    assert (ranking.prompt, ranking.completions, ranking.ranks) == ("p", ("a", "b"), ranks)
    assert ranking.models == ("alpha", "beta")
    assert ranking.model_extra["none_acceptable"] is all_bad
    assert "arena_user_9" not in json.dumps(ranking.model_dump())


def test_logged_votes_keep_no_address():
    row = {
        "tstamp": 1.0,
        "type": "leftvote",
        "models": ["", ""],
        "states": [
            {
                "model_name": name,
                "messages": [["USER", "p"], ["ASSISTANT", name * 2], ["USER", "r"], ["ASSISTANT", name]],
            }
            for name in ("x", "y")
        ],
        "ip": "203.0.113.9",
    }
    with pytest.raises(SkipRowError):  # the first answers differ
        convert(row)
    for state in row["states"]:
        state["messages"][1][1] = "same"
    _, (ranking,) = convert(row)
    assert (ranking.completions, ranking.ranks, ranking.models) == (("x", "y"), (1, 2), ("x", "y"))
    assert "203.0.113.9" not in json.dumps(ranking.model_dump())
    assert ranking.labeler.startswith("arena-")


CORRECTION = {
    "id": "s1", "traceId": "t", "name": "output", "source": "ANNOTATION", "authorUserId": "person-3",
    "dataType": "CORRECTION", "value": 0, "stringValue": "Seoul.",
}  # fmt: skip


def trace(*scores, **columns):
    plain = {"id": "t", "timestamp": "2026-11-30T10:00:00Z", "name": "chat", "userId": "jane@corp.com"}
    question = {"input": [{"role": "user", "content": "capital?"}], "output": "Busan."}
    return plain | question | {"observations": [], "scores": list(scores)} | columns


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"input": "capital?"},
        {"input": {"messages": [{"role": "user", "content": "capital?"}]}},
        {"output": {"role": "assistant", "content": "Busan."}},
        {"output": [{"role": "assistant", "content": "Busan."}]},
        {"output": {"choices": [{"message": {"role": "assistant", "content": "Busan."}}]}},
    ],
)
@pytest.mark.parametrize("text", [{}, {"stringValue": None, "longStringValue": "Seoul."}, {"value": "Seoul."}])
def test_a_correction_is_a_ranking_and_a_demonstration(columns, text):
    rating = {"name": "quality", "dataType": "NUMERIC", "value": 0.2}
    name, (ranking, demonstration) = convert(trace(rating, CORRECTION | text, **columns))
    assert name == "langfuse"
    assert (ranking.completions, ranking.ranks, ranking.cohort) == (("Seoul.", "Busan."), (1, 2), "user")
    assert (demonstration.prompt, demonstration.completion) == ("capital?", "Seoul.")
    assert ranking.labeler == demonstration.labeler != "person-3"
    assert "jane" not in json.dumps([ranking.to_dict(), demonstration.to_dict()])


def test_a_correction_of_an_observation():
    inner = {"id": "o2", "type": "GENERATION", "model": "m", "input": "largest?", "output": "A frog."}
    corrected = CORRECTION | {"observationId": "o2", "stringValue": "A whale."}
    _, rows = convert(trace(corrected, CORRECTION, observations=[{"id": "o1"}, inner]))
    assert [record.prompt for record in rows] == ["largest?", "largest?", "capital?", "capital?"]
    assert (rows[0].completions, rows[0].models) == (("A whale.", "A frog."), ("correction", "m"))


def test_a_correction_in_the_form_of_the_output():
    """Langfuse's editor corrects a message as JSON."""
    text = json.dumps({"role": "assistant", "content": "Seoul."})
    output = {"role": "assistant", "content": "Busan."}
    _, (ranking, _) = convert(trace(CORRECTION | {"stringValue": text}, output=output))
    assert ranking.completions == ("Seoul.", "Busan.")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (trace({"dataType": "NUMERIC", "value": 1}), "no corrected output"),
        (trace(CORRECTION | {"stringValue": "Busan. "}), "changes nothing"),
        (trace(CORRECTION | {"stringValue": None}), "without text"),
        (trace(CORRECTION, output={"label": 3}), "without text|one answer in text"),
        (trace(CORRECTION, output=None), "one answer in text"),
        (trace(CORRECTION, input=3), "neither text nor messages"),
    ],
)
def test_traces_that_hold_no_correction_are_left_out(row, reason):
    with pytest.raises(SkipRowError, match=reason):
        convert(row)
