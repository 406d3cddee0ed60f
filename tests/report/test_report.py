"""The report: whole and in part, self-contained, honest about what the numbers show, safe against what models write."""

import io
import json
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from support.example_run import HOSTILE, make
from support.pages import DOCS

from instructgpt.errors import InputError
from instructgpt.formatting import format_large_count, format_training_time, percent_interval
from instructgpt.records import Ranking, write_records
from instructgpt.report import curves, lineage, samples, terminal
from instructgpt.report.findings import check_findings
from instructgpt.report.inputs import Parent, Stage, read_run
from instructgpt.report.naming import format_metric_value
from instructgpt.report.page import write_report
from instructgpt.report.results import Results
from instructgpt.report.sections.training import RUN_FILES
from instructgpt.report.svg import Bar, Curve, render_bar_panel, render_line_panel, render_svg_file
from instructgpt.results import ResultRow, read_result_rows, write_result_rows
from instructgpt.statistics.intervals import Estimate

SECTIONS = [
    "findings",
    "samples",
    "preference",
    "ratings",
    "use-cases",
    "labels",
    "truthfulness",
    "toxicity",
    "bias",
    "tax",
    "reward-model",
    "over-optimization",
    "ppo",
    "learning",
    "while-learning",
    "lineage",
]
EMPTY = {"meta", "path", "rect", "use"}


