"""The figures of a run on the documentation's pages.

pytest tests/docs/test_demo_figures.py
"""

from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

import pytest
from support import example_run
from support.pages import DOCS

sys.path.append(str(DOCS))
import generate_figures

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    generate_figures.main(example_run.make(folder / "run"), folder)
    return {path.stem: ElementTree.parse(path).getroot() for path in sorted(folder.glob("*.svg"))}


def words(figure) -> set[str]:
    return {text for node in figure.iter(f"{SVG}text") if (text := "".join(node.itertext()).strip())}


def test_figures_show_what_the_report_shows(figures):
    assert set(figures) == {"demo-ppo", "demo-preference", "demo-reward", "demo-tax"}
    panels = {name: len(figure.findall(f"{SVG}svg")) for name, figure in figures.items()}
    assert panels == {"demo-ppo": 4, "demo-preference": 2, "demo-reward": 4, "demo-tax": 3}
    assert {"Training labelers", "Held-out labelers", "prompted base", "PPO-ptx"} <= words(figures["demo-preference"])
    assert {"PPO", "PPO-ptx", "Reward model's score", "episodes"} <= words(figures["demo-ppo"])


def test_figures_lie_inside_their_files(figures):
    for name, figure in figures.items():
        width, height = float(figure.get("width")), float(figure.get("height"))
        for panel in figure.findall(f"{SVG}svg"):
            right, bottom = (float(panel.get(a)) + float(panel.get(b)) for a, b in (("x", "width"), ("y", "height")))
            assert right <= width, name
            assert bottom <= height, name


def test_pages_show_the_figures_of_the_generator(figures):
    used = {
        name
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"figures/(demo-\w+)\.svg", page.read_text(encoding="utf-8"))
    }
    assert used == set(figures) == {path.stem for path in (DOCS / "figures").glob("demo-*.svg")}
    assert all(path.stat().st_size < 100_000 for path in (DOCS / "figures").iterdir())
