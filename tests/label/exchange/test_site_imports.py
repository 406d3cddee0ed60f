"""Imports of our own files and of Label Studio and Argilla exports: round trips and located errors."""

from __future__ import annotations

import json

import pytest
from support.exchange import fill
from support.site import add_person, make_site

from instructgpt.errors import InputError
from instructgpt.io import SkippedLines
from instructgpt.label.db.models import Batch, Person, PromptRow, Task
from instructgpt.label.exchange.export_files import write_export
from instructgpt.label.exchange.export_rows import iter_export_rows
from instructgpt.label.exchange.external_submissions import ExternalSubmissionImporter
from instructgpt.label.exchange.imports import ImportReport, import_prompt_records, read_import_file
from instructgpt.label.exchange.selection import ExportFilter, ExportTally, snapshot
from instructgpt.label.exchange.third_party import ThirdPartyReader, read_labeling_config


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def import_submissions(site, path, reader=None, format="auto", cohort="training", name="before"):
    report = ImportReport()
    found = read_import_file(path, format, reader or ThirdPartyReader())
    with site.database.write() as db:
        ExternalSubmissionImporter(db, name, "training", cohort, report).import_all(found)
    return report


def export_rows(site, name, use="training"):
    with snapshot(site.database) as db:
        return list(iter_export_rows(db, name, ExportFilter(use=use), ExportTally()))


@pytest.fixture
def site(tmp_path):
    site = make_site(tmp_path / "site")
    yield site
    site.database.close()


STABLE_COLUMNS = (
    "prompt",
    "messages",
    "completion",
    "completions",
    "ranks",
    "models",
    "finish",
    "ratings",
    "labels",
    "unanswered",
    "cohort",
    "fold",
)


def comparable(found):
    """The columns an import preserves, sorted: ids are new, and rows of one millisecond have no order."""
    return sorted(json.dumps({key: row[key] for key in STABLE_COLUMNS if key in row}, sort_keys=True) for row in found)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_exported_files_are_imported_again(tmp_path, site, format):
    first = make_site(tmp_path / "first")
    people = {
        name: add_person(first, name, fold=1, cohort="heldout" if name == "hal" else "training")
        for name in ("ada", "bob", "hal")
    }
    fill(first, people)
    for use in ("training", "evaluation"):
        write_export(first.database, tmp_path / use, ExportFilter(use=use), format)
        for name in ("rankings", "demonstrations"):
            import_submissions(site, tmp_path / use / f"{name}.{format}", name=f"{use} {name}")
    for use in ("training", "evaluation"):
        for name in ("rankings", "demonstrations"):
            was, now = export_rows(first, name, use), export_rows(site, name, use)
            if name == "rankings" and use == "evaluation":
                was = [
                    row for row in was if row["cohort"] == "heldout"
                ]  # imported as training work, so its evaluation is not one here
            assert comparable(was) == comparable(row for row in now if row["batch"].startswith(use))
    first.database.close()


def test_rankings_of_one_prompt_share_a_task(tmp_path, site):
    lines = [
        {
            "prompt": "p",
            "completions": ["a", "b", "a "],
            "ranks": [2, 5, 3],
            "labeler": "x@y.org",
            "models": ["m", "n", "o"],
        },
        {"prompt": "p", "completions": ["b", "a"], "ranks": [1, 1], "labeler": 7, "cohort": "heldout"},
        {
            "prompt": "p",
            "completions": ["a", "b", "a "],
            "ranks": [1, 2, 1],
            "labeler": "x@y.org",
            "models": ["m", "n", "o"],
        },
    ]
    report = import_submissions(site, write(tmp_path / "r.jsonl", lines))
    assert report.counts == {"labelers": 2, "rankings": 2}
    assert report.left_out == {"duplicates by the same labeler": 1}
    (row,) = export_rows(site, "rankings")
    assert (row["completions"], row["models"], row["ranks"]) == (["a", "a", "b"], ["m", "o", "n"], [1, 1, 2])
    assert "y.org" not in row["labeler"]
    (held,) = export_rows(site, "rankings", "evaluation")
    assert held["ranks"] == [1, 1]
    with site.database.read() as db:
        people = db.query(Person).all()
        assert {person.status for person in people} == {"paused"}
        assert not [person for person in people if person.password_hash or person.email]
        assert {(task.overlap, task.n_done, task.state) for task in db.query(Task)} == {(1, 1, "done")}


