"""Slow reports are kept for a while; fast ones, changed people and changed batches never lag behind.

pytest tests/label/test_report_cache.py
"""

from __future__ import annotations

import threading
import time

import pytest
from support.owner import fill, people
from support.site import add_person, client_of

from instructgpt.label import report_cache
from instructgpt.label.analysis import rankings
from instructgpt.label.db.models import Batch, Person
from instructgpt.label.report_cache import ReportCache
from instructgpt.label.tasks.batches import mark_batch_closed

DATABASES = ("sqlite",)


@pytest.fixture
def slow(monkeypatch):
    """Treat every report as slow, and keep it for longer than the test takes."""
    monkeypatch.setattr(report_cache, "MIN_CACHED_SECONDS", 0.0)
    monkeypatch.setattr(report_cache, "AGE_FACTOR", 1e9)


def test_a_fast_report_is_computed_each_time():
    cache, numbers = ReportCache(), iter(range(9))
    assert [cache.get("key", lambda: next(numbers)).value for _ in range(3)] == [0, 1, 2]


def test_a_slow_report_is_used_for_thirty_times_as_long_as_it_took(monkeypatch):
    clock = [1_000_000]
    monkeypatch.setattr(report_cache, "MIN_CACHED_SECONDS", 0.5)
    monkeypatch.setattr(report_cache, "current_time_ms", lambda: clock[0])
    monkeypatch.setattr(report_cache.time, "perf_counter", iter([0.0, 2.0, 10.0, 10.1, 20.0, 22.0]).__next__)
    cache, numbers = ReportCache(), iter(range(9))

    def get():
        return cache.get("key", lambda: next(numbers)).value

    assert get() == 0  # took 2 s
    clock[0] += 59_999
    assert get() == 0
    clock[0] += 1
    assert get() == 1  # took 0.1 s: not kept
    assert get() == 2
    assert get() == 2


