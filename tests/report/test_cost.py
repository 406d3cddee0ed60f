"""What a run cost, by hand-made records and hand-worked numbers."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.errors import InputError
from instructgpt.report.cost import PFS_DAY, PriceList, count_decided_pairs, read_cost
from instructgpt.report.page import write_report
from instructgpt.report.sections.cost import build_cost_tables, cost_section

STAGES = {
    "base": {"stage": "pretrain", "flops": 400 * PFS_DAY, "flops_done": 500 * PFS_DAY, "seconds": 7200.0},
    "sft": {"stage": "sft", "flops": 1 * PFS_DAY, "flops_done": 1 * PFS_DAY, "seconds": 1800.0},
    "reward": {"stage": "reward", "flops": 2 * PFS_DAY, "flops_done": 2 * PFS_DAY, "seconds": 1800.0},
    "ppo_ptx": {
        "stage": "ppo", "flops": 5 * PFS_DAY, "flops_done": 6 * PFS_DAY, "seconds": 3600.0,
        "gpu_seconds": 14_400.0, "energy_kwh": 1.5,
    },
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run directory with the records of four stages, their labels, and things that are no stages."""
    folder = tmp_path / "run"
    (folder / "world").mkdir(parents=True)
    rankings = [
        {"prompt": "a", "completions": ["1", "2", "3"], "ranks": [1, 2, 2], "labeler": "ann", "active_ms": 60_000},
        {"prompt": "b", "completions": ["1", "2"], "ranks": [1, 1], "labeler": "bob", "active_ms": 90_000},
        {"prompt": "c", "completions": ["1", "2", "3", "4"], "ranks": [4, 3, 2, 1], "labeler": "ann"},
    ]
    demonstrations = [{"prompt": "a", "completion": "b"}]
    for name, rows in (("rankings", rankings), ("demonstrations", demonstrations)):
        (folder / "world" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sft": "demonstrations", "reward": "rankings"}
    for name, record in STAGES.items():
        path = str(folder / "world" / f"{data.get(name)}.jsonl")
        parents = {f"data {data[name]}.jsonl": {"path": path, "sha256": ""}} if name in data else {}
        (folder / name / "checkpoints" / "step-1").mkdir(parents=True)
        full = {"finished": True, "config": {}, "parents": parents} | record
        (folder / name / "run.json").write_text(json.dumps(full))
        (folder / name / "checkpoints" / "step-1" / "run.json").write_text(json.dumps(full))
    (folder / "start").symlink_to("sft")  # as in a sweep; the same stage again
    (folder / "run.json").write_text(json.dumps({"stage": "run", "finished": True, "config": {}, "parents": {}}))
    return folder


def test_stages_are_counted_once_in_the_order_of_the_paper(run):
    cost = read_cost([run])
    assert [(stage.name, stage.stage) for stage in cost.stages] == [
        ("base", "pretrain"), ("sft", "sft"), ("reward", "reward"), ("ppo_ptx", "ppo"),
    ]  # fmt: skip
    assert cost.sum_flops(pretraining=True) == 400 * PFS_DAY
    assert cost.share_of_pretraining == pytest.approx(8 / 400)
    assert [stage.energy_kwh for stage in cost.stages] == [None, None, None, 1.5]


def test_tables_stand_beside_the_papers_numbers(run):
    stages, labels = build_cost_tables(read_cost([run]))
    rows = {row[0]: row[1:] for row in stages.rows}
    assert rows["ppo_ptx"][2:] == ("5", "1.25%", "60 min", "4", "1.5")
    assert rows["together"][2:4] == ("408", "102.00%")
    assert rows["together"][6] == "–"  # a part of the energy is unknown
    assert rows["paper, 175B: SFT"][2:4] == ("4.9", "0.13%")
    assert rows["paper, 175B: PPO-ptx"][2:4] == ("60", "1.65%")
    assert rows["paper, 175B: pretraining (GPT-3)"][0] == "3.14e+23"
    assert [row[:4] for row in labels.rows] == [("demonstrations", "1", "0", "0"), ("rankings", "3", "8", "2")]
    assert labels.rows[1][4:] == ("2.5", "1.25")
    assert any("2 of 3 records have a time" in note for note in labels.notes)


def test_money_is_the_users_prices_times_what_was_measured(run, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\ngpu_hour: 3\nmachine_hour: 0.5\nkwh: 0.4\nlabeler_hour: 24\n")
    cost = read_cost([run], prices=PriceList.read(prices))
    money = {stage.name: stage.money for stage in cost.stages}
    assert money == {"base": 1.0, "sft": 0.25, "reward": 0.25, "ppo_ptx": pytest.approx(4 * 3 + 1.5 * 0.4)}
    assert [label.money for label in cost.labels] == [None, pytest.approx(2.5 / 60 * 24)]
    assert build_cost_tables(cost)[0].head[-1] == "money, EUR"
    assert all(stage.money is None for stage in read_cost([run]).stages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu_hours: 3", "no price 'gpu_hours', did you mean 'gpu_hour'"),
        ("kwh: -1", "kwh is -1"),
        ("kwh: much", "kwh is much"),
        ("kwh: .nan", "kwh is nan"),
        ("[1, 2]", "expected lines"),
        ("kwh: [", "cannot be read"),
        ("", "expected lines"),
    ],
)
def test_wrong_prices_are_refused(tmp_path, text, message):
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        PriceList.read(tmp_path / "prices.yaml")


def test_energy_is_a_guess_only_where_the_user_states_watts(run):
    cost = read_cost([run], watts=100)
    energies = {stage.name: (stage.energy_kwh, stage.is_energy_estimated) for stage in cost.stages}
    assert energies == {
        "base": (pytest.approx(0.2), True), "sft": (pytest.approx(0.05), True), "reward": (pytest.approx(0.05), True),
        "ppo_ptx": (1.5, False),
    }  # fmt: skip
    assert build_cost_tables(cost)[0].rows[0][7] == "≈ 0.2"


def test_a_stage_that_was_not_counted_leaves_no_false_sum(run):
    record = json.loads((run / "reward" / "run.json").read_text())
    del record["flops"]
    (run / "reward" / "run.json").write_text(json.dumps(record))
    cost = read_cost([run])
    assert cost.share_of_pretraining is None
    stages = build_cost_tables(cost)[0]
    assert {row[0]: row[1] for row in stages.rows}["together"] == "–"
    assert any("reward were not counted" in note for note in stages.notes)


@given(st.lists(st.integers(1, 5), max_size=9))
def test_decided_pairs_are_those_with_different_ranks(ranks):
    assert count_decided_pairs(ranks) == sum(a != b for a, b in itertools.combinations(ranks, 2))


def test_the_command_writes_what_the_report_shows(run, tmp_path, command):
    (tmp_path / "prices.yaml").write_text("currency: EUR\nmachine_hour: 0.5\n")
    outcome = command("cost", run, "--prices", tmp_path / "prices.yaml")
    assert outcome.code == 0
    assert "102.00%" in outcome.out
    (run / "results.json").write_text("[]")
    page = write_report(run).read_text()
    assert "What it cost" in page
    assert "money, EUR" in page
    assert "2.0%" in page
    (run / "cost.json").write_text("{}")
    with pytest.raises(InputError, match=r"cost\.json: corrupt"):
        write_report(run)


def test_a_report_without_counted_stages_has_no_such_section(run):
    for name in STAGES:
        record = json.loads((run / name / "run.json").read_text())
        record.pop("flops")
        (run / name / "run.json").write_text(json.dumps(record))
    assert cost_section(read_cost([run])) == []
    assert cost_section(None) == []


def test_a_folder_without_runs_or_labels_is_refused(tmp_path, run, command):
    (tmp_path / "empty").mkdir()
    assert "no run.json of a stage" in command("cost", tmp_path / "empty").error_line(2)
    assert "no demonstrations or rankings" in command("cost", run, "--labels", tmp_path / "empty").error_line(2)