def test_labeler_cohort_conflict_is_an_error(tmp_path, site):
    add_person(site, "hal", cohort="heldout")
    line = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "p-hal", "cohort": "training"}
    with pytest.raises(
        InputError, match=r"r.jsonl:1: labeler 'p-hal' is in cohort heldout on this site, but the line says training"
    ):
        import_submissions(site, write(tmp_path / "r.jsonl", [line]))
    del line["cohort"]
    import_submissions(site, write(tmp_path / "r.jsonl", [line]))
    assert [row["labeler"] for row in export_rows(site, "rankings", "evaluation")] == ["p-hal"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "p", "completions": ["a", "b"], "ranks": [1]}, "2 completions but 1 ranks"),
        (
            {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labels": [{"nice": True}, {}]},
            "unknown label 'nice'",
        ),
        ({"prompt": " "}, "'prompt' is empty"),
        ({"prompt": "a\x00b"}, "NUL character"),
        ({"text": "p"}, "not a prompt, completion, demonstration or ranking"),
        (
            {
                "data": {"prompt": "p"},
                "annotations": [{"result": [{"type": "pairwise", "to_name": "a,b", "value": {"selected": "up"}}]}],
            },
            "'left'",
        ),
        ({"data": {"prompt": "p"}, "annotations": 3}, "not a prompt, completion"),
        ({"data": {"prompt": "p"}, "annotations": ["x"]}, "does not match the format"),
    ],
)
def test_bad_line_is_located_and_nothing_is_imported(tmp_path, site, line, message):
    good = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "x"}
    with pytest.raises(InputError, match=rf"r.jsonl:2: .*{message}"):
        import_submissions(site, write(tmp_path / "r.jsonl", [good, line]))
    with site.database.read() as db:
        assert db.query(Person).count() + db.query(Batch).count() + db.query(PromptRow).count() == 0
    skipped = SkippedLines()
    assert len(read_import_file(tmp_path / "r.jsonl", "auto", ThirdPartyReader(), skipped)) >= 1


def test_prompts_are_upserted_by_id(tmp_path, site):
    def put(*lines):
        report = ImportReport()
        with site.database.write() as db:
            import_prompt_records(
                db, read_import_file(write(tmp_path / "p.jsonl", lines), "auto", ThirdPartyReader()), report
            )
        return dict(report.counts)

    assert put({"id": 1, "prompt": "a"}, {"prompt": "b"}, {"id": "3", "prompt": "a", "user": "u"}) == {
        "prompts created": 3
    }
    assert put({"id": 1, "prompt": "a", "use_case": "chat"}, {"prompt": "b"}) == {
        "prompts updated": 1,
        "prompts unchanged": 1,
    }
    with pytest.raises(InputError, match=r"p.jsonl:1: prompt id '1' already belongs to another text"):
        put({"id": 1, "prompt": "other"})
    with site.database.write() as db:
        db.query(PromptRow).filter_by(external_id="1").one().withdrawn_at = 5
    with pytest.raises(InputError, match=r"p.jsonl:2: prompt '1' was withdrawn"):
        put({"id": "9", "prompt": "new"}, {"id": 1, "prompt": "a"})
    with site.database.read() as db:
        assert db.query(PromptRow).filter_by(external_id="9").count() == 0


# ---------------------------------------------------------------- Label Studio


ITEMS = [{"id": "blog", "title": "T", "body": "one"}, {"id": "mdn", "body": "two"}, {"id": "wiki", "body": "three"}]


