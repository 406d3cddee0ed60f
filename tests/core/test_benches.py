"""The scripts of bench/ at toy size: GPU scripts on the CPU, comparisons without the other library."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.pages import read_page

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}svg"


def bench(name, *words):
    """What a script prints."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / name), *words], capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_gpu_bench_runs_at_toy_size_on_a_cpu(tmp_path):
    said = bench("gpu.py", "--tiny", "--out", str(tmp_path / "table.md"))
    table = (tmp_path / "table.md").read_text()
    steps = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert steps == ["step", "sampling", "sampling", "forward", "forward", "update", "`sft`", "`reward`", "`ppo`"]
    assert "toy model on a CPU: no measurement of anything" in table
    assert "with and without graphs: 4 of 4 completions have equal tokens" in table
    assert all(line in said for line in table.splitlines())
    parity = float(re.search(r"parity \(blocks\): largest ([\d.e+-]+)", table).group(1))
    assert 0 < parity < 1e-2
    assert re.search(r"ppo: val/parity [\d.e+-]+", table)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["1 B, LoRA, one GPU", "7 B, all weights, 8 GPUs"])
def test_sizes_in_the_docs_are_what_the_plan_says(row):
    line = bench("sizes.py", row).splitlines()[-1]
    assert line.startswith(f"| {row} |")
    assert line in read_page("plan").splitlines()


def test_ppo_bench_reports_share_of_ideal():
    said = bench("ppo.py", "--size", "toy", "--rounds", "1", "--alone", "--phases")
    assert "episodes/s of CPU time" in said
    assert {"sampling", "score", "reference", "values", "policy update", "value update"} <= {
        line.split("|")[2].strip() for line in said.splitlines() if line.startswith("| toy")
    }


def test_ranks_bench_compares_two_ranks_with_one_process():
    said = bench("ranks.py", "pretrain", "--rounds", "1")
    one, two, ratio, of_work = next(line for line in said.splitlines() if line.startswith("| `pretrain` |")).split("|")[
        2:6
    ]
    assert abs(float(ratio) - float(one) / float(two)) < 0.05  # milliseconds are rounded
    assert float(of_work) > 0
    assert "| `pretrain`: forward |" in said


def test_killed_stage_gives_the_same_result():
    said = bench("kills.py", "--only", "sft", "--kills", "1")
    row = next(line for line in said.splitlines() if line.startswith("| `sft`")).split("|")
    assert int(row[3]) >= 1  # kills
    assert [word.strip() for word in row[-4:-1]] == ["the same"] * 3


def test_evaluations_bench_times_each_evaluation_once(save, tmp_path):
    """One evaluation of a folder that has the data of one; what was timed before is said again."""
    (tmp_path / "crows_pairs.csv").write_text("sent_more,sent_less,bias_type\nThe sea is wide.,The sky is wide.,age\n")
    words = [str(tmp_path), "--model", str(save("gpt2")), "--out", str(tmp_path / "out")]
    words += ["--only", "crows_pairs", "rte", "--processes", "1"]
    first = bench("evaluations.py", *words)
    row = next(line for line in first.splitlines() if line.startswith("| together")).split("|")
    assert int(row[2]) == 3  # one pair under three prompts
    assert float(row[4]) > 0
    assert bench("evaluations.py", *words) == first


def test_growth_bench_measures_and_draws(tmp_path):
    said = bench("growth.py", "--rounds", "1", "--points", "1", "--only", "reward", "ppo", "--figures", str(tmp_path))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")]
    measured = [row for row in rows if row[1].replace(".", "").replace(",", "").isdigit()]
    assert [row[1] for row in measured] == ["2", "8", "0.06", "1,024", "8", "0.06", "1,024"]
    assert all(0 < float(row[3]) < float(row[2]) for row in measured)  # nothing is faster than the ideal
    assert [
        len(list(ElementTree.parse(tmp_path / f"growth-{stage}.svg").getroot().iter(SVG)))
        for stage in ("reward", "ppo")
    ] == [5, 4]


def test_nested_phase_counts_for_the_outer_phase(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import stages

    clock = iter(range(100))  # every look at the clock is a second
    monkeypatch.setattr(stages.time, "process_time", lambda: float(next(clock)))

    class Module:
        inner = staticmethod(lambda: "said")
        outer = staticmethod(lambda: Module.inner())

    watch = stages.Watch()
    watch.put_on(Module, "inner", "within")
    watch.put_on(Module, "outer", "around")
    assert Module.outer() == "said"
    assert watch.seconds == {"around": 1.0}
    assert Module.inner() == "said"
    assert watch.seconds == {"around": 1.0, "within": 1.0}


def test_stage_time_is_scaled_to_the_demo(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import stages
    from sides import Answer

    def turns(*seconds):
        return [Answer({"phases": {"optimizer": s, "all else": 10 * s}}, 0.0, 0.0) for s in seconds]

    # medians 2 and 1; a demo has 25 times the steps of reward training, and loads once
    assert list(stages.rows("reward", turns(1, 2, 9), turns(1, 1, 3))) == [
        ("optimizer", 2, 1),
        ("all else", 20, 10),
        ("**the demo's reward**", 25 * 2 + 20, 25 * 1 + 10),
    ]


def test_scaling_bench_prints_selected_stages():
    said = bench("scaling.py", "SFT 1.3B", "--ranks", "1", "64")
    one, many = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in said.splitlines()
        if line.startswith(("| 1 |", "| 64 |"))
    )
    assert one[-2:] == ["1.0", "100%"]
    assert 1 < float(many[-2]) < 32  # a batch of 32 cannot keep more busy


def test_coverage_bench_writes_its_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- coverage -->\nold\n<!-- /coverage -->\nafter\n", encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    words = ("coverage.py", "findings", "difference", "--repetitions", "2", "--rows", str(rows), "--write", str(page))
    said = bench(*words)
    kept = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join(kept[:-2]) + kept[-1][:30], encoding="utf-8")  # killed in the middle of a line
    assert bench(*words) == said
    assert len(rows.read_text(encoding="utf-8").splitlines()) >= len(kept)
    assert said.strip() in page.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").startswith("before\n<!-- coverage -->\n| number | setting |")
    assert page.read_text(encoding="utf-8").endswith("<!-- /coverage -->\nafter\n")
    names = {line.split(" | ")[0][2:] for line in said.splitlines()[2:]}
    assert names > {"difference", "report with a false shown"}
