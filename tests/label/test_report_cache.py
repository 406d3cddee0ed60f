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
from instructgpt.label.db.models import Person
from instructgpt.label.report_cache import ReportCache

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

    def get(**options):
        return cache.get("key", lambda: next(numbers), **options).value

    assert get() == 0  # took 2 s
    clock[0] += 59_999
    assert get() == 0
    clock[0] += 1
    assert get() == 1  # took 0.1 s: not kept
    assert get(recompute=True) == 2
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
def test_old_keys_are_dropped():
    cache = ReportCache()
    for number in range(100):
        cache.get(number, lambda: None)
    assert len(cache._reports) == 16
    assert len(cache._locks) <= 17


@pytest.mark.usefixtures("slow")
def test_the_quality_page_of_a_large_site_says_when_it_was_computed(site):
    ada, ben = people(site, "ada", "ben")
    client = client_of(site, add_person(site, "olga", role="owner"))
    filled = fill(site, tasks=2)
    for person in (ada, ben):
        filled.rank(0, person, [1, 2, 3])
    filled.save()
    first = client.get("/quality").text
    assert "Compute again" in first
    filled.rank(1, ada, [1, 2, 3])
    filled.rank(1, ben, [3, 2, 1])
    filled.save()
    assert client.get("/quality").text == first, "the kept report"
    assert client.get("/quality?recompute=1").text != first
    with site.database.write() as db:
        db.get(Person, ben.id).name = "Benjamin"
    assert "Benjamin" in client.get("/quality").text, "a changed name shows at once"


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
