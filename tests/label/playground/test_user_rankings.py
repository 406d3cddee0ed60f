"""Users' feedback as records behind the export's switch, and their agreement with labelers, counted by hand."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select
from support import playground
from support.playground import agree, feedback, open_playground, send
from support.site import add_person, client_of

from instructgpt import records
from instructgpt.errors import InputError
from instructgpt.label.db.models import PlaygroundFeedback, PromptRow
from instructgpt.label.exchange.export_files import write_export
from instructgpt.label.exchange.selection import ExportFilter
from instructgpt.label.playground.rounds import collect_candidates
from instructgpt.label.playground.user_rankings import measure_user_agreement
from instructgpt.label.tasks.batches import (
    OverlapPolicy,
    create_batch_with_tasks,
    mark_batch_open,
    withdraw_prompt,
)

endpoint, site = playground.endpoint, playground.site


def read(folder, name):
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_exports_hold_user_feedback_only_behind_the_switch(site, tmp_path):
    client = open_playground(site)
    agree(client)
    turn = send(client, "which?", answers=3)
    ids = [turn["ids"][str(place)] for place in range(3)]
    feedback(client, turn, kind="ranking", ranks={ids[0]: 2, ids[1]: 1, ids[2]: 2})
    feedback(client, turn, kind="edit", answer=ids[0], text="my better words")
    feedback(client, turn, kind="edit", answer=ids[1], text="write to jane.doe@gmail.com")
    feedback(client, turn, kind="thumb", answer=ids[2], up=True)
    bad = send(client, "and this?")
    feedback(client, bad, kind="ranking", ranks=dict.fromkeys(bad["ids"].values(), 1), all_bad=True)
    private = send(client, "my number is 010-2345-6789")
    feedback(client, private, kind="ranking", ranks=dict.fromkeys(private["ids"].values(), 1))
    with pytest.raises(InputError, match="nothing to export"):
        write_export(site.database, tmp_path / "without", ExportFilter())
    manifest = write_export(site.database, tmp_path / "with", ExportFilter(user_feedback=True))
    assert manifest["labelers"] == {"user": 1}
    assert manifest["files"]["rankings"]["left_out"] == {"in_review": 1, "personal_data": 1}
    rankings = [records.Ranking.model_validate(row) for row in read(tmp_path / "with", "rankings")]
    assert [row.cohort for row in rankings] == ["user"] * 3
    assert rankings[0].completions == tuple(turn["texts"])
    assert rankings[0].ranks == (2, 1, 2)
    assert rankings[0].models == tuple(text.split("-says")[0] for text in turn["texts"])
    assert (rankings[1].completions, rankings[1].ranks) == (("my better words", turn["texts"][0]), (1, 2))
    assert rankings[2].model_extra["none_acceptable"] is True
    assert [row["completion"] for row in read(tmp_path / "with", "demonstrations")] == ["my better words"]
    better = [row["better"] for row in read(tmp_path / "with", "comparisons")]
    assert better == ["j", "tie", "i", "i", "tie"]
    assert [row["chosen"] for row in read(tmp_path / "with", "pairs")] == [turn["texts"][1]] * 2 + ["my better words"]
    with site.database.read() as db:
        thumbs = list(db.scalars(select(PlaygroundFeedback).where(PlaygroundFeedback.kind == "thumb")))
    assert len(thumbs) == 1
    client.post("/playground/erase")
    with pytest.raises(InputError, match="nothing to export"):
        write_export(site.database, tmp_path / "after", ExportFilter(user_feedback=True))


def test_agreement_of_users_with_labelers(site):
    """Three answers: the user says 1 < 2 = 3, the labeler says 1 < 2 < 3: two pairs decided by both, both alike."""
    with site.database.read() as db:
        assert measure_user_agreement(db) is None
    client = open_playground(site)
    agree(client)
    labeler = client_of(site, add_person(site, "ada"))
    expected = 0
    for number, agrees in enumerate([True, True, False]):
        turn = send(client, f"question {number}", answers=3)
        ids = [turn["ids"][str(place)] for place in range(3)]
        feedback(client, turn, kind="ranking", ranks={ids[0]: 1, ids[1]: 2, ids[2]: 2})
        messages = [{"role": "user", "content": f"question {number}"}]
        completions = [
            records.Completion.model_validate({"messages": messages, "completion": text, "model": str(place)})
            for place, text in enumerate(turn["texts"])
        ]
        with site.database.write() as db:
            policy = OverlapPolicy(gold_share=0, repeat_share=0, cohort_share=0)
            batch = create_batch_with_tasks(db, f"b{number}", "rank", "training", [], completions, policy)
            mark_batch_open(db, batch)
        rank(labeler, turn["texts"] if agrees else turn["texts"][::-1])
        expected += 2 * agrees
    with site.database.read() as db:
        agreement = measure_user_agreement(db)
    assert (agreement.pairs, agreement.prompts, agreement.users) == (6, 3, 1)
    assert agreement.decided.value == pytest.approx(expected / 6)
    owner = client_of(site, add_person(site, "olga", role="owner"))
    assert "66.7 %" in owner.get("/data").text
    assert "66.7 %" in owner.get("/next-round").text


def test_withdrawal_by_the_owner_reaches_feedback_and_rounds(site, tmp_path):
    client, other = open_playground(site), open_playground(site)
    for person in (client, other):
        agree(person)
        turn = send(person, f"mail {'ann' if person is client else 'bob'}.lee@gmail.com")
        feedback(person, turn, kind="ranking", ranks=dict.fromkeys(turn["ids"].values(), 1))
    labeler = client_of(site, add_person(site, "ada"))
    for _ in range(2):
        task = labeler.post("/api/v1/tasks/claim", json={"kind": "review"}).json()
        form = {"use_case": "other", "personal_data": False, "sensitive": False, "labels": {}}
        answer = labeler.post(
            f"/api/v1/assignments/{task['assignment']}/submit",
            json=form,
            headers={"Idempotency-Key": task["assignment"]},
        )
        assert answer.status_code == 200, answer.text
    manifest = write_export(site.database, tmp_path / "before", ExportFilter(user_feedback=True))
    assert manifest["files"]["rankings"]["rows"] == 2
    with site.database.write() as db:
        prompt = db.scalars(select(PromptRow).where(PromptRow.text.contains("bob"))).one()
        withdraw_prompt(db, prompt, 1)
        assert [turn.messages[0]["content"] for turn in collect_candidates(db).turns] == ["mail ann.lee@gmail.com"]
        ann = db.scalars(select(PromptRow.user).where(PromptRow.text.contains("ann"))).one()
    manifest = write_export(site.database, tmp_path / "one", ExportFilter(user_feedback=True))
    assert manifest["files"]["rankings"] | {"sha256": 0, "bytes": 0} == {
        "rows": 1,
        "left_out": {"withdrawn_prompt": 1},
        "file": "rankings.jsonl",
        "sha256": 0,
        "bytes": 0,
    }
    owner = client_of(site, add_person(site, "olga", role="owner"))
    assert owner.post("/privacy/user", data={"user": ann}).status_code == 200
    with pytest.raises(InputError, match="nothing to export"):
        write_export(site.database, tmp_path / "none", ExportFilter(user_feedback=True))
    assert "ann.lee" not in b"".join(path.read_bytes() for path in (tmp_path / "site").glob("site.db*")).decode(
        "latin1"
    )


def rank(labeler, order):
    """Rank the next task's completions in this order, without ties."""
    task = labeler.post("/api/v1/tasks/claim", json={"kind": "rank"}).json()
    ids = {shown["text"]: shown["id"] for shown in task["completions"]}
    form = {"ratings": [], "tiers": [[ids[text]] for text in order]}
    headers = {"Idempotency-Key": task["assignment"]}
    answer = labeler.post(f"/api/v1/assignments/{task['assignment']}/submit", json=form, headers=headers)
    assert answer.status_code == 200, (task, answer.text)
