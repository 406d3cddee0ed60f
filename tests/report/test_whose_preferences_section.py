"""What heads of groups gain, as the report tells it from the files of `reward --groups`."""

from __future__ import annotations

import html
import json
import re

import pytest

from instructgpt.cli import run_command as command


def estimate(value, low=None, high=None, n=0):
    return {"value": value, "low": low, "high": high, "n": n, "caution": ""}


def entry(labelers, shared, conditioned, gain, verdict):
    return {"labelers": labelers, "shrinkage": 0.1, "shared": shared, "conditioned": conditioned, "gain": gain} | {
        "verdict": verdict
    }


HELPS = entry(
    9, estimate(0.5, 0.45, 0.55, 400), estimate(0.66, 0.6, 0.72, 400), estimate(0.16, 0.1, 0.22, 400), "helps"
)
NOT_MEASURED = entry(7, estimate(None), estimate(None), estimate(None), "not measured")


def table_of(folder, groups, language="en"):
    (folder / "reward").mkdir(parents=True)
    record = {"stage": "reward", "config": {"seed": 0}, "parents": {}, "groups": groups}
    (folder / "reward" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert command(["report", str(folder), "--language", language]) == 0
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8")).replace("\u00a0", " ")
    if '<section id="whose-preferences"' not in page:
        return None
    section = page.split('<section id="whose-preferences"')[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.split(r"</t[hd]>", row)] for row in rows]


def test_each_group_with_its_gain_and_verdict(tmp_path):
    rows = table_of(tmp_path, {"North": HELPS, "South": NOT_MEASURED})
    north = next(row for row in rows if row[0] == "North")
    assert north[1:6] == ["9", "50 % [45, 55] n 400", "66 % [60, 72] n 400", "16 % [10, 22]", "helps"]
    south = next(row for row in rows if row[0] == "South")
    assert south[1:6] == ["7", "cannot tell", "cannot tell", "–", "not measured"]


def test_korean(tmp_path):
    rows = table_of(tmp_path, {"North": HELPS}, "ko")
    assert next(row for row in rows if row[0] == "North")[5] == "도움이 됨"


@pytest.mark.parametrize("groups", [None, {}, [], {"East": 3}, {"East": HELPS | {"labelers": 4}}, {"East": {}}])
def test_no_section_without_a_group_of_five(tmp_path, groups):
    assert table_of(tmp_path, groups) is None
