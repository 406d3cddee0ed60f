"""Exports: selection, columns, formats and manifest, with hand-written expected rows."""

from __future__ import annotations

import hashlib
import json
import warnings

import pytest
from support.exchange import add_batch, add_prompt, add_task, fill, rank
from support.site import add_person, make_site

from instructgpt.errors import InputError
from instructgpt.label.exchange.export_files import EXPORT_COLUMNS, write_export
from instructgpt.label.exchange.export_rows import EXPORT_FILES, iter_export_rows
from instructgpt.label.exchange.selection import ExportFilter, ExportTally, snapshot
from instructgpt.label.people import privacy
from instructgpt.records import Demonstration, Prompt, Ranking, read_records


@pytest.fixture
def filled(tmp_path):
    site = make_site(tmp_path / "site")
    people = {name: add_person(site, name, fold=number) for number, name in enumerate(("ada", "bob"))}
    people["hal"] = add_person(site, "hal", cohort="heldout")
    return site, fill(site, people), people


def export_rows(site, name, **wanted):
    tally = ExportTally()
    with snapshot(site.database) as db:
        return list(iter_export_rows(db, name, ExportFilter(**wanted), tally)), tally


def submission_names(site, made, name, **wanted):
    """The names of the submissions in an export."""
    names = {submission.id: name for name, submission in made.items()}
    return [names[row.get("id", row.get("ranking"))] for row in export_rows(site, name, **wanted)[0]]


def test_training_and_evaluation_never_share_a_row(filled):
    site, made, _ = filled
    assert submission_names(site, made, "rankings") == ["ada", "bob"]
    assert submission_names(site, made, "rankings", use="evaluation") == ["hal", "evaluation"]
    assert submission_names(site, made, "demonstrations") == ["demonstration"]
    assert submission_names(site, made, "demonstrations", use="evaluation") == ["heldout demonstration"]
    for use, asked in (
        ("training", {"Write a poem", "The capital?", "Broken?"}),
        ("evaluation", {"Write a song", "Which?"}),
    ):
        found = export_rows(site, "prompts", use=use)[0]
        assert {row["prompt"] for row in found if "prompt" in row} == asked


def test_excluded_rows_are_counted_by_reason(filled):
    site, _, _ = filled
    assert export_rows(site, "rankings")[1].left_out == {
        "heldout": 1,
        "repeat": 1,
        "invalid": 1,
        "withdrawn_prompt": 1,
        "evaluation": 1,
    }
    assert export_rows(site, "prompts")[1].left_out == {"withdrawn_prompt": 1, "evaluation": 1, "heldout": 1}


def test_ranking_row_lists_every_model_of_a_text(filled):
    site, made, _ = filled
    (row, _), _ = export_rows(site, "rankings")
    assert row["completions"] == ["Paris", "Paris", "Rome", "Oslo\u2028?"]
    assert row["models"] == ["sft", "ppo", "base", "ptx"]
    assert row["ranks"] == [1, 1, 2, 1]
    assert row["ratings"] == [7, 7, 2, 6]
    assert row["labels"][0] == {"opinion": False, "hallucination": None}
    assert "opinion" not in row["unanswered"][0]
    assert len(row["unanswered"][3]) == 11
    expected = {
        "labeler": "p-ada",
        "cohort": "training",
        "fold": 0,
        "prompt_id": "p-1",
        "user": "u-1",
        "use_case": "open_qa",
    }
    assert {name: row[name] for name in expected} == expected
    assert (row["instructions"], row["note"], row["id"], row["confidence"]) == (1, "close", made["ada"].id, 7)
    assert Ranking.model_validate(row).pairs() == [(0, 2), (1, 2), (3, 2)]


def test_partly_rated_rankings_export_ratings(filled):
    site, _, _ = filled
    ranking = next(row for row in export_rows(site, "rankings", use="evaluation")[0] if row["labeler"] == "p-hal")
    assert "ratings" not in ranking
    found = [
        row.get("rating") for row in export_rows(site, "ratings", use="evaluation")[0] if row["labeler"] == "p-hal"
    ]
    assert found == [1, 1, None, 5]


def test_pairs_and_comparisons(filled):
    site, made, _ = filled
    pairs = [
        (row["chosen"], row["rejected"]) for row in export_rows(site, "pairs")[0] if row["ranking"] == made["ada"].id
    ]
    assert pairs == [("Paris", "Rome"), ("Oslo\u2028?", "Rome")]
    found = [row for row in export_rows(site, "comparisons")[0] if row["ranking"] == made["ada"].id]
    assert [(row["i"], row["j"], row["better"]) for row in found] == [
        (0, 1, "tie"),
        (0, 2, "i"),
        (0, 3, "tie"),
        (1, 2, "i"),
        (1, 3, "tie"),
        (2, 3, "j"),
    ]
    assert sum(row["weight"] for row in found) == pytest.approx(1)


def test_conversations_and_reviews(filled):
    site, _, _ = filled
    (row,), _ = export_rows(site, "demonstrations")
    assert row["completion"] == "3"
    assert "prompt" not in row
    assert Demonstration.model_validate(row).messages[1].content == "Yes?"
    (review,), _ = export_rows(site, "reviews")
    assert (review["use_case"], review["reviewed_use_case"], review["prompt_labels"]) == (
        "open_qa",
        "closed_qa",
        {"ambiguous": True},
    )
    assert "sensitive" not in review


