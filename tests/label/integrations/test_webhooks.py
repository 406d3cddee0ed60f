"""Webhooks: events in the transaction of what they report, signatures, retries, a killed site.

pytest tests/label/integrations/test_webhooks.py
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import select, update
from standardwebhooks import Webhook as StandardWebhook
from standardwebhooks import WebhookVerificationError
from support.commands import SRC
from support.receiver import receiving_server
from support.site import add_person, client_of
from support.tasks import hand_in, make, rank_batch, refused, take

from instructgpt.label.db.models import Batch, Delivery, PromptRow, Submission, Webhook, current_time_ms
from instructgpt.label.integrations import outbox
from instructgpt.label.integrations.events import EVENT_NAMES, record_event
from instructgpt.label.integrations.outbox import RETRY_DELAYS_S, deliver_due, settle_delivery
from instructgpt.label.integrations.webhooks import create_webhook
from instructgpt.label.outgoing import parse_network
from instructgpt.label.people.screening import record_decision
from instructgpt.label.site_folder import create_site_folder, open_site
from instructgpt.label.tasks.batches import withdraw_prompt

LOOPBACK = (parse_network("127.0.0.0/8"),)


@pytest.fixture
def site(site):
    """A site that may reach this machine."""
    object.__setattr__(site.settings, "allowed_networks", LOOPBACK)
    return site


@pytest.fixture
def receiver():
    with receiving_server() as server:
        yield server


def subscribe(site, url, events=EVENT_NAMES):
    owner = add_person(site, f"owner of {url}", role="owner")
    return make(site, create_webhook, url, events, owner.id)


def deliveries(site):
    with site.database.read() as db:
        return db.scalars(select(Delivery).order_by(Delivery.id)).all()


def events(site):
    return [(row.event, row.payload["data"]) for row in deliveries(site)]


def make_due(site):
    """As if the time of the next attempt had come."""
    with site.database.write() as db:
        waiting = update(Delivery).where(Delivery.next_attempt_at.is_not(None))
        db.execute(waiting.values(next_attempt_at=current_time_ms()))


def test_nothing_is_recorded_without_webhooks(site):
    make(site, rank_batch, tasks=1, k=2)
    hand_in(site, take(site, add_person(site)))
    assert not deliveries(site)


def test_work_is_reported_by_signed_events(site, receiver):
    webhook = subscribe(site, f"{receiver.url}/hook?a=b")
    make(site, rank_batch, tasks=2, k=2)
    ada = add_person(site)
    first, again = hand_in(site, take(site, ada), key="k1"), None
    assignment = take(site, ada)
    second, again = hand_in(site, assignment, key="k2"), hand_in(site, assignment, key="k2")
    assert again.id == second.id
    found = events(site)
    assert [name for name, _ in found] == ["submission.created", "submission.created", "batch.completed"] or [
        name for name, _ in found
    ] == ["submission.created", "batch.completed", "submission.created"]
    stored = {data["submission"]: data for name, data in found if name == "submission.created"}
    assert stored.keys() == {first.id, second.id}
    assert {data["labeler"] for data in stored.values()} == {ada.pseudonym}
    assert "ada" not in json.dumps(found).replace(ada.pseudonym, "")
    assert "model" not in json.dumps(found)
    while deliver_due(site):
        pass
    assert len(receiver.received) == 3
    for request in receiver.received:
        assert (request.method, request.path) == ("POST", "/hook?a=b")
        StandardWebhook(webhook.secret).verify(request.body, request.headers)  # another implementation
        with pytest.raises(WebhookVerificationError):
            StandardWebhook(webhook.secret).verify(request.body + b" ", request.headers)
    ids = [row.id for row in deliveries(site)]
    assert sorted(request.headers["webhook-id"] for request in receiver.received) == ids
    assert all(row.delivered_at and row.next_attempt_at is None for row in deliveries(site))


def test_an_event_goes_with_its_transaction(site, receiver):
    subscribe(site, receiver.url)
    make(site, rank_batch, tasks=1, k=2)
    assignment = take(site, add_person(site))

    class CrashError(Exception):
        pass

    def submit_and_crash():
        with site.database.write() as db:
            record_event(db, "person.admitted", lambda: {"person": "x"})
            db.flush()
            raise CrashError

    with pytest.raises(CrashError):
        submit_and_crash()
    assert not deliveries(site)
    hand_in(site, assignment)
    with site.database.read() as db:
        assert len(db.scalars(select(Submission)).all()) == 1
    assert [name for name, _ in events(site)].count("submission.created") == 1


def test_two_labelers_finish_a_batch_at_the_same_time(site, receiver):
    subscribe(site, receiver.url, ["batch.completed"])
    people = [add_person(site, f"labeler {number}") for number in range(4)]
    for round_number in range(5):
        make(site, rank_batch, tasks=4, k=2, name=f"batch {round_number}")
        assignments = [take(site, person) for person in people]
        barrier, failures = threading.Barrier(4), []

        def finish(assignment, barrier=barrier, failures=failures):
            barrier.wait()
            try:
                hand_in(site, assignment, key=assignment.id)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=finish, args=(assignment,)) for assignment in assignments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
    assert [data["batch_name"] for _, data in events(site)] == [f"batch {number}" for number in range(5)]


def test_a_batch_is_complete_when_its_last_open_task_is_withdrawn(site, receiver):
    subscribe(site, receiver.url, ["batch.completed"])
    batch = make(site, rank_batch, tasks=2, k=2)
    hand_in(site, take(site, add_person(site)))
    assert not events(site)
    with site.database.write() as db:
        for prompt in db.scalars(select(PromptRow)):
            withdraw_prompt(db, prompt, 9_000)
    (name, data), *more = events(site)
    assert (name, data["batch"]) == ("batch.completed", batch.id)
    assert not more
    with site.database.read() as db:
        assert db.get_one(Batch, batch.id).state == "open"


def test_an_admitted_labeler_is_reported_and_a_declined_one_is_not(site, receiver):
    subscribe(site, receiver.url)
    owner, ada, bob = add_person(site, "o", "owner"), add_person(site, "a", status="screening"), None
    bob = add_person(site, "b", status="screening")
    with site.database.write() as db:
        record_decision(db, db.merge(bob), db.merge(owner), "decline", "no")
        record_decision(db, db.merge(ada), db.merge(owner), "admit", "yes")
    assert events(site) == [
        ("person.admitted", {"person": ada.id, "labeler": ada.pseudonym, "cohort": "training", "fold": 0})
    ]


def test_failures_are_repeated_after_growing_delays_and_then_given_up(site, receiver):
    subscribe(site, receiver.url)
    make(site, record_event, "person.admitted", lambda: {"person": "x"})
    receiver.reply = lambda _: (500, {}, b"secret text of an inner service")
    delays = []
    for _ in range(len(RETRY_DELAYS_S)):
        assert deliver_due(site) == 1
        assert deliver_due(site) == 0  # not due
        delays.append((deliveries(site)[0].next_attempt_at - current_time_ms()) / 1000)
        make_due(site)
    assert all(earlier < later for earlier, later in itertools.pairwise(delays))
    assert delays == pytest.approx(RETRY_DELAYS_S, rel=0.11, abs=1)
    deliver_due(site)
    (row,) = deliveries(site)
    assert (row.attempts, row.next_attempt_at, row.delivered_at, row.error) == (11, None, None, "status 500")
    assert {request.headers["webhook-id"] for request in receiver.received} == {row.id}
    receiver.reply = lambda _: (204, {}, b"")
    with site.database.write() as db:
        outbox.send_again(db, db.get_one(Delivery, row.id))
    deliver_due(site)
    assert deliveries(site)[0].delivered_at


@pytest.mark.parametrize(("status", "outcome"), [(302, "not followed"), (401, "status 401"), (199 + 200, "status 399")])
def test_only_2xx_counts_as_delivered(site, receiver, status, outcome):
    subscribe(site, receiver.url)
    make(site, record_event, "person.admitted", dict)
    receiver.reply = lambda _: (status, {"Location": f"{receiver.url}/other"}, b"")
    deliver_due(site)
    (row,) = deliveries(site)
    assert outcome in row.error
    assert len(receiver.received) == 1


def test_a_receiver_that_is_gone_gets_no_more(site, receiver):
    subscribe(site, receiver.url)
    for _ in range(3):
        make(site, record_event, "person.admitted", dict)
    receiver.reply = lambda _: (410, {}, b"")
    deliver_due(site)
    assert deliver_due(site) == 0
    assert [row.next_attempt_at for row in deliveries(site)] == [None] * 3
    assert len(receiver.received) == 1
    refused("webhook_removed", make, site, outbox.send_again, deliveries(site)[1])


def test_a_slow_receiver_does_not_hold_up_others(site, receiver):
    release = threading.Event()
    with receiving_server(reply=lambda _: (release.wait(20), (200, {}, b""))[1]) as slow:
        subscribe(site, slow.url)
        subscribe(site, receiver.url)
        for _ in range(3):
            make(site, record_event, "person.admitted", dict)
        with outbox.DeliveryThread(site, poll_s=0.05):
            deadline = time.monotonic() + 20
            while len(slow.received) < 1 and time.monotonic() < deadline:
                time.sleep(0.02)
            while len(receiver.received) < 1 and time.monotonic() < deadline:
                time.sleep(0.02)
            release.set()
            while len(receiver.received) + len(slow.received) < 6 and time.monotonic() < deadline:
                time.sleep(0.02)
    assert (len(receiver.received), len(slow.received)) == (3, 3)


def test_two_processes_do_not_send_the_same_message(site, receiver):
    """Two senders at once, as two servers of one database would be; each message arrives once while none is killed."""
    subscribe(site, receiver.url)
    for _ in range(20):
        make(site, record_event, "person.admitted", dict)
    threads = [threading.Thread(target=lambda: [None for _ in iter(lambda: deliver_due(site), 0)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    while deliver_due(site):
        pass
    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert len(ids) == 20
    assert sorted(ids) == [row.id for row in deliveries(site)]


def test_a_webhook_cannot_reach_what_is_not_public(site, receiver):
    object.__setattr__(site.settings, "allowed_networks", ())
    owner = client_of(site, add_person(site, "owner", role="owner"))
    for url in (receiver.url, "https://169.254.169.254/latest/meta-data", "https://0x7f.1/", "https://[::ffff:a00:1]/"):
        answer = owner.post("/integrations/webhooks", data={"url": url, "events": list(EVENT_NAMES)})
        assert answer.status_code == 422
        assert "not public" in answer.text
    assert not make(site, lambda db: db.scalars(select(Webhook)).all())
    # A name that was public when it was added and is not any more: every delivery checks it.
    subscribe(site, receiver.url)
    make(site, record_event, "person.admitted", dict)
    deliver_due(site)
    assert "not public" in deliveries(site)[0].error
    assert not receiver.received


def test_the_page_adds_tests_repeats_and_removes(site, receiver):
    owner = client_of(site, add_person(site, "owner", role="owner"))
    hostile = f"{receiver.url}/?x=<script>alert(1)</script>&quot;"
    page = owner.post("/integrations/webhooks", data={"url": hostile, "events": ["person.admitted"]})
    assert page.status_code == 200
    secret = re.search(r"whsec_[A-Za-z0-9+/=]+", page.text)[0]
    page = owner.get("/integrations").text
    assert "whsec_" not in page
    assert "<script>alert" not in page
    key = re.search(r"/integrations/webhooks/([0-9a-f-]+)/test", page)[1]
    assert owner.post(f"/integrations/webhooks/{key}/test").status_code == 303
    deliver_due(site)
    StandardWebhook(secret).verify(receiver.received[0].body, receiver.received[0].headers)
    (row,) = deliveries(site)
    assert row.id in owner.get("/integrations").text
    assert owner.post(f"/integrations/deliveries/{row.id}/again").status_code == 303
    deliver_due(site)
    assert [request.headers["webhook-id"] for request in receiver.received] == [row.id] * 2
    assert owner.post(f"/integrations/webhooks/{key}/revoke").status_code == 303
    assert owner.post(f"/integrations/webhooks/{key}/test").status_code == 409
    assert owner.post(f"/integrations/deliveries/{row.id}/again").status_code == 409
    assert owner.post("/integrations/webhooks", data={"url": receiver.url}).status_code == 422
    for _ in range(10):
        made = owner.post("/integrations/webhooks", data={"url": receiver.url, "events": ["person.admitted"]})
        assert made.status_code == 200
    more = owner.post("/integrations/webhooks", data={"url": receiver.url, "events": ["person.admitted"]})
    assert more.status_code == 409


def test_older_messages_are_on_further_pages(site, receiver):
    subscribe(site, receiver.url)
    for _ in range(60):
        make(site, record_event, "person.admitted", dict)
    owner = client_of(site, add_person(site, "owner", role="owner"))
    ids, path = [], "/integrations"
    while path:
        page = owner.get(path).text
        ids += re.findall(r"/deliveries/([0-9a-f-]+)/again", page)
        found = re.search(r"/integrations\?before=[0-9a-f-]+", page)
        path = found and found[0]
    assert ids == [row.id for row in reversed(deliveries(site))]


def _serve(folder):
    arguments = [sys.executable, "-m", "instructgpt", "label", "serve", "--site", str(folder), "--port", "0"]
    arguments += ["--allow-networks", "127.0.0.0/8"]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": str(SRC), "PATH": "/usr/bin:/bin"},
    )


def _wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_site_loses_no_event(tmp_path, receiver):
    create_site_folder(tmp_path / "site", None)
    site = open_site(tmp_path / "site")
    subscribe(site, receiver.url)
    for number in range(12):
        make(site, record_event, "person.admitted", lambda number=number: {"person": str(number)})
    receiver.reply = lambda _: (time.sleep(0.1), (200, {}, b""))[1]
    process = _serve(tmp_path / "site")
    try:
        _wait_for(lambda: len(receiver.received) >= 4)
    finally:
        process.kill()  # in the middle of a delivery
        process.wait()
    waiting = [row for row in deliveries(site) if row.delivered_at is None]
    assert 0 < len(waiting) < 12
    assert all(row.next_attempt_at <= current_time_ms() + 20_000 for row in waiting)
    make_due(site)
    process = _serve(tmp_path / "site")
    try:
        _wait_for(lambda: all(row.delivered_at for row in deliveries(site)))
    finally:
        process.terminate()
        process.wait()
    site.database.close()
    unique = {
        request.headers["webhook-id"]: json.loads(request.body)["data"]["person"] for request in receiver.received
    }
    assert sorted(unique.values(), key=int) == [str(number) for number in range(12)]
    assert len(receiver.received) <= 13  # at most the one in the middle came twice


def test_a_result_that_comes_late_settles_its_message(site, receiver):
    subscribe(site, receiver.url)
    make(site, record_event, "person.admitted", dict)
    with site.database.write() as db:
        (leased,) = outbox.lease_due(db, current_time_ms())
    with site.database.write() as db:
        settle_delivery(db, db.get_one(Delivery, leased.id), "")
    assert deliver_due(site) == 0
