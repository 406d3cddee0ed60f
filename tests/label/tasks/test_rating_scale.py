"""A rating scale above seven points, from the form to the evaluation; the numbers are worked out by hand.

pytest tests/label/tasks/test_rating_scale.py
"""

from __future__ import annotations

import csv
import io
import json

import pytest
from support.browser import add_ranking, browser, server, sign_in, watched  # noqa: F401
from support.owner import fill
from support.site import add_person, client_of, make_site

from instructgpt.evaluate.metrics import preference
from instructgpt.label.db.models import Batch, Rating
from instructgpt.label.exchange.export_files import write_export
from instructgpt.label.exchange.external_submissions import ExternalSubmissionImporter
from instructgpt.label.exchange.imports import ImportReport
from instructgpt.label.exchange.selection import ExportFilter
from instructgpt.label.tasks.batches import mark_batch_closed
from instructgpt.records import Ranking

TEN = {"rating": {"points": 10, "answer": "required"}}


def submit(client, numbers):
    """Claim the next task and hand it in with these ratings, in the order of the page."""
    task = client.post("/api/v1/tasks/claim").json()
    ids = [each["id"] for each in task["completions"]]
    ratings = [{"completion": name, "rating": rating} for name, rating in zip(ids, numbers, strict=True)]
    form = {"ratings": ratings, "tiers": [[name] for name in ids]}
    headers = {"Idempotency-Key": task["assignment"]}
    return client.post(f"/api/v1/assignments/{task['assignment']}/submit", json=form, headers=headers)


def test_ten_points_from_the_api_to_quality_and_results(site):
    ten = fill(site, tasks=2, name="ten", purpose="evaluation", questions=TEN)
    ada = client_of(site, add_person(site, "ada"))
    refused = submit(ada, [10, 11, 1])
    assert refused.status_code == 422
    assert "up to 10" in refused.json()["message"]
    assert submit(ada, [10, 9, 1]).status_code == 200
    assert submit(ada, [10, 8, 4]).status_code == 200
    owner = client_of(site, add_person(site, "olga", role="owner"))
    rows = list(
        csv.DictReader(io.StringIO(owner.get(f"/quality/labelers.csv?batch={ten.batch}").text.lstrip("\ufeff")))
    )
    assert [rows[0][f"rating_{n}"] for n in (10, 9, 8, 4, 1, 7)] == ["2", "1", "1", "1", "1", "0"]
    assert float(rows[0]["mean_rating"]) == pytest.approx(42 / 6)
    assert "(1–10)" in owner.get(f"/quality?batch={ten.batch}").text
    with site.database.write() as db:
        mark_batch_closed(db, db.get(Batch, ten.batch))
        stored = {row.completion_id: row.rating for row in db.query(Rating)}
    page = owner.get(f"/results/{ten.batch}").text
    assert "Mean ratings (1 to 10)" in page
    rows = owner.get(f"/results/{ten.batch}/results.json").json()
    means = {row["model"]: row["value"] for row in rows if (row["metric"], row["condition"]) == ("rating", "")}
    for model in ("sft", "ppo", "gpt"):
        raw = sum(stored[each[model]] for each in ten.completions) / 2
        assert means[model] == pytest.approx(1 + 6 * (raw - 1) / 9), "results.json has the paper's scale"


def test_batches_of_two_scales_are_rescaled_and_said_so(site):
    seven, ten = fill(site, tasks=1, name="seven"), fill(site, tasks=1, name="ten", questions=TEN)
    ada = add_person(site, "ada")
    seven.rank(0, ada, [1, 2, 3], ratings=[7, 4, 1])
    ten.rank(0, ada, [1, 2, 3], ratings=[10, 10, 1])
    for filled in (seven, ten):
        filled.save()
    owner = client_of(site, add_person(site, "olga", role="owner"))
    page = owner.get("/quality").text
    assert "rescaled to 1 to 7" in page
    assert "rescaled" not in owner.get(f"/quality?batch={ten.batch}").text
    (row,) = csv.DictReader(io.StringIO(owner.get("/quality/labelers.csv").text.lstrip("\ufeff")))
    assert float(row["mean_rating"]) == pytest.approx((7 + 4 + 1 + 7 + 7 + 1) / 6)
    assert (row["rating_7"], "rating_8" in row) == ("3", False)


def test_an_export_keeps_the_scale_and_comes_back(site, tmp_path):
    ten = fill(site, tasks=2, name="ten", questions=TEN)
    ada = add_person(site, "ada", fold=0)
    for task in range(2):
        ten.rank(task, ada, [1, 2, 3], ratings=[10, 5, 1])
    ten.save()
    write_export(site.database, tmp_path / "out", ExportFilter(), "jsonl", ("rankings", "ratings"))
    records = [Ranking.model_validate_json(line) for line in (tmp_path / "out/rankings.jsonl").read_text().splitlines()]
    assert [(each.ratings, each.rating_points) for each in records] == [((10, 5, 1), 10)] * 2
    assert {
        json.loads(line)["rating_points"] for line in (tmp_path / "out/ratings.jsonl").read_text().splitlines()
    } == {10}
    means = {row.model: row.value for row in preference.measure(records, "sft") if row.metric == "rating"}
    assert means == pytest.approx({"sft": 7, "ppo": 1 + 6 * 4 / 9, "gpt": 1})
    other = make_site(tmp_path / "other")
    with other.database.write() as db:
        importer = ExternalSubmissionImporter(db, "back", "training", "training", ImportReport(), "cli")
        importer.import_all([(f"line {n}", record) for n, record in enumerate(records)])
        assert db.query(Batch).one().questions == {"rating": {"points": 10}}
        assert sorted(row.rating for row in db.query(Rating)) == [1, 1, 5, 5, 10, 10]
    other.database.close()


@pytest.mark.parametrize(
    ("points", "ratings"), [(None, [8, 1]), (10, [11, 1]), (5, [6, 1]), (1, [1, 1]), (101, [1, 1])]
)
def test_records_keep_to_their_scale(points, ratings):
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "ratings": ratings, "rating_points": points}
    with pytest.raises(ValueError, match="rating"):
        Ranking.model_validate({name: value for name, value in row.items() if value is not None})


def test_keys_and_taps_of_a_long_scale(browser, server, watched):  # noqa: F811
    add_ranking(server.site, "Choose.", ["one", "two"], questions={"rating": {"points": 12}, "table_3": "off"})
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True)
    watched.watch(context, server.url)
    sign_in(context, server, add_person(server.site))
    page = context.new_page()
    page.goto(f"{server.url}/home")
    page.locator("form:has(input[value=rank]) button").click()
    page.wait_for_selector("form[data-ready]")
    page.keyboard.press("0")
    assert page.locator("section.rate[data-letter=A] input:checked").get_attribute("value") == "10"
    page.keyboard.press("ArrowRight")
    assert page.locator("section.rate[data-letter=A] input:checked").get_attribute("value") == "11"
    page.locator("section.rate[data-letter=A] .next").tap()
    choice = page.locator("section.rate[data-letter=B] .choice:has(input[value='12'])")
    box = choice.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    assert min(box["width"], box["height"]) >= 24, "WCAG 2.2, 2.5.8"
    choice.tap()
    assert page.locator("#rated").inner_text() == "2/2"
    page.locator("button.stage[data-stage=rank]").tap()
    for key in "a1b2":
        page.keyboard.press(key)
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/done")
    with server.site.database.read() as db:
        assert sorted(row.rating for row in db.query(Rating)) == [11, 12]