@pytest.mark.usefixtures("slow")
def test_threads_wait_for_one_computation():
    cache, starts = ReportCache(), []

    def compute():
        starts.append(time.monotonic())
        time.sleep(0.2)
        return len(starts)

    results = []
    threads = [threading.Thread(target=lambda: results.append(cache.get("key", compute).value)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1] * 5


@pytest.mark.usefixtures("slow")
def test_many_threads_never_compute_a_report_twice():
    """Threads that come at the very moment in which another one ends find its report."""
    for _ in range(200):
        cache, starts = ReportCache(), []
        barrier = threading.Barrier(4)

        def ask(cache=cache, starts=starts, barrier=barrier):
            barrier.wait()
            for _ in range(5):
                cache.get("key", lambda: starts.append(1))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(starts) == 1


@pytest.mark.usefixtures("slow")
def test_old_keys_are_dropped():
    cache = ReportCache()
    for number in range(100):
        cache.get(number, lambda: None)
    assert len(cache._reports) == 16
    assert not cache.is_computing


def test_a_failure_is_raised_and_the_next_caller_computes():
    cache, numbers = ReportCache(), iter(range(9))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache.get("key", lambda: 1 / 0)
    assert cache.get("key", lambda: next(numbers)).value == 0


def wait_until_computed(cache):
    deadline = time.monotonic() + 20
    while cache.is_computing:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_page_that_must_not_wait_gets_the_kept_report_while_the_next_one_is_computed(monkeypatch):
    clock, go_on, numbers = [1_000_000], threading.Event(), iter(range(9))
    monkeypatch.setattr(report_cache, "AGE_FACTOR", 1e6)
    monkeypatch.setattr(report_cache, "current_time_ms", lambda: clock[0])
    cache = ReportCache()

    def compute():
        assert go_on.wait(20)
        return next(numbers)

    assert cache.get_or_start("key", compute) is None
    assert cache.get_or_start("key", compute) is None, "one computation at a time"
    go_on.set()
    wait_until_computed(cache)
    first = cache.get_or_start("key", compute)
    assert (first.value, first.is_cached, first.is_expired) == (0, True, False), "fast reports are kept too"
    assert not cache.is_computing
    go_on.clear()
    clock[0] += 10**15
    assert cache.get_or_start("key", compute) is first
    assert first.is_expired
    go_on.set()
    assert cache.get("key", compute).value == 1, "who may wait gets the newest one"
    go_on.clear()
    assert cache.get_or_start("key", compute, recompute=True) is None
    go_on.set()
    wait_until_computed(cache)
    assert cache.get_or_start("key", compute).value == 2


def test_an_error_in_the_background_is_raised_by_the_next_call():
    cache = ReportCache()
    assert cache.get_or_start("key", lambda: 1 / 0) is None
    wait_until_computed(cache)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_start("key", lambda: 1)
    assert cache.get_or_start("key", lambda: 1) is None
    wait_until_computed(cache)
    assert cache.get_or_start("key", lambda: 1).value == 1


def test_the_quality_page_of_a_large_site_answers_at_once_and_says_when_it_was_computed(site, monkeypatch):
    monkeypatch.setattr(rankings, "MAX_QUICK_RANKINGS", 1)
    monkeypatch.setattr(report_cache, "AGE_FACTOR", 1e9)
    ada, ben = people(site, "ada", "ben")
    client = client_of(site, add_person(site, "olga", role="owner"))
    filled = fill(site, tasks=2)
    for person in (ada, ben):
        filled.rank(0, person, [1, 2, 3])
    filled.save()

    def get(path="/quality"):
        page = client.get(path)
        assert page.status_code == 200
        wait_until_computed(site.reports)
        return page.text

    for path in ("/quality", f"/quality/labelers/{ada.id}"):
        computing = get(path)
        assert '<meta http-equiv="refresh"' in computing
        first = get(path)
        assert '<meta http-equiv="refresh"' not in first
        site.reports._reports.clear()
    get()
    first = get()
    assert "Compute again" in first
    filled.rank(1, ada, [1, 2, 3])
    filled.rank(1, ben, [3, 2, 1])
    filled.save()
    assert get() == first, "the kept report"
    assert csv_rows(client, "tasks") == 1, "the tables are those of the page"
    again = client.get("/quality?recompute=1")
    assert (again.status_code, again.headers["location"]) == (303, "/quality")
    wait_until_computed(site.reports)
    assert get() != first
    with site.database.write() as db:
        db.get(Person, ben.id).name = "Benjamin"
    assert ">ben<" not in get()
    assert "Benjamin" in get(), "a changed name is never shown again"
    site.reports._reports.clear()
    assert csv_rows(client, "tasks") == 2, "a file waits for its numbers"


def test_the_results_of_a_large_evaluation_are_computed_in_the_background(site, monkeypatch):
    monkeypatch.setattr(rankings, "MAX_QUICK_RANKINGS", 1)
    monkeypatch.setattr(report_cache, "AGE_FACTOR", 1e9)
    client, (ada, ben) = client_of(site, add_person(site, "olga", role="owner")), people(site, "ada", "ben")
    filled = fill(site, tasks=2, purpose="evaluation", baseline="sft")
    for person in (ada, ben):
        filled.rank(0, person, [1, 2, 3])
    filled.save()
    address = f"/results/{filled.batch}"

    def get(path=address):
        page = client.get(path)
        wait_until_computed(site.reports)
        return page.text

    assert '<meta http-equiv="refresh"' in get()
    assert "Only the precision" in get() or "±" in get(), "the page of a blind batch"
    with site.database.write() as db:
        mark_batch_closed(db, db.get(Batch, filled.batch))
    assert "ppo" not in get(), "what was kept of the blind batch is not shown"
    page = get()
    assert "ppo" in page
    assert "computed" in page.lower()
    assert len(client.get(f"{address}/results.json").json()) > 3
    assert '<meta http-equiv="refresh"' in get(f"{address}?baseline=nothing")
    assert client.get(f"{address}?baseline=nothing").status_code == 404


def csv_rows(client, name):
    return len(client.get(f"/quality/{name}.csv").text.splitlines()) - 1


def test_the_quality_page_of_a_small_site_shows_the_newest_work(site):
    ada, ben = people(site, "ada", "ben")
    client = client_of(site, add_person(site, "olga", role="owner"))
    filled = fill(site, tasks=2)
    filled.rank(0, ada, [1, 2, 3])
    filled.save()
    first = client.get("/quality").text
    assert "Compute again" not in first
    filled.rank(0, ben, [1, 2, 3])
    filled.save()
    assert client.get("/quality").text != first
