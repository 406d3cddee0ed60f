"""Users and labelers on one site through kills: nothing lost, nothing double, nothing stored without consent.

The full size takes minutes: `make test-long`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "bench"))
import playground_load

ZERO = (
    *("lost", "changed", "duplicate", "over-assigned"),
    *("lost turns", "changed turns", "lost rankings", "double turns", "unknown turns", "without consent", "in files"),
)


def own_database(database_url):
    """A site's own file is in its folder, where the load looks for private words."""
    return None if database_url.startswith("sqlite") else database_url


def check(found, kills):
    assert {name: found.get(name, 0) for name in ZERO} == dict.fromkeys(ZERO, 0), found
    assert found["kills"] == kills
    assert min(found["turns"], found["rankings"], found["private"], found["submitted"]) > 0


@pytest.mark.slow
def test_users_and_labelers_through_kills(tmp_path, database_url):
    size = {"users": 6, "labelers": 4, "tasks": 12, "kills": 2, "messages": 4}
    check(playground_load.run(tmp_path / "place", own_database(database_url), **size), 2)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("INSTRUCTGPT_TEST_LONG"), reason="takes minutes: make test-long")
def test_fifty_users_and_forty_labelers_through_five_kills(tmp_path, database_url):
    check(playground_load.run(tmp_path / "place", own_database(database_url), 50, 40, tasks=200, kills=5), 5)
