"""What work costs: a rate with its currency is kept with the batch, and a later one does not change earlier costs.

pytest tests/label/tasks/test_rates.py
"""

from __future__ import annotations

import re

import pytest
from support.owner import fill, people
from support.site import add_person, client_of

from instructgpt.label.db.models import AuditLogEntry, Batch, current_time_ms

HOUR_MS = 3_600_000


def figures(page: str) -> dict[str, str]:
    """The numbers of a page's tiles by what they say."""
    tiles = re.findall(r'<div class="figure"><strong>(.*?)</strong><span>(.*?)</span>', page, re.DOTALL)
    return {name: value.strip() for value, name in tiles}


@pytest.fixture
def owner(site):
    return client_of(site, add_person(site, "olga", role="owner"))


def work(filled, person, task, hours):
    """A ranking that took some hours, handed in now."""
    filled.rank(task, person, [1, 2, 3], active=round(hours * HOUR_MS), at=current_time_ms())
    filled.save()


def test_a_later_rate_leaves_earlier_costs_alone(site, owner):
    filled, (ada, ben) = fill(site, tasks=4), people(site, "ada", "ben")
    address = f"/batches/{filled.batch}"
    work(filled, ada, 0, 2)
    assert "spent so far" not in figures(owner.get(address).text)
    for hourly, currency, hours, spent in (
        ("15,5", "usd", 1, "46.50 USD"),  # 2 h from before the first rate and 1 h, at 15.5
        ("20", "USD", 0.5, "56.50 USD"),
        ("30000", "KRW", 2, "56.50 USD + 60 000 KRW"),
        ("1", "KRW", 0, "56.50 USD + 60 000 KRW"),
    ):
        assert owner.post(f"{address}/rate", data={"hourly": hourly, "currency": currency}).status_code == 303
        if hours:
            work(filled, ben if hours == 0.5 else ada, {1: 1, 0.5: 1, 2: 2}[hours], hours)
        assert figures(owner.get(address).text)["spent so far"] == spent
    page = owner.get(address).text
    assert 'value="KRW"' in page
    assert figures(page)["cost for the whole batch"].endswith("KRW")
    assert owner.post(f"{address}/rate", data={"hourly": "1", "currency": "KRW"}).status_code == 303
    with site.database.read() as db:
        assert [row["amount"] for row in db.get(Batch, filled.batch).rates] == [15.5, 20, 30000, 1]
        assert db.query(AuditLogEntry).filter_by(action="batch.rate").count() == 4, "the same rate again is no change"


def test_costs_of_currencies_stay_apart_and_reach_copies_and_the_overview(site, owner):
    for name, hourly, currency in (("one", "36", "USD"), ("two", "3.6", "EUR"), ("none", "", "")):
        filled = fill(site, tasks=2, name=name)
        if hourly:
            owner.post(f"/batches/{filled.batch}/rate", data={"hourly": hourly, "currency": currency})
    overview = owner.get("/overview").text
    cells = re.findall(r">([\d.,]+) EUR \+ ([\d.,]+) USD<", overview)
    assert len(cells) == 1
    assert float(cells[0][1]) == pytest.approx(10 * float(cells[0][0]), abs=0.06)
    made = owner.post(f"/batches/{filled.batch}/duplicate", data={"name": "copy of none"})
    assert "USD</strong>" not in owner.get(made.headers["location"]).text
    form = owner.get("/batches/new").text
    assert 'name="hourly"' in form
    owner.post(f"{made.headers['location']}/rate", data={"hourly": "9", "currency": "JPY"})
    copy = owner.post(f"{made.headers['location']}/duplicate", data={"name": "copy of the copy"})
    assert 'value="JPY"' in owner.get(copy.headers["location"]).text
    assert 'value="JPY"' in owner.get("/batches/new").text, "the newest batch's rate is the proposal"


@pytest.mark.parametrize(
    ("hourly", "currency"),
    [
        ("0", "USD"),
        ("-1", "USD"),
        ("nan", "USD"),
        ("inf", "USD"),
        ("1e9", "USD"),
        ("x", "USD"),
        ("5", "DOLLAR"),
        ("5", ""),
    ],
)
def test_a_rate_is_a_positive_number_with_a_currency(site, owner, hourly, currency):
    filled = fill(site, tasks=1)
    assert owner.post(f"/batches/{filled.batch}/rate", data={"hourly": hourly, "currency": currency}).status_code == 422
    with site.database.read() as db:
        assert db.get(Batch, filled.batch).rates == []