def test_held_out_labelers_are_never_in_training_exports(filled):
    site, _, _people = filled
    with site.database.write() as db:
        for name, cohort in (("hal2", "heldout"), ("nobody", None)):
            person = add_person_row(db, name, cohort)
            for purpose in ("training", "evaluation"):
                batch = add_batch(db, f"{name} {purpose}", purpose=purpose)
                rank(
                    db,
                    add_task(db, batch, add_prompt(db, f"{name} {purpose}?"), [("a", ["m"]), ("b", ["n"])]),
                    person,
                    [1, 2],
                )
    for name in EXPORT_FILES:
        for row in export_rows(site, name)[0]:
            assert row.get("cohort", "training") == "training"
            assert row.get("labeler", "p-ada") in ("p-ada", "p-bob")
    assert export_rows(site, "rankings")[1].left_out["no_cohort"] == 1


def add_person_row(db, name, cohort):
    from instructgpt.label.db.models import Person

    person = Person(name=name, role="labeler", status="active", cohort=cohort, pseudonym=f"p-{name}")
    db.add(person)
    db.flush()
    return person


def test_open_evaluation_batch_is_not_exported(filled):
    site, _made, people = filled
    with site.database.write() as db:
        batch = add_batch(db, "running", purpose="evaluation", state="open")
        rank(
            db,
            add_task(db, batch, add_prompt(db, "Still?"), [("a", ["m"]), ("b", ["n"])]),
            db.merge(people["ada"]),
            [1, 2],
        )
    assert export_rows(site, "rankings", use="evaluation")[1].left_out["blind"] == 1


def test_withdrawn_submissions_are_not_exported(filled):
    site, made, people = filled
    with site.database.write() as db:
        privacy.withdraw_consent(db, db.merge(people["ada"]), labels=False, now_ms=5, initiated_by="cli")
    assert submission_names(site, made, "rankings") == ["ada", "bob"]
    with site.database.write() as db:
        privacy.erase_account(db, db.merge(people["ada"]), labels=True, now_ms=6, initiated_by="cli")
    assert submission_names(site, made, "rankings") == ["bob"]
    assert submission_names(site, made, "demonstrations") == []
    assert export_rows(site, "rankings")[1].left_out["withdrawn_by_labeler"] == 3


def test_filters_by_batch_and_time(filled):
    site, made, _ = filled
    assert submission_names(site, made, "rankings", batches=("shown",)) == []
    assert submission_names(site, made, "rankings", batches=("ranked",), until=3_600_000) == []
    assert submission_names(site, made, "rankings", since=3_600_000) == ["ada", "bob"]


def test_stages_read_the_jsonl_files(filled, tmp_path):
    site, _, _ = filled
    manifest = write_export(site.database, tmp_path / "out", ExportFilter())
    assert [row.labeler for row in read_records(Ranking, tmp_path / "out" / "rankings.jsonl")] == ["p-ada", "p-bob"]
    assert read_records(Demonstration, tmp_path / "out" / "demonstrations.jsonl")[0].completion == "3"
    assert len(read_records(Prompt, tmp_path / "out" / "prompts.jsonl")) == 4
    for facts in manifest["files"].values():
        content = (tmp_path / "out" / facts["file"]).read_bytes()
        assert facts["sha256"] == hashlib.sha256(content).hexdigest()
        assert facts["rows"] == content.count(b"\n")
    assert manifest["labelers"] == {"training": 2}
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())


@pytest.mark.parametrize("format", ["jsonl", "parquet", "datasets"])
def test_equal_databases_give_equal_bytes(filled, tmp_path, format):
    site, _, _ = filled
    for name in ("one", "two"):
        write_export(site.database, tmp_path / name, ExportFilter(), format)
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert len(files) >= 8
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_rows_have_only_declared_columns(filled):
    site, _, _ = filled
    for name in EXPORT_FILES:
        for use in ("training", "evaluation"):
            for row in export_rows(site, name, use=use)[0]:
                assert not row.keys() - EXPORT_COLUMNS[name].keys()


def test_parquet_equals_jsonl(filled, tmp_path):
    import pyarrow.parquet

    site, _, _ = filled
    write_export(site.database, tmp_path / "out", ExportFilter(), "parquet")
    for name in ("rankings", "comparisons", "ratings"):
        told = pyarrow.parquet.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
        expected = export_rows(site, name)[0]
        assert len(told) == len(expected)
        for row, plain in zip(told, expected, strict=True):
            assert {column: row[column] for column in plain if "labels" not in column} == {
                column: value for column, value in plain.items() if "labels" not in column
            }


def test_datasets_folder_loads(filled, tmp_path):
    site, _, _ = filled
    write_export(site.database, tmp_path / "out", ExportFilter(), "datasets", card="\n## More\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets

        loaded = datasets.load_dataset(
            str(tmp_path / "out"), "comparisons", split="train", cache_dir=str(tmp_path / "cache")
        )
        assert loaded.num_rows == 12
        assert [row.ranks for row in read_records(Ranking, tmp_path / "out")] == [(1, 1, 2, 1), (1, 1, 2, 3)]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `rankings` | 2 |" in card
    assert card.endswith("## More\n")


def test_empty_export_and_used_folder_are_refused(tmp_path):
    site = make_site(tmp_path / "site")
    with pytest.raises(InputError, match="nothing to export for training"):
        write_export(site.database, tmp_path / "out", ExportFilter())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        write_export(site.database, tmp_path / "full", ExportFilter())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "site"]
