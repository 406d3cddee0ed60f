"""Calibration rooms: votes stay hidden until they are revealed and never become submissions."""

from __future__ import annotations

from support.owner import fill, people
from support.site import add_person, client_of

from instructgpt.label.analysis import calibration
from instructgpt.label.db.models import CalibrationRoom, Submission

DATABASES = ("sqlite",)


def test_calibration_room_through_all_stages(site):
    ada, ben = people(site, "ada", "ben")
    filled = fill(site, tasks=1, models=("quasar-7b", "ocelot_v2", "gpt"), purpose="evaluation")
    lead, one, other = (client_of(site, person) for person in (add_person(site, "rhea", role="researcher"), ada, ben))
    assert one.post("/calibration", data={"task": filled.tasks[0], "title": "refusals"}).status_code == 403
    room = lead.post("/calibration", data={"task": filled.tasks[0], "title": "refusals"}).headers["location"]
    ids = list(filled.completions[0].values())

    def ballot(*ranks):
        return {f"tier-{each}": str(rank) for each, rank in zip(ids, ranks, strict=True)}

    assert one.post(f"{room}/vote", data=ballot(1, 2, 3)).status_code == 303
    assert one.post(f"{room}/say", data={"body": "I like A"}).status_code == 409  # no talk before everybody has voted
    assert other.post(f"{room}/vote", data=ballot(3, 3, 1)).status_code == 303
    assert "Before the discussion" not in other.get(room).text
    assert one.post(f"{room}/vote", data={f"tier-{ids[0]}": "1"}).status_code == 422
    assert one.post(f"{room}/stage", data={"stage": "vote"}).status_code == 403
    assert lead.post(f"{room}/stage", data={"stage": "vote"}).status_code == 303
    assert lead.post(f"{room}/stage", data={"stage": "vote"}).status_code == 409  # a double click does not skip a stage
    text = other.get(room).text
    assert "Before the discussion" in text
    assert not [name for name in ("quasar", "ocelot", ">ada<") if name in text]
    assert one.post(f"{room}/vote", data=ballot(1, 2, 3)).status_code == 409
    assert one.post(f"{room}/say", data={"body": "C ignores the question."}).status_code == 303
    assert "C ignores the question." in other.get(room).text
    lead.post(f"{room}/stage", data={"stage": "talk"})
    for client in (one, other):
        assert client.post(f"{room}/vote", data=ballot(1, 2, 3)).status_code == 303
    assert "After the discussion" not in one.get(room).text
    lead.post(f"{room}/stage", data={"stage": "again"})
    assert "After the discussion" in one.get(room).text
    with site.database.read() as db:
        row = db.query(CalibrationRoom).one()
        before, after = calibration.load_room_votes(db, row)
        assert (
            calibration.compute_vote_agreement(row, before).concordant,
            calibration.compute_vote_agreement(row, before).discordant,
        ) == (
            0,
            2,
        )  # ben tied A and B
        assert calibration.compute_vote_agreement(row, after).decided.value == 1
        assert not db.query(Submission).count()
    assert one.get("/calibration/nothing").status_code == 404
    assert "refusals" in one.get("/calibration").text
