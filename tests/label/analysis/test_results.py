"""Results of blind evaluations on planted data, hidden model names, and adjudication."""

from __future__ import annotations

import html
import json
from random import Random
from typing import get_args

import pytest
from support.owner import fill, people
from support.site import add_person, client_of
from support.tasks import PLAIN

from instructgpt.label.analysis import adjudication, results
from instructgpt.label.db.models import (
    Adjudication,
    AuditLogEntry,
    Batch,
    CompletionRow,
    GoldAnswer,
    MessageRow,
    RankingItem,
    Task,
    TaskCompletion,
)
from instructgpt.label.tasks.batches import UNLIMITED_OVERLAP, mark_batch_closed
from instructgpt.statistics import win_rate
from instructgpt.statistics.clustered import Caution

DATABASES = ("sqlite",)

SECRET = ("zephyrine-7b", "org/quasar-13b", "ocelot_v2")


def close_batch(site, batch):
    with site.database.write() as db:
        mark_batch_closed(db, db.get(Batch, batch))


def compute_results(site, batch, baseline=None):
    with site.database.read() as db:
        return results.compute_results(db, [db.get(Batch, batch)], baseline)


def fill_evaluation(site, **options):
    """Four prompts, two labelers per cohort: ppo wins against sft in 10 of 16 rankings and ties in 2; gpt is last."""
    crowd = [*people(site, "ada", "ben"), *people(site, "cy", "dee", cohort="heldout")]
    filled = fill(site, tasks=4, purpose="evaluation", baseline="sft", use_cases=("chat", "open_qa"), **options)
    number = 0
    for task in range(4):
        for person in crowd:
            ranks = [2, 1, 3] if number < 10 else [1, 1, 2] if number < 12 else [1, 2, 3]
            filled.rank(
                task,
                person,
                ranks,
                ratings=[3, 5 if number < 10 else 3, 1],
                labels=[{"opinion": False}, {"opinion": True}, {}],
            )
            number += 1
    filled.save()
    return filled


def test_win_rate_of_planted_rankings(site):
    filled = fill_evaluation(site)
    close_batch(site, filled.batch)
    rows = {row.model: row for row in compute_results(site, filled.batch).wins}
    assert (rows["ppo"].wins, rows["ppo"].ties, rows["ppo"].losses) == (10, 2, 4)
    assert rows["ppo"].rate.value == pytest.approx(11 / 16)
    assert rows["gpt"].rate.value == 0
    assert rows["ppo"].rate.low < 11 / 16 < rows["ppo"].rate.high


def test_results_by_group_ratings_labels_and_mirrored_matrix(site):
    filled = fill_evaluation(site)
    close_batch(site, filled.batch)
    numbers = compute_results(site, filled.batch)
    chat = next(
        row for row in numbers.by_use_case if (row.model, row.group) == ("ppo", "chat")
    )  # prompts 0 and 2: rankings 0-3, 8-11
    assert (chat.wins, chat.ties, chat.losses) == (6, 2, 0)
    cohort = next(
        row for row in numbers.by_cohort if (row.model, row.group) == ("ppo", "training")
    )  # rankings 0 1 4 5 8 9 12 13
    assert (cohort.wins, cohort.ties, cohort.losses) == (6, 0, 2)
    assert numbers.ratings["ppo", ""].value == pytest.approx((10 * 5 + 6 * 3) / 16)
    assert numbers.labels["ppo", "opinion"].value == 1
    assert ("gpt", "opinion") not in numbers.labels
    straight, turned = numbers.matrix["ppo", "sft"], numbers.matrix["sft", "ppo"]
    assert straight.rate.value + turned.rate.value == pytest.approx(1)
    assert (turned.wins, turned.losses) == (straight.losses, straight.wins)
    assert straight.rate.low + turned.rate.high == pytest.approx(1)


