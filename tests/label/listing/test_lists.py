"""Filters, sorting and pages of the lists, against a plain reading of all rows.

pytest tests/label/listing/test_lists.py
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

from sqlalchemy import select
from support.owner import fill
from support.site import add_person

from instructgpt.label.db.models import Assignment, Batch, CompletionRow, PromptRow, Rating, Submission, Task
from instructgpt.label.db.models.tasks import TaskCompletion
from instructgpt.label.listing import submissions, tasks
from instructgpt.label.listing.filters import PersonFilter, SubmissionFilter, TaskFilter, parse_filter
from instructgpt.label.listing.people import list_people_page
from instructgpt.label.listing.text_search import split_terms

DATABASES = ("sqlite", "postgresql")


def folded_contains(text, terms):
    return all(term.casefold() in text.casefold() for term in terms)


def read_tasks(db):
    """Return (task, prompt, its people, labels of the current work, texts of the completions) of every task."""
    prompts = {row.id: row for row in db.scalars(select(PromptRow))}
    completions = {row.id: row.text for row in db.scalars(select(CompletionRow))}
    shown, work, labels = defaultdict(list), defaultdict(set), defaultdict(list)
    for row in db.scalars(select(TaskCompletion)):
        shown[row.task_id].append(completions[row.completion_id])
    assignments = {row.id: row for row in db.scalars(select(Assignment))}
    for row in assignments.values():
        work[row.task_id].add(row.person_id)
    current = {row.id: row for row in db.scalars(select(Submission)) if row.replaced_at is None}
    for row in db.scalars(select(Rating)):
        if row.submission_id in current:
            labels[assignments[current[row.submission_id].assignment_id].task_id].append(row.labels)
    return [(t, prompts[t.prompt_id], work[t.id], labels[t.id], shown[t.id]) for t in db.scalars(select(Task))]


def expected_tasks(rows, wanted: TaskFilter):
    """A slow definition of the filter."""
    for task, prompt, work, labels, completions in rows:
        texts = [prompt.text] if wanted.scope == "prompt" else completions
        terms = split_terms(wanted.text or "")
        if (
            wanted.batch in (None, task.batch_id)
            and wanted.kind in (None, task.kind)
            and wanted.state in (None, task.state)
            and wanted.source in (None, prompt.source)
            and wanted.use_case in (None, prompt.use_case)
            and wanted.language in (None, prompt.language)
            and (wanted.labeler is None or wanted.labeler in work)
            and (wanted.label is None or any(entry.get(wanted.label) is True for entry in labels))
            and (not terms or any(folded_contains(text, terms) for text in texts))
        ):
            yield task.id


def test_task_filters_match_a_slow_definition(site, full):
    with site.database.read() as db:
        batch = db.scalar(select(Batch.id).where(Batch.name == "first"))
        fields = {
            "text": [None, "überall", "ÜBERALL", "école", "100%", "the_users", "*yes*", "[maybe]", 'back\\slash "'],
            "batch": [None, batch],
            "kind": [None, "rank", "demonstrate"],
            "state": [None, "open", "done", "review"],
            "labeler": [None, full[0].id, full[2].id],
            "label": [None, "opinion", "denigrates", "hallucination"],
            "source": [None, "api"],
            "use_case": [None, "chat"],
            "language": [None, "de", "ko"],
        }
        filters = [TaskFilter(**{name: value}) for name, values in fields.items() for value in values]
        rng = Random(3)
        filters += [TaskFilter(**{name: rng.choice(values) for name, values in fields.items()}) for _ in range(20)]
        filters += [TaskFilter(scope="completions", text=text) for text in ("KIND 1", '"answer of kind 2"', "nowhere")]
        matched, rows = [], read_tasks(db)
        for each in filters:
            found = list(db.scalars(tasks.select_task_ids(db, each)))
            assert sorted(found) == sorted(expected_tasks(rows, each)), each
            items, total, page = tasks.list_tasks_page(db, each)
            assert [total, page, sorted(item.id for item in items)] == [len(found), 1, sorted(found)], each
            matched.append(len(found))
        assert len(set(matched)) > 5  # the filters are no empty ones


def test_submission_filters_by_state_time_labeler_and_text(site, full):
    def found(**fields):
        with site.database.read() as db:
            items, total, _ = submissions.list_submissions_page(db, SubmissionFilter(**fields))
            assert sorted(db.scalars(submissions.select_submission_ids(db, SubmissionFilter(**fields)))) == sorted(
                item.submission.id for item in items
            )
        assert total == len(items)
        return items

    everything = found()
    states = {name: found(state=name) for name in ("counted", "returned", "excluded", "surplus", "replaced")}
    assert [len(states[name]) for name in ("returned", "excluded", "surplus", "replaced")] == [1, 1, 1, 0]
    assert sum(map(len, states.values())) == len(everything)
    assert all(item.state == name for name, items in states.items() for item in items)
    by_labeler = [found(labeler=person.id) for person in full]
    assert sum(map(len, by_labeler)) == len(everything)
    assert {item.person.name for item in by_labeler[2]} == {"Çelik"}
    day = "2026-11-30"
    assert not found(until="1969-12-31")
    assert len(found(since=day)) + len(found(until="2026-11-29")) == len(everything)
    assert {item.submission.kind for item in found(text="TEXT", kind="demonstrate")} == {"demonstrate"}
    labeled = found(label="opinion")
    assert labeled
    assert all("opinion" in item.labels for item in labeled)
    assert len(labeled) == sum("opinion" in item.labels for item in everything)
    rated = [item.mean_rating or 0 for item in found(sort="-rating")]
    assert rated == sorted(rated, reverse=True)
    names = [item.person.name.lower() for item in found(sort="labeler")]
    assert names == sorted(names)
    with site.database.read() as db:
        counts = submissions.count_by_state(db, full[0].id)
    assert {(row.kind, row.state): row.submissions for row in counts} == {
        key: sum((item.submission.kind, item.state) == key for item in by_labeler[0])
        for key in {(item.submission.kind, item.state) for item in by_labeler[0]}
    }


def test_pages_divide_the_list_and_a_page_behind_the_end_is_the_last(site):
    fill(site, tasks=120, name="many")
    with site.database.read() as db:
        pages = [tasks.list_tasks_page(db, TaskFilter(page=number)) for number in (1, 2, 3, 9)]
        order = list(db.scalars(select(Task.id).order_by(Task.position)))
        backward, _, _ = tasks.list_tasks_page(db, TaskFilter(sort="-position"))
        csv_rows = [item.id for item in tasks.iter_task_items(db, TaskFilter())]
    assert [(len(items), total, page) for items, total, page in pages] == [
        (50, 120, 1),
        (50, 120, 2),
        (20, 120, 3),
        (20, 120, 3),
    ]
    assert [item.id for items, _, _ in pages[:3] for item in items] == order == csv_rows
    assert [item.id for item in backward] == order[::-1][:50]


def test_people_are_filtered_and_sorted_by_work(site, full):
    add_person(site, "paused", status="paused")
    with site.database.read() as db:
        rows, total, _ = list_people_page(db, PersonFilter(sort="-submissions"))
        assert total == 4
        counts = [row.submissions for row in rows]
        assert counts == sorted(counts, reverse=True)
        assert [row.person.name for row in list_people_page(db, PersonFilter(text="çel"))[0]] == ["Çelik"]
        assert [row.person.name for row in list_people_page(db, PersonFilter(text="P-BEN"))[0]] == ["Ben"]
        assert [row.person.name for row in list_people_page(db, PersonFilter(status="paused"))[0]] == ["paused"]
        work = db.scalars(select(Submission).join(Assignment).where(Assignment.person_id == full[0].id)).all()
        ada = next(row for row in rows if row.person.name == "ada")
    assert (ada.submissions, ada.active_ms) == (len(work), sum(row.active_ms for row in work))
    assert ada.latest_ms == max(row.created_at for row in work)


def test_filters_stand_in_the_url_and_survive_the_round_trip():
    wanted = SubmissionFilter(text='a&b="c" 날씨', labeler="some-id", since="2026-01-02", sort="active", page=3)
    assert parse_filter(SubmissionFilter, wanted.url_fields()) == wanted
    assert SubmissionFilter().url_fields() == ""
    assert parse_filter(SubmissionFilter, wanted.url_fields(page=None)).page == 1