def annotated(results, data=None, **more):
    annotation = {
        "completed_by": {"id": 3, "email": "x@y.org"},
        "was_cancelled": False,
        "created_at": "2021-03-09T22:16:08.728353Z",
        "lead_time": 4.288,
        "result": results,
    } | more
    return {"id": 1, "data": {"prompt": "Rank", "items": ITEMS} | (data or {}), "annotations": [annotation]}


def ranker(value):
    return {"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": value}}


def records_of(tmp_path, *tasks, **reading):
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(list(tasks)))
    reader = ThirdPartyReader(**reading)
    return [record for _, record in read_import_file(path, "auto", reader)], reader


def test_label_studio_orders_and_buckets(tmp_path):
    for value in (["mdn", "wiki", "blog"], {"rank": ["mdn", "wiki", "blog"]}, {"_": ["mdn", "wiki", "blog"]}):
        (record,), _ = records_of(tmp_path, annotated([ranker(value)]))
        assert (record.completions, record.ranks, record.models) == (
            ("two", "three", "one"),
            (1, 2, 3),
            ("mdn", "wiki", "blog"),
        )
    assert (record.labeler, record.active_ms, record.created_at) == ("x@y.org", 4288, 1615328168728)
    (record,), _ = records_of(tmp_path, annotated([ranker({"Rank 10": ["blog"], "Rank 2": ["mdn", "wiki"], "_": []})]))
    assert (record.completions, record.ranks) == (("two", "three", "one"), (1, 1, 2))
    with pytest.raises(InputError, match=r"tasks.json: item 1: the order of buckets good, bad is unknown"):
        records_of(tmp_path, annotated([ranker({"good": ["mdn"], "bad": ["wiki", "blog"]})]))
    (tmp_path / "view.xml").write_text(
        '<View><Ranker name="rank"><Bucket name="good"/><Bucket name="bad"/></Ranker></View>'
    )
    reader = ThirdPartyReader()
    read_labeling_config(tmp_path / "view.xml", reader)
    (record,), _ = records_of(
        tmp_path, annotated([ranker({"bad": ["wiki", "blog"], "good": ["mdn"], "_": []})]), buckets=reader.buckets
    )
    assert (record.completions, record.ranks) == (("two", "three", "one"), (1, 2, 2))


def test_label_studio_pairwise_ratings_and_texts(tmp_path):
    results = [
        {"from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": {"selected": "right"}},
        {"from_name": "s1", "to_name": "text1", "type": "rating", "value": {"rating": 2}},
        {"from_name": "s2", "to_name": "text2", "type": "rating", "value": {"rating": 5}},
        {"from_name": "better", "to_name": "text1", "type": "textarea", "value": {"text": ["Written."]}},
    ]
    task = annotated(results, {"text1": "left one", "text2": "right one"})
    (pair, written), _ = records_of(tmp_path, task)
    assert (pair.completions, pair.ranks, pair.ratings) == (("left one", "right one"), (2, 1), (2, 5))
    assert (written.prompt, written.completion, written.labeler) == ("Rank", "Written.", "x@y.org")
    (only,), _ = records_of(tmp_path, task, questions=("better",))
    assert only.completion == "Written."
    (pair, *_), _ = records_of(tmp_path, task, rating_max=5)
    assert pair.ratings == (3, 7)  # 1 + 6 * (2 - 1) / 4 = 2.5, rounded half up
    (tmp_path / "view.xml").write_text('<View><Text name="text1" value="$a"/><Text name="text2" value="$b"/></View>')
    reader = ThirdPartyReader()
    read_labeling_config(tmp_path / "view.xml", reader)
    renamed = annotated(results, {"a": "left one", "b": "right one"})
    assert records_of(tmp_path, renamed, fields=reader.fields)[0][0].completions == ("left one", "right one")
    with pytest.raises(InputError, match=r"no field 'text1' .*--labeling-config"):
        records_of(tmp_path, renamed)


