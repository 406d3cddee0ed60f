"""The quality page: hand-computed numbers on planted data, and a constant number of SQL statements."""

from __future__ import annotations

import csv
import io
import re
from random import Random

import pytest
from sqlalchemy import event
from support.owner import fill, people
from support.site import add_person, client_of

from instructgpt.label.analysis import quality, rankings
from instructgpt.label.db.models import GoldAnswer, PromptRow, Task
from instructgpt.label.tasks.batches import OverlapPolicy

DATABASES = ("sqlite",)


def compute_quality(site, batch=None):
    with site.database.read() as db:
        return quality.compute_quality(db, batch)


def count_statements(site, act):
    seen = []
    event.listen(site.database.engine, "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))
    act()
    return len(seen)


def test_agreement_under_three_tie_rules(site):
    ada, ben = people(site, "ada", "ben")
    filled = fill(site, tasks=2)
    filled.rank(0, ada, [1, 2, 3])
    filled.rank(0, ben, [2, 1, 3])  # of three pairs: one opposite, two alike
    filled.rank(1, ada, [1, 1, 2])
    filled.rank(1, ben, [1, 2, 2])  # ab: ada ties; ac: both decide alike; bc: ben ties
    filled.save()
    found = compute_quality(site).overall
    assert (found.concordant, found.discordant, found.one_tied, found.both_tied) == (3, 1, 2, 0)
    assert found.decided.value == pytest.approx(3 / 4)
    assert found.three_way.value == pytest.approx(3 / 6)
    assert found.half_credit.value == pytest.approx((3 + 2 / 2) / 6)
    assert found.tie_rate.value == pytest.approx(2 / 12)


def test_agreement_by_cohort(site):
    inside, outside = people(site, "ada", "ben"), people(site, "cy", "dee", cohort="heldout")
    filled = fill(site, tasks=1)
    for person, ranks in zip((*inside, *outside), ([1, 2, 3], [1, 2, 3], [1, 2, 3], [3, 2, 1]), strict=True):
        filled.rank(0, person, ranks)
    filled.save()
    found = compute_quality(site)
    assert found.cohorts["training"].decided.value == 1
    assert found.cohorts["heldout"].decided.value == 0
    assert found.overall.decided.value == pytest.approx((3 + 3 + 3) / 18)  # of six couples the three without dee agree


def test_agreement_with_gold_and_hidden_repeats(site):
    (ada,) = people(site, "ada")
    filled = fill(site, tasks=2)
    filled.rank(0, ada, [1, 2, 3])
    filled.rank(1, ada, [1, 2, 3])
    filled.rank(1, ada, [1, 3, 2], again=1)
    filled.save()
    a, b, c = filled.completions[0].values()
    with site.database.write() as db:
        db.add(GoldAnswer(task_id=filled.tasks[0], answer={a: 2, b: 1, c: 3}))
    found = compute_quality(site)
    assert found.gold is not None
    assert found.gold.decided.value == pytest.approx(2 / 3)
    assert found.repeats is not None
    assert found.repeats.decided.value == pytest.approx(2 / 3)
    assert not found.overall.concordant  # nobody else ranked


def test_planted_order_bias_is_detected(site):
    biased, fair = people(site, "biased", "fair")
    filled = fill(site, tasks=90)
    rng = Random(1)
    for task in range(90):
        order = rng.sample(range(3), 3)
        ranks = [0, 0, 0]
        for place, completion in enumerate(order):
            ranks[completion] = place + 1  # the top of the page comes first, whatever it says
        filled.rank(task, biased, ranks, order=order)
        filled.rank(task, fair, [1, 2, 3], order=rng.sample(range(3), 3))
    filled.save()
    rows = {row.name: row for row in compute_quality(site).labelers}
    assert rows["biased"].report.position.first == (90, 0, 0)
    assert {"position", "as_shown"} <= set(rows["biased"].warnings)
    assert not {"position", "as_shown"} & set(rows["fair"].warnings)


def test_labeler_profile_numbers(site):
    ada, ben = people(site, "ada", "ben")
    filled = fill(site, tasks=2)
    filled.rank(0, ada, [1, 1, 2], active=60_000, ratings=[7, 7, 1], pasted=0.5)
    filled.rank(1, ada, [1, 2, 3], active=120_000, ratings=[4, 3, 2], pasted=0.0)
    filled.rank(1, ben, [1, 2, 3])
    filled.save()
    labelers = {labeler.name: labeler for labeler in compute_quality(site).labelers}
    row = labelers["ada"]
    # One question of the task and ten labels of each of three completions are open in a ranking.
    assert {name: (each.unrated, each.unanswered) for name, each in labelers.items()} == {
        "ada": (0, 62),
        "ben": (3, 31),
    }
    assert row.rankings == 2
    assert row.seconds == pytest.approx((20 + 40) / 2)
    assert row.hours == pytest.approx(180 / 3600)
    assert row.ratings == (1, 1, 1, 1, 0, 0, 2)
    assert row.mean_rating == pytest.approx(24 / 6)
    assert row.report.ties.share == pytest.approx((1 / 3 + 0) / 2)
    assert row.pasted == pytest.approx(0.25)
    assert row.agreement is not None
    assert row.agreement.is_small_sample


def test_shares_and_whiskers_stay_on_their_scale(site):
    """Two labelers who disagree on nearly everything: intervals end at 0 and 100 %, and the chart shows them whole."""
    filled, (ada, ben) = fill(site, tasks=9), people(site, "ada", "ben")
    for task in range(9):
        filled.rank(task, ada, [1, 2, 3], labels=[{"opinion": task % 3 == 0}, {"opinion": True}, {}])
        filled.rank(
            task, ben, [3, 1, 2] if task else [1, 2, 3], labels=[{"opinion": task % 4 == 1}, {"opinion": False}, {}]
        )
    filled.save()
    page = client_of(site, add_person(site, "olga", role="owner")).get("/quality").text
    shares = re.findall(r"(-?[\d.]+) % \[(-?[\d.]+), (-?[\d.]+)\]", page)
    assert len(shares) >= 6
    assert all(0 <= float(low) <= float(value) <= float(high) <= 100 for value, low, high in shares)
    chart = page[page.index('<svg class="chart"') : page.index("</svg>")]
    overall = min(float(low) for _, low, _ in shares[:3]) / 100
    ticks = [float(tick) / 100 for tick in re.findall(r">(-?\d+) %</text>", chart)[-3:]]
    assert ticks[0] <= overall < 0.4
    whiskers = re.findall(r'x1="([\d.]+)" x2="([\d.]+)" y1="[\d.]+" y2="[\d.]+" class="whisker"', chart)
    dots = re.findall(r'<circle cx="([\d.]+)"', chart)
    assert len(whiskers) == len(dots) >= 2
    for (low_x, high_x), dot in zip(whiskers, dots, strict=True):
        assert float(low_x) < float(dot) < float(high_x), "a whisker is cut off at its estimate"


def test_planted_disagreement_is_listed_first(site):
    crowd = people(site, "ada", "ben", "cy")
    filled = fill(site, tasks=4)
    for task in range(4):
        for person in crowd:
            filled.rank(task, person, [3, 2, 1] if task == 2 and person is crowd[2] else [1, 2, 3])
    filled.save()
    page = client_of(site, add_person(site, "olga", role="owner")).get("/quality").text
    with site.database.read() as db:
        prompt = db.get_one(PromptRow, db.get_one(Task, filled.tasks[2]).prompt_id).text
    assert re.search(rf'href="/adjudication/{filled.tasks[2]}"[^>]*>{re.escape(prompt)}<', page), "named by its prompt"
    first, *others = compute_quality(site).disagreements
    assert first.task == filled.tasks[2]
    assert (first.labelers, first.opposite, first.decided) == (
        3,
        6,
        9,
    )  # cy against ada and against ben, three pairs each
    assert not any(each.opposite for each in others)


def test_identical_labels_and_ratings_have_alpha_one(site):
    ada, ben = people(site, "ada", "ben")
    filled = fill(site, tasks=3)
    for task in range(3):
        for person in (ada, ben):
            said = [
                {"opinion": True, "hallucination": None},
                {"opinion": False, "hallucination": True},
                {"opinion": False},
            ]
            filled.rank(task, person, [1, 2, 3], ratings=[7, 4, task + 1], labels=said)
    filled.save()
    rows = {row.name: row for row in compute_quality(site).categories}
    assert rows["rating"].alpha.value == pytest.approx(1)
    assert rows["opinion"].alpha.value == pytest.approx(1)
    assert rows["opinion"].yes == pytest.approx(1 / 3)
    assert rows["hallucination"].answers == 12  # not applicable is an answer, left out is none
    assert "sexual_content" not in rows


def test_screening_and_invalid_rankings_do_not_count(site):
    ada, ben = people(site, "ada", "ben")
    screening = fill(site, name="test", screening="ranking")
    screening.rank(0, ada, [1, 2, 3])
    screening.rank(0, ben, [3, 2, 1])
    screening.save()
    filled = fill(site)
    filled.rank(0, ada, [1, 2, 3])
    filled.rank(0, ben, [1, 2, 3])
    filled.rows[list(filled.rows)[1]][0]["invalid_reason"] = "spam"
    filled.save()
    assert compute_quality(site).rankings == 1


def fill_many_labelers(site, tasks=1_000, labelers=40):
    """Many labelers, most tasks once and 12 % three times, as the standard policy has it."""
    crowd = people(site, *[f"labeler {number}" for number in range(labelers)])
    filled = fill(site, tasks=tasks, models=("a", "b", "c", "d"), policy=OverlapPolicy(gold_share=0))
    rng = Random(0)
    for task in range(tasks):
        for person in rng.sample(crowd, 3 if task < tasks * 0.12 else 1):
            ranks = rng.choices(range(1, 4), k=4)
            dense = [sorted(set(ranks)).index(rank) + 1 for rank in ranks]
            filled.rank(
                task, person, dense, ratings=rng.choices(range(1, 8), k=4), labels=[{"opinion": rng.random() < 0.1}] * 4
            )
    filled.save()
    return filled


def test_quality_page_sends_a_constant_number_of_statements(site, monkeypatch):
    monkeypatch.setattr(rankings, "MAX_QUICK_RANKINGS", 10**6)  # computed while the page waits
    fill_many_labelers(site, tasks=20, labelers=4)
    owner = add_person(site, "olga", role="owner")
    client = client_of(site, owner)
    client.get("/quality")
    few = count_statements(site, lambda: client.get("/quality"))
    crowd = people(site, *[f"more {number}" for number in range(36)])
    filled = fill(site, tasks=980, models=("a", "b", "c", "d"), name="more")
    rng = Random(2)
    for task in range(980):
        for person in rng.sample(crowd, 3 if task < 120 else 1):
            filled.rank(task, person, rng.sample(range(1, 5), 4), ratings=[4, 5, 3, 2], labels=[{"opinion": False}] * 4)
    filled.save()
    assert client.get("/quality").status_code == 200
    assert count_statements(site, lambda: client.get("/quality")) == few


def test_csv_tables_name_labelers_by_pseudonym(site):
    ada, ben = people(site, "=ada", "ben")
    filled = fill(site)
    filled.rank(0, ada, [1, 2, 3])
    filled.rank(0, ben, [1, 3, 2])
    filled.save()
    client = client_of(site, add_person(site, "olga", role="owner"))
    for name, row in {"agreement": "all", "labelers": "p-=ada", "matrix": "p-=ada", "tasks": filled.tasks[0]}.items():
        answer = client.get(f"/quality/{name}.csv")
        rows = list(csv.reader(io.StringIO(answer.text)))
        assert answer.headers["content-type"].startswith("text/csv")
        assert any(row in each[:2] for each in rows[1:]), name
        assert all(len(each) == len(rows[0]) for each in rows)
    agreement = {
        (row[0], row[1]): float(row[2])
        for row in list(csv.reader(io.StringIO(client.get("/quality/agreement.csv").text)))[1:]
    }
    assert agreement["all", "decided"] == pytest.approx(2 / 3)
    assert client.get("/quality/nothing.csv").status_code == 404


@pytest.mark.parametrize(
    ("names", "mark", "note"),
    [("ada ben", "two labelers", "that of agreement is about these two"), ("ada ben cy", "", "")],
)
def test_pages_and_programs_say_what_intervals_rest_on(site, names, mark, note):
    crowd, rng = people(site, *names.split()), Random(3)
    filled = fill(site, tasks=12)
    for task in range(12):
        for person in crowd:
            filled.rank(task, person, rng.sample(range(1, 4), 3), labels=[{"opinion": rng.random() < 0.5}] * 3)
    filled.save()
    client = client_of(site, add_person(site, "olga", role="owner"))
    page = client.get("/quality").text
    assert (f'title="The interval says little about other labelers; {note}.">two labelers</abbr>' in page) == bool(mark)
    assert (f"<strong>two labelers</strong>: The interval says little about other labelers; {note}." in page) == bool(
        mark
    )
    for name, column in (("agreement", "rule"), ("labels", "question")):
        rows = list(csv.DictReader(io.StringIO(client.get(f"/quality/{name}.csv").content.decode("utf-8-sig"))))
        chosen = [row for row in rows if row[column] in ("decided", "opinion") and row.get("group", "all") == "all"]
        assert [row["caution"] for row in chosen] == [mark]


def test_labelers_cannot_open_team_pages(site):
    (ada,) = people(site, "ada")
    client = client_of(site, ada)
    for path in (
        "/quality",
        "/quality/labelers.csv",
        f"/quality/labelers/{ada.id}",
        "/overview",
        "/batches",
        "/adjudication",
        "/results",
    ):
        assert client.get(path).status_code == 403