class Page(HTMLParser):
    """What a browser would see: sections, links, ids, texts, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sections, self.ids, self.references, self.open, self.words = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [tag] if tag not in EMPTY else []
        for name, value in attrs:
            self.sections += [value] if (tag, name) == ("section", "id") else []
            self.ids += [value] if name == "id" else []
            self.references += (
                [value] if name in ("href", "src", "srcset", "data", "action", "xlink:href", "poster") else []
            )
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
            assert not name.startswith("on"), f"an event handler: {name}"

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def text(run):
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_every_section_is_there(page):
    assert page.sections == SECTIONS
    assert page.open == []
    assert page.tags.count("svg") > 50


def test_nothing_is_fetched_and_nothing_runs(page, text):
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & set(page.tags)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert len(text.encode()) < 3_000_000


def test_links_lead_somewhere(page):
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_hostile_text_is_shown_and_does_nothing(page, text):
    assert "<script" not in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", text)
    words = " ".join(page.words)
    assert '<script>alert("x")</script> & <img src=http://evil.example/x.png> ␀␛[31m ?' in words
    assert "한국어 🦊" in words


def test_same_files_same_page(run, tmp_path):
    shutil.copytree(run / "evaluation", tmp_path / "evaluation")
    first = write_report(tmp_path).read_text(encoding="utf-8")
    assert write_report(tmp_path).read_text(encoding="utf-8") == first


def test_hostile_names_of_models_and_stages(run, tmp_path):
    shutil.copytree(run / "sft", tmp_path / "<b>x")
    row = ResultRow("preference", "rating", HOSTILE, '"><script>', 3.0, 2.0, 4.0, 9)
    (tmp_path / "results.json").write_text(json.dumps([asdict(row)]))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert Page(text).open == []


@pytest.mark.parametrize(
    ("kept", "sections"),
    [
        (["results.json"], ["findings", *SECTIONS[2:11]]),
        (["base", "sft"], ["learning", "lineage"]),
        (["ppo"], ["ppo", "while-learning", "lineage"]),
        (["evaluation"], ["samples", "over-optimization"]),
        (["reward/run.json"], ["lineage"]),
    ],
    ids=lambda value: str(value[0]),
)
def test_partial_runs(run, tmp_path, kept, sections):
    for name in kept:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (run / name).is_dir() else shutil.copy)(run / name, target)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.sections == [*sections, "missing"]
    assert ("results.json: " in " ".join(page.words)) == ("results.json" not in kept)


def test_rows_that_were_not_measured(run, tmp_path):
    rows = [replace(row, value=None, low=None, high=None, n=0) for row in read_result_rows(run / "results.json")]
    write_result_rows(tmp_path / "results.json", rows)
    assert Page(write_report(tmp_path).read_text(encoding="utf-8")).sections == ["missing"]
    bare = [
        replace(row, low=None, high=None)
        for row in read_result_rows(run / "results.json")
        if row.evaluation in ("labels", "tax")
    ]
    write_result_rows(tmp_path / "results.json", bare)
    assert "[" not in table_text(bare)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.sections == ["findings", "labels", "tax", "missing"]
    assert not {"shown", "partly", "opposite"} & set(page.words)  # without intervals nothing can be told


def test_a_killed_stage_leaves_a_half_line(run, tmp_path):
    shutil.copytree(run / "sft", tmp_path / "sft")
    with (tmp_path / "sft" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 301, "loss/tr')
    (tmp_path / "sft" / "run.json").write_text(json.dumps({"stage": "sft", "finished": False}))
    words = " ".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).words)
    assert "sft/metrics.jsonl:301" in words
    assert "Not finished: SFT." in words


@pytest.mark.parametrize(("name", "content"), [("results.json", "{"), ("sft/run.json", "["), ("sft/run.json", "[]")])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name):
        write_report(tmp_path)


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(InputError, match=r"nothing to report on; expected results\.json"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        write_report(tmp_path / "away")


def row(evaluation, metric, model, condition, value, low, high):
    return ResultRow(evaluation, metric, model, condition, value, low, high, 100)


def verdict(rows, words):
    (found,) = [finding for finding in check_findings(Results.from_rows(rows)) if words in finding.paper]
    return found.verdict


def test_verdicts_follow_the_intervals():
    def wins(ppo, ptx):
        return [
            row("preference", "win_rate_vs_sft", name, "training", (low + high) / 2, low, high)
            for name, (low, high) in (("ppo", ppo), ("ppo_ptx", ptx))
        ]

    claim = "are preferred to SFT"
    assert verdict(wins((0.51, 0.6), (0.55, 0.6)), claim) == "shown"
    assert verdict(wins((0.48, 0.6), (0.55, 0.6)), claim) == "partly"
    assert verdict(wins((0.48, 0.6), (0.45, 0.6)), claim) == "not shown"
    assert verdict(wins((0.48, 0.6), (0.35, 0.4)), claim) == "not shown"
    assert verdict(wins((0.3, 0.4), (0.35, 0.4)), claim) == "opposite"
    assert verdict(wins((0.51, 0.6), (0.35, 0.4)), claim) == "partly"
    assert verdict([], claim) == "not measured"
    assert verdict([row("preference", "win_rate_vs_sft", "ppo", "training", 0.9, None, None)], claim) == "not shown"


def test_a_paired_difference_decides_where_there_is_one():
    apart = [
        row("toxicity", "mean_toxicity", "base", "respectful", 0.3, 0.2, 0.4),
        row("toxicity", "mean_toxicity", "ppo_ptx", "respectful", 0.25, 0.15, 0.35),
    ]
    claim = "Told to be respectful"
    assert verdict(apart, claim) == "not shown"
    paired = row("difference", "toxicity/mean_toxicity/respectful", "ppo_ptx", "base", -0.05, -0.08, -0.02)
    assert verdict([*apart, paired], claim) == "shown"


def test_an_interval_without_width_decides_nothing():
    rows = [row("preference", "win_rate_vs_sft", name, "training", 0.7, 0.6, 0.8) for name in ("ppo", "ppo_ptx")]
    alike = row("difference", "preference/win_rate_vs_sft/training", "ppo_ptx", "ppo", 0.0, 0.0, 0.0)
    assert verdict([*rows, alike], "hardly changes preference") == "not shown"
    narrow = row("difference", "preference/win_rate_vs_sft/training", "ppo_ptx", "ppo", 0.0, -0.05, 0.05)
    assert verdict([*rows, narrow], "hardly changes preference") == "shown"


def test_one_of_many_comparisons_is_not_partly():
    """Two of 1.96 standard errors above nothing among six tasks: luck; at 3.5 standard errors no longer."""

    def tasks(errors):
        rows = []
        for index, distance in enumerate(errors):
            rows += [row("tax", f"task_{index}", name, "", 0.5, 0.4, 0.6) for name in ("sft", "ppo", "ppo_ptx")]
            gap = 0.01 * distance
            ends = gap - 0.0196, gap + 0.0196
            rows.append(row("difference", f"tax/task_{index}", "ppo_ptx", "ppo", gap, *ends))
        return rows

    claim = "repairs the loss"
    assert verdict(tasks([2.2, 0, 0, 0, 0, 0]), claim) == "not shown"
    assert verdict(tasks([3.5, 0, 0, 0, 0, 0]), claim) == "partly"
    assert verdict(tasks([2.2] * 6), claim) == "shown"
    (finding,) = [f for f in check_findings(Results.from_rows(tasks([3.5, 2.2, 0, 0, 0, 0]))) if claim in f.paper]
    assert finding.evidence.startswith("2 of 6 comparisons hold")


def test_bias_does_not_improve_needs_data():
    def entropy(low, high):
        rows = [row("bias", "entropy_bits", name, "", 0.5, 0.4, 0.6) for name in ("base", "ppo_ptx")]
        return [*rows, row("difference", "bias/entropy_bits", "ppo_ptx", "base", (low + high) / 2, low, high)]

    claim = "Bias does not improve"
    assert verdict(entropy(-0.5, 0.5), claim) == "not shown"  # too few data show nothing
    assert verdict(entropy(-0.2, 0.05), claim) == "shown"
    assert verdict(entropy(0.15, 0.4), claim) == "opposite"


def test_numbers_enter_with_their_error():
    """Held-out accuracy 0.62 ± 0.04, training 0.70: within 0.1 only if the 0.70 is sure."""

    def accuracies(training_error, *more):
        numbers = (("training", 0.7, training_error), ("heldout", 0.66, 0.04))
        return [row("reward_model", "pair_accuracy", "reward", c, x, x - e, x + e) for c, x, e in numbers] + [*more]

    claim = "held-out labelers nearly as well"
    assert verdict(accuracies(0.01), claim) == "shown"
    assert verdict(accuracies(0.06), claim) == "not shown"
    gap = row("reward_model", "pair_accuracy_heldout_minus_training", "reward", "", -0.04, -0.09, 0.01)
    assert verdict(accuracies(0.06, gap), claim) == "shown"
    length = row("reward_model", "length_baseline", "reward", "training", 0.66, 0.62, 0.7)
    assert verdict(accuracies(0.03, length), "better than length") == "not shown"
    paired = row("reward_model", "pair_accuracy_minus_length_baseline", "reward", "training", 0.04, 0.01, 0.07)
    assert verdict(accuracies(0.03, length, paired), "better than length") == "shown"

    def kept(sft_error):
        rows = [row("tax", "translation", "sft", "", 0.5, 0.5 - sft_error, 0.5 + sft_error)]
        rows += [row("tax", "translation", name, "", 0.49, 0.4, 0.6) for name in ("ppo", "ppo_ptx")]
        return [*rows, row("difference", "tax/translation", "ppo_ptx", "sft", -0.01, -0.045, 0.025)]

    assert verdict(kept(0.02), "nine tenths") == "shown"
    assert verdict(kept(0.1), "nine tenths") == "not shown"


def test_losing_means_more_loss_and_fewer_right_answers():
    def taxed(task, sft, ppo):
        return [
            row("tax", task, name, "", mid, mid - 0.01, mid + 0.01)
            for name, mid in (("sft", sft), ("ppo", ppo), ("ppo_ptx", sft))
        ]

    assert verdict([*taxed("translation", 0.8, 0.5), *taxed("heldout_loss", 0.8, 0.9)], "PPO alone loses") == "shown"
    assert verdict([*taxed("translation", 0.8, 0.5), *taxed("heldout_loss", 0.8, 0.7)], "PPO alone loses") == "partly"
    assert verdict(taxed("translation", 0.8, 0.5), "nine tenths") == "shown"


def test_over_optimization_is_told_as_it_is(run, tmp_path):
    path = tmp_path / "evaluation" / "over_optimisation.jsonl"
    path.parent.mkdir()
    shutil.copy(run / "evaluation" / "over_optimisation.jsonl", path)
    points = [json.loads(line) for line in path.read_text().splitlines()]
    told = " ".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).words)
    best = max((point for point in points if point["model"] == "ppo"), key=lambda point: point["utility"])
    assert f"PPO: true utility was best at a KL of {best['kl']:.2f}, {best['utility']:.2f}" in told
    assert "surely lower: over-optimized" in told


def table_text(rows):
    console = Console(width=140, record=True, file=io.StringIO())
    terminal.print_report_tables(rows, console)
    return console.export_text()


def test_the_terminal_table(run):
    rows = read_result_rows(run / "results.json")
    text = table_text(rows)
    (ptx,) = [
        each
        for each in rows
        if (each.evaluation, each.metric, each.model, each.condition)
        == ("preference", "win_rate_vs_sft", "ppo_ptx", "training")
    ]
    assert f"{100 * ptx.value:.0f}\u00a0%" in text
    assert f"[{100 * ptx.low:.0f},\u00a0{100 * ptx.high:.0f}]" in text
    assert "PPO and PPO-ptx are preferred to SFT." in text
    assert "opposite" in text  # the example is less toxic than its base without any instruction; the paper is not


def test_on_own_files_the_terminal_and_the_page_say_who_judged(tmp_path):
    wins = [
        ResultRow("preference", "win_rate_vs_sft", name, "reward model", x, x - 0.1, x + 0.1, 9)
        for name, x in (("base", 0.31), ("ppo", 0.64))
    ]
    assert re.search(r"reward model\s.*31\u00a0%\s+64\u00a0%", table_text(wins))
    write_result_rows(tmp_path / "results.json", wins)
    told = " ".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).words)
    assert "To a completion of the SFT model, the judge (reward model) prefers that of PPO 64" in told
    two = {"completions": ("so", "no"), "models": ("sft", "ppo")}
    ranked = [Ranking(prompt="a", ranks=(2, 1), **two), Ranking(prompt="b", ranks=(1, 2), **two)]
    write_records(tmp_path / "evaluation" / "preference" / "rankings.jsonl", ranked)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "2 test prompts, in the order of the file" in " ".join(page.words)
    notes = [word for word in page.words if ", rank " in word]
    assert notes == ["SFT, rank 2 of 2", "PPO, rank 1 of 2", "SFT, rank 1 of 2", "PPO, rank 2 of 2"]
    only_rankings = [ResultRow("reward_model", "pair_accuracy", "reward", "", 0.7, 0.6, 0.8, 9)]
    assert table_text(only_rankings).split()[:4] == ["pairs", "of", "all", "labelers:"]


def test_thinning_keeps_the_mean():
    y = np.random.default_rng(0).normal(size=1_600).tolist()
    thin_x, thin_y = curves.downsample(list(range(1_600)), y)
    assert len(thin_x) == len(thin_y) == curves.MAX_CURVE_POINTS
    assert np.mean(thin_y) == pytest.approx(np.mean(y))
    assert thin_x[0] == pytest.approx(4.5)
    assert curves.downsample([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_a_power_is_a_straight_line_on_logarithmic_axes():
    drawn = render_line_panel(
        "t",
        [Curve("square", "#3f88c5", (2, 4, 16), (4, 16, 256), show_markers=True)],
        "x",
        sizes=(2, 4, 16),
        log_scale_y=True,
    )
    path = re.search(r'<path d="([^"]+)"[^>]*stroke: var\(--sft', drawn)[1]
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, at)) for at in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, abs=0.02)  # 16 is three doublings from 2
    assert (y2 - y0) / (y1 - y0) == pytest.approx(3, abs=0.02)
    assert re.findall(r">([\d,]+)<", drawn)[:3] == ["2", "4", "16"]


def test_a_figure_of_its_own_brings_every_colour_it_uses():
    panels = [render_bar_panel(title, [Bar("a & b", "#8b919c", 0.5)]) for title in ("one", "two", "three")]
    drawn = render_svg_file("what it is", panels, [("a & b", "#8b919c", True)])
    tree = ElementTree.fromstring(drawn)
    places = [(float(one.get("x")), float(one.get("y"))) for one in tree if one.tag.endswith("svg")]
    assert places[0][1] == places[1][1] < places[2][1]
    assert places[0][0] == places[2][0] < places[1][0]
    for scheme in drawn.split("prefers-color-scheme: dark")[0], drawn:
        named = set(re.findall(r"(--\w+):", scheme))
        assert set(re.findall(r"var\((--\w+)", drawn)) <= named


def test_bars_are_as_long_as_their_numbers():
    drawn = render_bar_panel("t", [Bar("a", "#8b919c", 0.5), Bar("b", "#3f88c5", 0.25)], metric="x")
    widths = []
    for shade in ("--base", "--sft"):
        corners = re.search(rf'<path d="([^"]+)"[^>]*fill: var\({shade}', drawn)[1]
        x = [float(number) for number in re.findall(r"[ML] ([\d.]+)", corners)]
        widths.append(max(x) - min(x))
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)


def test_family_tree_puts_children_below_their_parents():
    def stage(name, *parents):
        return Stage(name, {}, tuple(Parent(parent, f"runs/x/{parent}", "ab" * 32) for parent in parents))

    stages = {
        each.name: each
        for each in (
            stage("ppo", "start", "reward"),
            stage("start", "base"),
            stage("reward", "sft"),
            stage("sft", "base"),
            stage("base", "gpt2"),
        )
    }
    places = lineage._layout_tree(stages)
    assert {name: level for name, (_, level) in places.items()} == {
        "base": 0,
        "sft": 1,
        "start": 1,
        "reward": 2,
        "ppo": 3,
    }
    assert len(set(places.values())) == len(places)
    assert lineage.render_family_tree(stages).count("<path") == 5
    circle = {each.name: each for each in (stage("a", "b"), stage("b", "a"))}
    assert lineage.render_family_tree(circle).count("<rect") == 4


def test_samples_are_spread_over_use_cases(run):
    files = read_run(run)
    shown = samples.select_sample_groups(files.rankings, files.use_cases)
    assert len(shown) == 12
    assert len({each.kind for each in shown}) == 10
    assert all(len(each.samples) == 5 for each in shown)
    assert samples.truncate_text("x" * 1_250).endswith("(50 characters more)")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (format_metric_value(0.615, "truthful"), "62\u00a0%"),
        (format_metric_value(0.004, "truthful"), "0.4\u00a0%"),
        (format_metric_value(0.0, "truthful"), "0\u00a0%"),
        (format_metric_value(4.237, "rating"), "4.24"),
        (format_metric_value(None, "rating"), "–"),
        (percent_interval(Estimate(0.0219, -0.0496, 0.0931, 30)), "2.2 % [−5.0, 9.3]"),
        (percent_interval(Estimate(-0.0001, -0.0004, None, 30)), "0.0 %"),
        (format_training_time(75), "75 s"),
        (format_training_time(754), "13 min"),
        (format_training_time(7_500), "2 h 05 min"),
        (format_large_count(478_752), "479 thousand"),
        (format_large_count(1_300_000), "1.3 million"),
    ],
)
def test_numbers_as_people_write_them(said, expected):
    assert said == expected


def test_the_docs_name_every_metric_and_file(run):
    docs = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    named = {
        row.metric for row in read_result_rows(run / "results.json") if row.evaluation not in ("labels", "difference")
    } - {
        "translation",
        "passage_qa",
    }
    assert len(named) == 28
    assert all(f"`{metric}`" in docs for metric in named)
    assert all(f"`{name}`" in docs for name in RUN_FILES if not name.startswith("ppo/"))
