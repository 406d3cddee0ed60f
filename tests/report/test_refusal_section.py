"""The report's section on refusals: points and intervals where the numbers are, and who classified."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

from instructgpt.cli import run_command as command
from instructgpt.report.svg import ScatterPoint, render_scatter_panel
from instructgpt.results import ResultRow, write_result_rows


def refusal_rows(model, harmful, safe, judge="people", margin=0.05):
    return [
        ResultRow("refusal", metric, model, "", value, value - margin, value + margin, 200, judge=judge)
        for metric, value in (("refuses_harmful", harmful), ("refuses_safe", safe))
        if value is not None
    ]


def section_of(folder, rows):
    write_result_rows(folder / "results.json", rows)
    assert command(["report", str(folder / "results.json"), "--out", str(folder / "page.html")]) == 0
    page = (folder / "page.html").read_text(encoding="utf-8")
    return page.split('<section id="refusal"')[1].split("</section>")[0] if '<section id="refusal"' in page else None


def test_section_has_each_model_with_both_numbers(tmp_path):
    rows = refusal_rows("sft", 0.4, 0.1) + refusal_rows("ppo", 0.8, 0.3) + refusal_rows("dpo", 0.5, None)
    section = html.unescape(section_of(tmp_path, rows))
    legend = re.findall(r"</i>([^<]+)</li>", section)
    assert legend == ["SFT", "PPO"]
    text = section.replace("\u00a0", " ")
    assert "Of harmful prompts PPO refuses 80 % [75, 85]" in text
    assert "Answers were classified by: people." in text


def test_no_section_without_both_numbers(tmp_path):
    assert section_of(tmp_path, refusal_rows("sft", 0.4, None)) is None


def test_different_judges_are_said_not_to_be_comparable(tmp_path):
    rows = refusal_rows("sft", 0.4, 0.1) + refusal_rows("ppo", 0.8, 0.3, judge="string matcher 1")
    assert "Not comparable" in section_of(tmp_path, rows)
    assert "people; string matcher 1" in section_of(tmp_path, rows)


def points_of(panel):
    """Return the (x, y) of each marker, in the coordinates of the drawing."""
    markers = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: #(?:aa|bb|cc)', panel)
    return [(float(x), float(y)) for x, y in markers]


def test_points_lie_where_the_numbers_are():
    """Three points on a line in the data are on one in the drawing, in equal steps: right is more, up is more."""
    points = [
        ScatterPoint("a", "#aa0000", 0.1, 0.2),
        ScatterPoint("b", "#bb0000", 0.3, 0.5, (0.2, 0.4), (0.4, 0.6)),
        ScatterPoint("c", "#cc0000", 0.5, 0.8, (0.4, 0.6), None),
    ]
    panel = render_scatter_panel("title", points, "x", metric="refuses_harmful")
    (ax, ay), (bx, by), (cx, cy) = points_of(panel)
    assert ax < bx < cx
    assert ay > by > cy  # downwards in a drawing
    assert bx - ax == pytest.approx(cx - bx, abs=0.21)  # coordinates have one decimal
    assert by - ay == pytest.approx(cy - by, abs=0.21)
    paths = re.findall(r'<path d="M ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+) ?"[^>]*stroke: #(bb|cc)0000', panel)
    ends = [tuple(map(float, path[:4])) for path in paths if path[4] == "bb"]
    horizontal = next(end for end in ends if end[1] == end[3])
    vertical = next(end for end in ends if end[0] == end[2])
    half_step = (bx - ax) / 2
    assert horizontal == pytest.approx((bx - half_step, by, bx + half_step, by), abs=0.21)
    third_step = (ay - by) / 3
    assert vertical == pytest.approx((bx, by + third_step, bx, by - third_step), abs=0.21)


def with_list(rows):
    return [replace(row, condition="with_list") for row in rows]


def test_what_the_list_of_forbidden_uses_changes(tmp_path):
    """The headline has the model that the list changes most; each condition has a panel with its own points."""
    rows = refusal_rows("sft", 0.3, 0.1) + refusal_rows("ppo", 0.2, 0.0, margin=0.0)
    rows += with_list(refusal_rows("sft", 0.6, 0.3) + refusal_rows("ppo", 0.9, 0.05))
    section = html.unescape(section_of(tmp_path, rows)).replace("\u00a0", " ")
    assert (
        "With the list of forbidden uses PPO refuses 90 % [85, 95] of harmful prompts and 5 % [0, 10] of safe ones; "
        "without it 20 % [20, 20] and 0 % [0, 0]." in section
    )
    assert section.count("<svg") == 2
    assert re.findall(r"</i>([^<]+)</li>", section) == ["SFT", "PPO"]


def test_the_list_alone(tmp_path):
    section = html.unescape(section_of(tmp_path, with_list(refusal_rows("sft", 0.6, 0.3)))).replace("\u00a0", " ")
    assert "Of harmful prompts SFT refuses 60 % [55, 65]" in section
    assert section.count("<svg") == 1