def test_bradley_terry_of_two_models_is_the_log_odds_of_the_win_rate(site):
    crowd = people(site, "ada", "ben", "cy", "dee")
    filled = fill(site, tasks=4, models=("sft", "ppo"), purpose="evaluation", baseline="sft")
    for number in range(16):
        filled.rank(number // 4, crowd[number % 4], [1, 2] if number % 4 == 0 else [2, 1])
    filled.save()
    close_batch(site, filled.batch)
    rows = {row.model: row.strength.value for row in compute_results(site, filled.batch).strengths}
    assert rows["ppo"] - rows["sft"] == pytest.approx(190.85, abs=0.05)  # 400 log10(12 / 4)


def test_strengths_of_two_labelers_say_what_their_intervals_rest_on(site):
    filled, crowd = fill(site, tasks=12, purpose="evaluation", baseline="sft"), people(site, "ada", "ben")
    rng = Random(3)
    for task in range(12):
        for person in crowd:
            filled.rank(task, person, rng.sample(range(1, 4), 3))
    filled.save()
    close_batch(site, filled.batch)
    page = client_of(site, add_person(site, "olga", role="owner")).get(f"/results/{filled.batch}").text
    section = page[page.index("Bradley") :].partition("</section>")[0]
    assert "<strong>two labelers</strong>" in section


def test_repeats_and_gold_tasks_are_excluded(site):
    (ada,) = people(site, "ada")
    filled = fill(site, tasks=2, purpose="evaluation", baseline="sft")
    filled.rank(0, ada, [2, 1, 3])
    filled.rank(0, ada, [1, 2, 3], again=1)
    filled.rank(1, ada, [1, 2, 3])
    filled.save()
    with site.database.write() as db:
        db.get(Task, filled.tasks[1]).gold = True
    close_batch(site, filled.batch)
    row = next(row for row in compute_results(site, filled.batch).wins if row.model == "ppo")
    assert (row.wins, row.ties, row.losses) == (1, 0, 0)


def test_identical_completions_of_two_models_tie(site):
    (ada,) = people(site, "ada")
    filled = fill(site, tasks=1, purpose="evaluation", baseline="sft")
    with site.database.write() as db:
        row = (
            db.query(TaskCompletion)
            .filter_by(task_id=filled.tasks[0], completion_id=filled.completions[0]["sft"])
            .one()
        )
        row.models = ["sft", "twin"]
    filled.rank(0, ada, [1, 2, 3])
    filled.save()
    close_batch(site, filled.batch)
    rows = {row.model: (row.wins, row.ties, row.losses) for row in compute_results(site, filled.batch).wins}
    assert rows["twin"] == (0, 1, 0)
    assert rows["ppo"] == (0, 0, 1)


def test_results_json_has_the_rows_of_evaluate(site):
    filled = fill_evaluation(site)
    client = client_of(site, add_person(site, "olga", role="owner"))
    address = f"/results/{filled.batch}/results.json"
    assert client.get(address).status_code == 409
    close_batch(site, filled.batch)
    rows = json.loads(client.get(address).text)
    columns = ["evaluation", "metric", "model", "condition", "value", "low", "high", "n"]
    assert all([name for name in row if name != "caution"] == columns for row in rows)
    assert {row.get("caution", "") for row in rows} <= set(get_args(Caution))
    chosen = {(row["evaluation"], row["metric"], row["model"], row["condition"]): row for row in rows}
    assert chosen["preference", "win_rate_vs_sft", "ppo", ""]["value"] == pytest.approx(11 / 16)
    assert chosen["preference", "win_rate_vs_sft", "ppo", "heldout"]["n"] == 8
    assert chosen["preference", "win_rate_vs_sft", "ppo", "all/chat"]["n"] == 8
    assert chosen["labels", "opinion", "ppo", ""]["value"] == 1


def team_pages(filled):
    """All team pages that show a batch."""
    batch, task = filled.batch, filled.tasks[0]
    pages = [
        "/overview",
        "/batches",
        f"/batches/{batch}",
        f"/batches/tasks/{task}",
        "/quality",
        f"/quality?batch={batch}",
        "/adjudication",
    ]
    tables = [f"/quality/{name}.csv?batch={batch}" for name in ("agreement", "labelers", "matrix", "labels", "tasks")]
    return [
        *pages,
        *tables,
        f"/adjudication/{task}",
        "/results",
        f"/results/{batch}",
        f"/results/{batch}/results.json",
        "/journal",
    ]


def fill_evaluation_with_unique_names(site):
    """An evaluation with unique model names, where one completion contains a model's name."""
    crowd = people(site, "ada", "ben")
    filled = fill(site, tasks=2, models=SECRET, purpose="evaluation", baseline=SECRET[0])
    for task in range(2):
        filled.rank(task, crowd[0], [1, 2, 3])
        filled.rank(task, crowd[1], [3, 2, 1])
    filled.save()
    with site.database.write() as db:
        shown = db.get(CompletionRow, filled.completions[0][SECRET[1]])
        shown.text, shown.names_itself = "I am Quasar-13b, or org/quasar-13b; not OCELOT_V2.", True
        db.add(
            MessageRow(
                task_id=filled.tasks[0], about_id=crowd[0].id, author_id=crowd[0].id, body="one of them says who it is"
            )
        )
    return filled


def test_no_page_names_a_model_before_the_batch_is_closed(site):
    filled = fill_evaluation_with_unique_names(site)
    for role in ("owner", "researcher"):
        client = client_of(site, add_person(site, role, role=role))
        for address in team_pages(filled):
            answer = client.get(address)
            assert answer.status_code in (200, 403, 409), address
            said = answer.text.lower() + str(answer.headers).lower()
            assert not [name for name in ("zephyrine", "quasar", "ocelot") if name in said], address
    close_batch(site, filled.batch)
    said = client.get(f"/results/{filled.batch}").text
    assert all(name in said for name in SECRET)
    assert "I am Quasar-13b" in client.get(f"/batches/tasks/{filled.tasks[0]}").text


def test_before_closing_only_the_precision_is_shown(site):
    filled = fill_evaluation(site)
    with site.database.read() as db:
        known = results.compute_precision(db, db.get(Batch, filled.batch))
    assert (known.rankings, known.labelers, known.prompts) == (16, 4, 4)
    widths = [(row.rate.high - row.rate.low) / 2 for row in compute_results(site, filled.batch).matrix.values()]
    assert known.half_width == pytest.approx(max(widths))
    client = client_of(site, add_person(site, "olga", role="owner"))
    assert "68.8" not in client.get(f"/results/{filled.batch}").text


def test_unblinding_needs_a_reason_and_is_recorded(site):
    filled = fill_evaluation_with_unique_names(site)
    client = client_of(site, add_person(site, "olga", role="owner"))
    address = f"/results/{filled.batch}/unblind"
    assert client.post(address, data={"reason": "  "}).status_code == 422
    assert "quasar" not in client.get(f"/results/{filled.batch}").text
    assert client.post(address, data={"reason": "the labelers' contract ends"}).status_code == 303
    assert SECRET[1] in client.get(f"/results/{filled.batch}").text
    with site.database.read() as db:
        assert (
            db.query(AuditLogEntry).filter_by(action="batch.unblinded", object=filled.batch).one().detail["reason"]
            == "the labelers' contract ends"
        )
    close_batch(site, filled.batch)
    assert "before the batch was closed" in client.get(f"/results/{filled.batch}").text


def test_batches_put_together_are_one_evaluation(site):
    """A batch of each cohort, as in the paper's Figure 3: counted by hand, not by the site's code."""
    heldout, training = people(site, "hal", "hana", cohort="heldout"), people(site, "ada", "ben")
    orders, made = {}, {}
    for cohort, crew, rows in (
        ("training", training, [[1, 2, 3], [2, 1, 3], [2, 1, 3]]),
        ("heldout", heldout, [[2, 1, 3], [3, 1, 2], [2, 1, 3]]),
    ):
        made[cohort] = fill(site, tasks=3, name=cohort, purpose="evaluation", cohort=cohort, baseline="sft")
        for task in range(3):
            for person in crew:
                made[cohort].rank(task, person, rows[task], ratings=[4, 5, 3])
        made[cohort].save()
        orders[cohort] = rows * len(crew)
    owner = client_of(site, add_person(site, "olga", role="owner"))
    parameters = "&".join(f"batch={filled.batch}" for filled in made.values())
    assert owner.get(f"/results/pooled?{parameters}").status_code == 409, "names are hidden"
    with site.database.write() as db:
        for filled in made.values():
            mark_batch_closed(db, db.get(Batch, filled.batch))
    listed = owner.get("/results").text
    assert listed.count('form="pool" name="batch"') == 2
    rows = owner.get(f"/results/pooled/results.json?{parameters}").json()
    won = {
        cohort: sum(sft > ppo for sft, ppo, _ in each) / len(each)
        for cohort, each in (orders | {"": [row for each in orders.values() for row in each]}).items()
    }
    found = {row["condition"]: row for row in rows if (row["metric"], row["model"]) == ("win_rate_vs_sft", "ppo")}
    assert {cohort: row["value"] for cohort, row in found.items() if cohort in won} == pytest.approx(won)
    assert found[""]["n"] == 12
    program = owner.get(f"/api/v1/stats/win-rates/{made['training'].batch}?pooled_with={made['heldout'].batch}")
    assert program.status_code in (200, 401, 403)
    page = owner.get(f"/results/pooled?{parameters}").text
    assert "training + heldout" in page
    assert "Please look" not in page
    assert f'href="/results/pooled/results.json?{parameters}&baseline=sft"' in html.unescape(page)
    assert owner.get(f"/results/pooled?batch={made['training'].batch}").status_code == 422
    other = fill(site, tasks=1, name="other", models=("sft", "new"), purpose="evaluation", baseline="new")
    other.rank(0, training[0], [1, 2])
    other.save()
    with site.database.write() as db:
        mark_batch_closed(db, db.get(Batch, other.batch))
    mixed = owner.get(f"/results/pooled?{parameters}&batch={other.batch}").text
    for words in ("Please look", "Not every batch has these models: gpt, new, ppo", "different baselines"):
        assert words in mixed


def test_closed_evaluation_cannot_be_reopened(site):
    filled = fill_evaluation(site)
    close_batch(site, filled.batch)
    client = client_of(site, add_person(site, "olga", role="owner"))
    assert client.post(f"/batches/{filled.batch}/state", data={"state": "open"}).status_code == 409


def test_win_rate_intervals_cover_the_truth():
    """With labeler and prompt effects, 95 % intervals contain the true win rate in about 57 of 60 evaluations."""
    truth, covered = 0.6, 0
    for seed in range(60):
        rng = Random(seed)
        rankings = []
        for prompt in range(60):
            hard = rng.gauss(0, 0.1)
            for labeler in rng.sample(range(20), 2):
                taste = Random(f"{seed} {labeler}").gauss(0, 0.1)
                better = rng.random() < min(1, max(0, truth + hard + taste))
                rankings.append(results_ranking(prompt, labeler, better))
        rate = win_rate.compute_win_rates(rankings, "sft")[0].rate
        covered += rate.low <= truth <= rate.high
    assert (
        52 <= covered <= 60
    )  # fewer than 52 has probability 0.01 at 95 %; the statistics' own tests measure the share itself


def results_ranking(prompt, labeler, better):
    from instructgpt.statistics.pair_judgments import LabelerRanking

    return LabelerRanking(prompt, labeler, (f"{prompt}a", f"{prompt}b"), (2, 1) if better else (1, 2), ("sft", "ppo"))


def fill_disputed_task(site):
    """A task with two equal rankings and a reversed one, and an undisputed task."""
    crowd = people(site, "ada", "ben", "cy")
    filled = fill(site, tasks=2, policy=PLAIN)
    for person, ranks in zip(crowd, ([1, 2, 3], [1, 2, 3], [3, 2, 1]), strict=True):
        filled.rank(0, person, ranks)
        filled.rank(1, person, [1, 2, 3])
    filled.save()
    return filled


def test_queue_lists_disputed_tasks_with_the_kemeny_consensus(site):
    filled = fill_disputed_task(site)
    a, b, c = filled.completions[0].values()
    with site.database.read() as db:
        assert [row.disagreement.task for row in adjudication.list_disputed_tasks(db)] == [filled.tasks[0]]
        case = adjudication.get_disputed_task(db, filled.tasks[0])
    assert dict(zip(case.consensus.completions, case.consensus.ranks, strict=True)) == {a: 1, b: 2, c: 3}
    assert case.consensus.against == 3
    assert {frozenset(pair[:2]): tuple(sorted(pair[2:])) for pair in case.disputed_pairs} == {
        frozenset(pair): (1, 2) for pair in ((a, b), (a, c), (b, c))
    }


def test_adjudication_stores_dense_ranks_and_keeps_labelers_rankings(site):
    filled = fill_disputed_task(site)
    a, b, c = filled.completions[0].values()
    client = client_of(site, add_person(site, "olga", role="researcher"))
    with site.database.read() as db:
        before = sorted((row.submission_id, row.completion_id, row.rank) for row in db.query(RankingItem))
    form = {f"tier-{a}": "3", f"tier-{b}": "3", f"tier-{c}": "1", "errors": ["length", "taste"], "reason": "C is right"}
    assert client.post(f"/adjudication/{filled.tasks[0]}", data=form).status_code == 303
    with site.database.read() as db:
        row = db.query(Adjudication).one()
        assert row.ranks == {c: 1, a: 2, b: 2}
        assert row.errors == ["length", "taste"]
        assert sorted((each.submission_id, each.completion_id, each.rank) for each in db.query(RankingItem)) == before
        assert adjudication.list_disputed_tasks(db)[0].settled_at
    for wrong in (
        {f"tier-{a}": "1"},
        {**form, f"tier-{a}": "0"},
        {**form, f"tier-{a}": "x"},
        {**form, "errors": "magic"},
    ):
        assert client.post(f"/adjudication/{filled.tasks[0]}", data=wrong).status_code == 422
    with site.database.read() as db:
        assert db.query(Adjudication).count() == 1


def test_adjudicated_ranking_is_promoted_to_a_new_gold_task(site):
    filled = fill_disputed_task(site)
    task = filled.tasks[0]
    completions = list(filled.completions[0].values())
    client = client_of(site, add_person(site, "olga", role="researcher"))
    assert client.post(f"/adjudication/{task}/gold").status_code == 409
    client.post(f"/adjudication/{task}", data={f"tier-{each}": str(place) for place, each in enumerate(completions, 1)})
    assert client.post(f"/adjudication/{task}/gold").status_code == 303
    assert client.post(f"/adjudication/{task}/gold").status_code == 409
    with site.database.read() as db:
        gold = db.query(GoldAnswer).one()
        check = db.get(Task, gold.task_id)
        assert (check.gold, check.overlap, check.batch_id) == (True, UNLIMITED_OVERLAP, filled.batch)
        assert gold.answer == {each: place for place, each in enumerate(completions, 1)}
        assert not db.get(Task, task).gold


def test_adjudication_page_names_no_labeler_or_model(site):
    filled = fill_disputed_task(site)
    client = client_of(site, add_person(site, "olga", role="researcher"))
    said = client.get(f"/adjudication/{filled.tasks[0]}").text
    body = said[said.index("<main") : said.index("</main>")]
    assert not [name for name in ("ada", "ben", "cy", "sft", "ppo") if f">{name}<" in body or f" {name} " in body]
    assert "Labeler 3" in body


def test_letters_do_not_reveal_models(site):
    filled = fill(site, tasks=12, models=("a", "b"), purpose="evaluation")
    with site.database.read() as db:
        first = [adjudication.get_task_completions(db, task)[0].model for task in filled.tasks]
    assert set(first) == {"a", "b"}  # both have been A: by chance one alone is, once in 2,048 times
