"""Write the figures of a run that the documentation shows, as SVG files that follow the reader's light or dark scheme.

python docs/generate_figures.py runs/demo        # results.json and the stages' logs; the report draws the same figures
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

from instructgpt.report.charts import preference_figure, reward_model_figure, tax_figure
from instructgpt.report.curves import ppo_figure
from instructgpt.report.inputs import read_run
from instructgpt.report.results import Results
from instructgpt.report.svg import render_svg_file

FIGURES = Path(__file__).parent / "figures"
PPO_METRICS = ("objective/scores", "objective/kl", "objective/entropy", "completion/length")
LEGEND = re.compile(r'<li><i class="(solid|dashed)" style="color:([^"]*)"></i>(.*?)</li>')
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