def test_label_studio_skipped_annotations_are_counted(tmp_path):
    kept = annotated([ranker(["mdn", "blog"])])
    _, reader = records_of(tmp_path, kept, annotated([], was_cancelled=True), annotated([]))
    assert reader.left_out == {"skipped annotations": 1, "annotations without a ranking, rating or text": 1}


def test_ratings_without_rankings_are_imported(tmp_path, site):
    rating = {"from_name": "stars", "to_name": "answer", "type": "rating", "value": {"rating": 4}}
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([annotated([rating], {"answer": "a text", "items": []})]))
    assert import_submissions(site, path, ThirdPartyReader(rating_max=5)).counts["ratings"] == 1
    (row,) = export_rows(site, "ratings")
    assert (row["completion"], row["rating"], row["note"]) == ("a text", 6, "rated 4 of 5")
    assert export_rows(site, "rankings") == []
    assert export_rows(site, "comparisons") == []


# ---------------------------------------------------------------- Argilla


FIELDS = {"prompt": "Which?", "response-1": "one", "response-2": "two"}


@pytest.mark.parametrize(
    "row",
    [
        {"fields": FIELDS, "responses": {"order": [{"value": ["response-2", "response-1"], "user_id": "u1"}]}},
        {
            "fields": FIELDS,
            "responses": {
                "order": [
                    {
                        "value": [{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}],
                        "user_id": "u1",
                        "status": "submitted",
                    }
                ]
            },
        },
        FIELDS
        | {
            "id": "r",
            "order.responses": [["response-2", "response-1"]],
            "order.responses.users": ["u1"],
            "order.responses.status": ["submitted"],
            "order.suggestion": None,
        },
        {
            "fields": FIELDS,
            "responses": {
                "order": {
                    "user_id": ["u1"],
                    "value": [{"rank": [2, 1], "text": ["response-1", "response-2"]}],
                    "status": ["submitted"],
                }
            },
        },
    ],
)
def test_argilla_rankings_in_every_layout(tmp_path, row):
    path = write(tmp_path / "a.jsonl", [row])
    ((_, record),) = read_import_file(path, "auto", ThirdPartyReader())
    assert record.labeler == "u1"
    order = dict(zip(record.completions, record.ranks, strict=True))
    assert order == {"two": 1, "one": 2}


def test_argilla_ties_texts_ratings_and_drafts(tmp_path):
    said = {
        "order": [
            {
                "value": [{"value": "Response 1", "rank": 1}, {"value": "Response 2", "rank": 1}],
                "user_id": "u1",
                "status": "submitted",
            }
        ],
        "best": [
            {"value": "Better.", "user_id": "u2", "status": "submitted"},
            {"value": "Half", "user_id": "u3", "status": "draft"},
        ],
        "response-2-quality": [{"value": 6, "user_id": "u1", "status": "submitted"}],
    }
    path = write(tmp_path / "a.jsonl", [{"fields": FIELDS, "responses": said}])
    reader = ThirdPartyReader()
    tied, written, rated = [record for _, record in read_import_file(path, "auto", reader)]
    assert tied.ranks == (1, 1)
    assert (written.completion, written.labeler) == ("Better.", "u2")
    assert (rated.completion, rated.rating) == ("two", 6)
    assert reader.left_out == {"draft": 1}
    with pytest.raises(InputError, match="rating 6 is not between 1 and 5"):
        read_import_file(path, "auto", ThirdPartyReader(rating_max=5))
    with pytest.raises(InputError, match="--prompt-field"):
        read_import_file(path, "auto", ThirdPartyReader(prompt_field="task"))
    unclear = {"fields": FIELDS, "responses": {"quality": [{"value": 6, "user_id": "u", "status": "submitted"}]}}
    with pytest.raises(InputError, match="unclear which of the fields"):
        read_import_file(write(tmp_path / "b.jsonl", [unclear]), "auto", ThirdPartyReader())
