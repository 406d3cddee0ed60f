"""A labeler's work over the API, from the claim to the history."""

from __future__ import annotations

from site_support import add_person, client_of, make_site
from work_support import rank_batch


def test_a_ranking_from_claim_to_history(tmp_path):
    site = make_site(tmp_path)
    ada = add_person(site)
    with site.database.write() as db:
        rank_batch(db, tasks=2, k=3)
    client = client_of(site, ada)
    task = client.post("/api/v1/tasks/claim", json={"kind": "rank"}).json()
    assert [each["letter"] for each in task["completions"]] == ["A", "B", "C"]
    assert client.post("/api/v1/tasks/claim").json()["assignment"] == task["assignment"]
    here = f"/api/v1/assignments/{task['assignment']}"
    assert client.put(f"{here}/draft", json={"tiers": []}, headers={"If-Match": "0"}).json() == {"rev": 1}
    assert client.get(here).json()["draft"] == {"rev": 1, "payload": {"tiers": []}}
    assert client.post(f"{here}/heartbeat").json()["lease_until"] >= task["lease_until"]
    ids = [each["id"] for each in task["completions"]]
    form = {"ratings": [], "tiers": [[ids[2], ids[0]], [], [ids[1]]]}
    done = client.post(f"{here}/submit", json=form, headers={"Idempotency-Key": "k"}).json()
    assert done["ranks"] == {ids[0]: 1, ids[1]: 2, ids[2]: 1}
    assert client.post(f"{here}/submit", json=form, headers={"Idempotency-Key": "k"}).json() == done
    assert client.get("/api/v1/me/history").json()["entries"][0]["version"] == 1
    other = client.post("/api/v1/tasks/claim").json()
    assert other["assignment"] != task["assignment"]
    there = f"/api/v1/assignments/{other['assignment']}"
    client.post(f"{there}/skip", json={"reason": "unclear"})
    assert client.post("/api/v1/tasks/claim").status_code == 204
    assert client.post(f"{there}/undo").json()["state"] == "open"
    assert client.get(here).json()["submission"]["tiers"] == [[ids[0], ids[2]], [], [ids[1]]]
