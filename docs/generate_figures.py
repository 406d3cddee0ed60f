"""Write the figures of a run that the documentation shows, as SVG files that follow the reader's light or dark scheme.

python docs/generate_figures.py runs/demo        # results.json and the stages' logs; the report draws the same figures
python docs/generate_figures.py --frontier runs/demo-0 runs/demo-1 runs/demo-2     # made with --baselines
"""

from __future__ import annotations

import argparse
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.report.charts import preference_figure, reward_model_figure, tax_figure
from instructgpt.report.comparison import read_groups
from instructgpt.report.curves import ppo_figure
from instructgpt.report.inputs import read_run
from instructgpt.report.results import Results
from instructgpt.report.sections.frontier import compared_frontier_sections
from instructgpt.report.svg import render_svg_file

FIGURES = Path(__file__).parent / "figures"
PPO_METRICS = ("objective/scores", "objective/kl", "objective/entropy", "completion/length")
LEGEND = re.compile(r'<li><i class="(solid|dashed)" style="color:([^"]*)"></i>(.*?)</li>')
ENDS = re.compile("_(low|high)$")
PANEL = re.compile(r"<svg.*?</svg>", re.S)


def to_svg(title: str, figure: str, columns: int = 2) -> str:
    """Return a figure of the report as a file of its own."""
    legend = [(html.unescape(label), color, line == "dashed") for line, color, label in LEGEND.findall(figure)]
    return render_svg_file(title, PANEL.findall(figure), legend, columns)


def main(directory: Path, figures: Path = FIGURES) -> None:
    """Write `demo-*.svg`."""
    run = read_run(directory)
    results = Results.from_rows(run.rows)
    drawings = {
        "preference": to_svg("preferred to SFT, 95 % intervals", preference_figure(results)),
        "reward": to_svg("the better completion scores higher, 95 % intervals", reward_model_figure(results)),
        "ppo": to_svg("during PPO", ppo_figure(list(run.stages.values()), PPO_METRICS)),
        "tax": to_svg("tasks of the pretraining text, 95 % intervals", tax_figure(results)),
    }
    for name, drawing in drawings.items():
        (figures / f"demo-{name}.svg").write_text(drawing, encoding="utf-8")


def write_frontier(runs: Sequence[Path], figures: Path = FIGURES, rows: Path | None = None) -> None:
    """Write `frontier.svg` and `frontier-cost.svg`: means over runs of different seeds. `rows`: file for the points."""
    groups = read_groups(runs)
    sections = compared_frontier_sections(groups)
    if len(sections) != 1:
        raise InputError(
            f"{len(groups)} groups of runs, {len(sections)} of them with a frontier; give runs of one group"
        )
    drawings = {"frontier": sections[0].figure, "frontier-cost": sections[0].extra_figure}
    title = f"truth and proxy of each method, {len(runs)} seeds"
    for name, drawing in drawings.items():
        (figures / f"{name}.svg").write_text(to_svg(title, drawing, columns=3), encoding="utf-8")
    if rows is not None:
        points = [
            {"seed": run.seeds[0]} | {name: _round(value) for name, value in point.items() if not ENDS.search(name)}
            for run in groups[0].runs
            for point in run.frontier
        ]
        rows.write_text("[\n" + ",\n".join(map(json.dumps, points)) + "\n]\n", encoding="utf-8")


def _round(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--frontier", action="store_true")
    options = parser.parse_args()
    if options.frontier:
        write_frontier(options.runs, rows=FIGURES.parent / "results" / "frontier.json")
    else:
        main(options.runs[0])
