"""Cells, what they share, what is chosen: read from configurations alone."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from statistics import stdev

import pytest
from scipy import stats

from instructgpt.cli import parse
from instructgpt.config import make_config
from instructgpt.errors import InputError
from instructgpt.sweep.cells import parse_axis
from instructgpt.sweep.cli import Sweep, recipe_value
from instructgpt.sweep.configs import SweepConfig
from instructgpt.sweep.figure import write_figure
from instructgpt.sweep.paper_readings import PAPER_FIGURES
from instructgpt.sweep.table import choose, format_table, mean_over_seeds, resolve_choice


def make_sweep(tmp_path, *vary, recipe="demo", **options):
    return Sweep(make_config(SweepConfig, {"recipe": recipe, "vary": vary, "out": tmp_path / "sweep", **options}))


def shared_stage_names(sweep):
    return [[stage.stage for stage in sweep.shared[cell.key]] for cell in sweep.cells]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["ppo_ptx.gamma=1,2"], "ppo_ptx.*unknown option 'gamma'"),
        (["ppo_ptz.ptx_coef=1,2"], "no stage 'ppo_ptz', did you mean 'ppo_ptx'"),
        (["ppo.ptx_coef=1,2"], "--ptx-coef has no effect without --pretraining"),
        (["ppo.lr=1e-4,much"], "--lr much"),
        (["ppo.lr=1e-4,0.0001"], "names a value twice"),
        (["ppo.lr"], "expected STAGE.OPTION=VALUE"),
        (["ppo.kl_alarm=1,2"], "has no effect on any result"),
        (["run.processes=1,2"], "has no effect on any result"),
        (["run.seed=1,2"], "use --seeds"),
        (["ppo.minibatch=100"], "not a multiple of --minibatch 100"),
        (["ppo.lr=1e-4", "ppo.lr=2e-4"], "names an option twice"),
        (["pretrain.optimizer=muon,adamw"], "--muon-lr has no effect"),
    ],
)
def test_options_that_do_not_exist_or_have_no_effect_fail_before_the_first_cell(tmp_path, vary, message):
    with pytest.raises(InputError, match=message):
        make_sweep(tmp_path, *vary)
    assert not (tmp_path / "sweep").exists()


def test_the_name_of_a_cell_depends_on_what_it_does_alone(tmp_path):
    sweep = make_sweep(tmp_path, "ppo_ptx.ptx_coef=0.2,0.4", seeds=2)
    assert len({cell.key for cell in sweep.cells}) == 4
    again = make_sweep(tmp_path / "elsewhere", "ppo_ptx.ptx_coef=0.4,1,0.20", seeds=1)
    keys = {(float(cell.values["ppo_ptx.ptx_coef"]), cell.seed): cell.key for cell in sweep.cells}
    assert again.cells[0].key == keys[0.4, 0]
    assert again.cells[2].key == keys[0.2, 0]
    other_option = make_sweep(tmp_path, "ppo_ptx.kl_coef=0.05,0.1")  # 0.05 is the preset's
    assert other_option.cells[0].key == keys[0.2, 0]


@pytest.mark.parametrize(
    ("vary", "not_shared"),
    [
        ("ppo_ptx.ptx_coef=0,0.2", {"ppo_ptx", "exam-ppo_ptx"}),
        ("ppo+ppo_ptx.lr=1e-4,2e-4", {"ppo", "ppo_ptx", "exam-ppo", "exam-ppo_ptx"}),
        ("reward.lr=1e-4,2e-4", {"reward", "sft", "ppo", "ppo_ptx", "exam-sft", "exam-ppo", "exam-ppo_ptx"}),
        ("exam.exercises=10,20", {f"exam-{model}" for model in ("base", "prompted", "sft", "ppo", "ppo_ptx")}),
        ("sft.epochs=1,2", {"sft", "exam-sft"}),
        ("start.mix=0,0.1", "all but world pretrain exam-base exam-prompted"),
        ("run.ranking_prompts=100,200", "all but world pretrain start exam-base exam-prompted"),
        (
            "run.reward_base=start,base",
            {"reward", "sft", "ppo", "ppo_ptx", "exam-sft", "exam-ppo", "exam-ppo_ptx"},
        ),
        ("run.words=100000,200000", "all but"),
        ("exam.prompts=10,20", "all but"),
    ],
)
def test_stages_before_the_varied_one_are_shared(tmp_path, vary, not_shared):
    everything = {"world", "pretrain", "start", "candidates", "reward", "sft", "ppo", "ppo_ptx"}
    everything |= {f"exam-{model}" for model in ("base", "prompted", "sft", "ppo", "ppo_ptx")}
    shared = set(not_shared.split()[2:]) if isinstance(not_shared, str) else everything - not_shared
    sweep = make_sweep(tmp_path, vary, seeds=2)
    assert [set(names) for names in shared_stage_names(sweep)] == [shared] * 4
    assert len(sweep.shared_stages()) == 2 * len(shared)  # of each seed
    assert all(position > 0 or not item.parents for position, item in enumerate(sweep.items()))


def test_methods_of_baselines_are_shared_like_stages(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("run: {baselines: true}\n")
    (names, _) = shared_stage_names(make_sweep(tmp_path, "dpo.beta=0.1,0.2", recipe=str(recipe)))
    assert {"public_tasks", "expert_iteration", "best_of_n", "ppo", "exam-best_of_n"} <= set(names)
    assert {"dpo", "exam-dpo"}.isdisjoint(names)
    (names, _) = shared_stage_names(make_sweep(tmp_path, "reward.lr=1e-4,2e-4", recipe=str(recipe)))
    assert "dpo" in names, "which knows no reward model"
    assert {"expert_iteration", "best_of_n", "public_tasks"}.isdisjoint(names)


def test_reward_models_of_the_scaling_laws_share_samples_of_the_start_and_each_is_made_once(tmp_path):
    _, config = parse(["sweep", "--preset", "scaling-laws", "--seeds", "1", "--out", str(tmp_path / "sweep")])
    sweep = Sweep(config)
    names = [name.rpartition("-")[0] for name in sweep.shared_stages()]
    assert {name: names.count(name) for name in names} == {
        "world": 1, "pretrain": 1, "start": 1, "candidates": 1, "start_samples": 1, "reward_pretrain": 5, "reward": 30,
    }  # fmt: skip
    assert len(sweep.cells) == 60, "best of n and PPO for each reward model"
    quiet = make_sweep(tmp_path, "run.labeler_noise=0,1.2", "run.overoptimization=best_of_n")
    shared = [set(names) for names in shared_stage_names(quiet)]
    assert shared[0] == {"world", "pretrain", "start", "start_samples", "candidates", "reward"}
    stages = [{stage.stage: stage.name for stage in quiet.shared[cell.key]} for cell in quiet.cells]
    same = {stage for stage in stages[0] if stages[0][stage] == stages[1][stage]}
    assert same == {"world", "pretrain", "start", "start_samples"}, "labelers rank anew without noise"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run": {"overoptimization": "dpo"}}, "overoptimization dpo"),
        ({"run": {"overoptimization": "ppo", "baselines": True}}, "leave --rounds and --baselines out"),
        ({"start_samples": {"prompts": 20}}, "section start_samples has no effect without --overoptimization"),
        ({"run": {"reward_base": "base"}, "reward_pretrain": {"width": 16}}, "--reward-base has no effect"),
        ({"reward_pretrain": {"vocabulary": 300}}, "vocabulary: the trunk has the tokenizer of the base"),
        ({"reward": {"max_completions": 1}}, "use at least 2"),
    ],
)
def test_options_of_the_scaling_laws_that_cannot_be(tmp_path, sections, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"run": {}} | sections))
    with pytest.raises(InputError, match=message):
        make_sweep(tmp_path, "candidates.max_tokens=16,32", recipe=str(recipe))


def test_two_axes_share_what_one_of_them_leaves_as_it_is(tmp_path):
    sweep = make_sweep(tmp_path, "reward.lr=1e-4,2e-4", "ppo.kl_coef=0.01,0.02,0.04")
    assert len(sweep.cells) == 6
    names = [name.rpartition("-")[0] for name in sweep.shared_stages()]
    assert {name: names.count(name) for name in names} == {
        "world": 1, "pretrain": 1, "start": 1, "candidates": 1, "reward": 2, "sft": 2, "ppo_ptx": 2,
        "exam-base": 1, "exam-prompted": 1, "exam-sft": 2, "exam-ppo_ptx": 2,
    }  # fmt: skip


def test_shared_stages_are_the_same_when_values_are_added(tmp_path):
    one = make_sweep(tmp_path, "ppo_ptx.ptx_coef=0.2")
    more = make_sweep(tmp_path, "ppo_ptx.ptx_coef=0.2,0.4,1")
    assert list(one.shared_stages()) == list(more.shared_stages())


def test_zero_pretraining_text_is_training_without_it(tmp_path):
    sweep = make_sweep(tmp_path, "ppo_ptx.ptx_coef=0,0.2")
    assert sweep.cells[0].config.stages["ppo_ptx"]["pretraining"] == []
    assert "ptx_ratio" not in sweep.cells[0].config.stages["ppo_ptx"]
    assert make_sweep(tmp_path, "start.mix=0,0.1,0.5").cells[0].config.stages["start"]["pretraining"] == []


@pytest.mark.parametrize("number", PAPER_FIGURES)
def test_every_figure_of_the_paper_has_a_preset(tmp_path, number):
    command, config = parse(["sweep", "--preset", f"figure-{number}", "--out", str(tmp_path / "sweep")])
    sweep = Sweep(config)
    assert command.name == "sweep"
    assert config.paper_figure == number
    assert len(sweep.cells) >= 5
    assert sweep.shared_stages()
    drawn = [name for name, _ in PAPER_FIGURES[number].curves]
    assert set(drawn) <= set(config.plot)
    _, small = parse(["sweep", "smoke", "--preset", f"figure-{number}", "--out", str(tmp_path / "small")])
    assert len(Sweep(small).cells) == len(sweep.cells)


def rows_of(scores, *, fresh=()):
    """Rows of {value: scores by seed}."""
    return [
        {
            "cell": f"{value}-{seed}", "values": {"ppo.kl_coef": value}, "seed": seed, "fresh": seed in fresh,
            "state": "failed" if score is None else "done", "seconds": 60.0,
            "error": "too hot" if score is None else "",
            "metrics": {} if score is None else {"ppo:validation/scores": score, "tax:passage_qa:ppo": 1 - score / 10},
        }
        for value, by_seed in scores.items()
        for seed, score in enumerate(by_seed)
    ]  # fmt: skip


def test_the_best_is_chosen_on_validation_by_the_mean_of_all_seeds():
    axes = [parse_axis("ppo.kl_coef=0.01,0.02,0.04,0.1")]
    # 0.04 has the best single score and 0.1 a better mean, but one of its seeds failed; a fresh seed chooses nothing.
    rows = rows_of({0.01: [1, 1, 1], 0.02: [2, 2, 2], 0.04: [5, 0, 0], 0.1: [9, 9, None]})
    rows += [row for row in rows_of({0.01: [0, 0, 0, 99]}, fresh=[3]) if row["fresh"]]
    choice = choose(rows, "ppo:validation/scores")
    assert choice.values == {"ppo.kl_coef": 0.02}
    assert (choice.mean, choice.seeds) == (2, (0, 1, 2))
    assert choose(rows, "-ppo:validation/scores").values == {"ppo.kl_coef": 0.01}
    table = format_table(rows, axes, ["ppo:validation/scores"], choice)
    assert "| 0.1 | 2 of 3 | 9 |" in table
    assert "failed: too hot" in table


def test_what_chooses_is_validation_data():
    axes = [parse_axis("reward.lr=1,2"), parse_axis("ppo.lr=1,2")]
    assert resolve_choice("", axes) == "ppo:validation/scores"
    assert resolve_choice("", axes[:1]) == "reward:validation/accuracy"
    assert resolve_choice("-ppo:validation/kl", axes) == "-ppo:validation/kl"
    for test_metric in ("preference:win_rate_vs_sft:ppo:training", "ppo:objective/scores", "validation"):
        with pytest.raises(InputError, match="of validation data"):
            resolve_choice(test_metric, axes)


@pytest.mark.parametrize("values", ["0,0.01,0.02,0.1", "1,2,3", "none,scale"])
def test_the_figure_draws_every_seed_and_the_paper(tmp_path, values):
    axes = [parse_axis(f"ppo.kl_coef={values}")]
    numbers = [float(value) if value[0].isdigit() else value for value in values.split(",")]
    rows = rows_of({number: [place, place + 0.5, place + 1] for place, number in enumerate(numbers)})
    path = tmp_path / "sweep.svg"
    assert write_figure(path, rows, axes, ["ppo:validation/scores", "tax:*:ppo", "absent"], 34, 0.05)
    text = path.read_text()
    ElementTree.fromstring(text)
    assert text.count("<svg") == 3  # the file and two panels
    assert "paper: reward, 1.3B" in text
    assert not write_figure(tmp_path / "none.svg", rows, axes, ["absent"])


def test_the_papers_horizontal_axis_is_scaled_to_the_recipes_choice(tmp_path):
    sweep = make_sweep(tmp_path, "ppo_ptx.ptx_coef=0.1,0.2")
    assert recipe_value(sweep, 33) == 0.2
    assert recipe_value(sweep, None) is None
    assert all(figure.choice is not None or not figure.curves for figure in PAPER_FIGURES.values())


TINY = """
run: {words: 20_000, demonstration_prompts: 30, ranking_prompts: 30, ppo_prompts: 30, labelers: 2}
pretrain: {vocabulary: 600, width: 16, layers: 1, heads: 2, tokens: 16_000, batch: 16, lr: 4.e-3}
start: {epochs: 1, batch: 16, lr: 1.e-3}
reward: {batch: 16, lr: 1.e-3}
sft: {epochs: 1, batch: 16, lr: 1.e-3, max_tokens: 12}
candidates: {max_tokens: 12}
ppo: &ppo {episodes: 32, batch: 16, minibatch: 8, lr: 1.e-4, value_lr: 1.e-3, max_tokens: 12, ema: 0.5}
ppo_ptx: {<<: *ppo, ptx_coef: 0.5, ptx_ratio: 0.25}
exam: {prompts: 10, samples: 1, labelers: 1, truth_samples: 1, toxicity_prompts: 4, exercises: 4, documents: 4,
       max_tokens: 12}
"""


@pytest.mark.slow
def test_a_whole_sweep(tmp_path, command):
    (tmp_path / "tiny.yaml").write_text(TINY)
    out = tmp_path / "sweep"
    arguments = [
        "sweep",
        str(tmp_path / "tiny.yaml"),
        "--vary",
        "ppo_ptx.ptx_coef=0,0.5",
        "--out",
        str(out),
        "--jobs",
        "2",
    ]
    command(*arguments)
    rows = [json.loads(line) for line in (out / "sweep.jsonl").read_text().splitlines()]
    assert [(row["values"]["ppo_ptx.ptx_coef"], row["seed"], row["fresh"]) for row in rows[:2]] == [
        (0, 0, False),
        (0.5, 0, False),
    ]
    assert [(row["seed"], row["fresh"], row["state"]) for row in rows[2:]] == [(1, True, "done")]
    for row in rows:
        cell = out / row["directory"]
        assert json.loads((cell / "run.json").read_text())["finished"]
        assert (cell / "report.html").exists()
        assert row["metrics"]["ppo_ptx:validation/scores"]
        parents = json.loads((cell / "ppo_ptx" / "run.json").read_text())["parents"]
        assert (cell / "start").is_symlink()
        assert not (cell / "ppo_ptx").is_symlink()
        assert parents["policy"]["sha256"]
    metrics = [row["metrics"] for row in rows]
    assert metrics[0]["reward:validation/accuracy"] == metrics[1]["reward:validation/accuracy"]
    assert metrics[0]["preference:rating:sft:training"] > 0
    assert len(list((out / "shared").glob("pretrain-*"))) == 2  # of two seeds
    before = {file: file.stat().st_mtime_ns for file in out.rglob("run.json")}
    command(*arguments)  # nothing is made again
    assert {file: file.stat().st_mtime_ns for file in out.rglob("run.json")} == before
    assert ElementTree.parse(out / "sweep.svg")


@pytest.mark.slow
def test_a_failed_cell_is_shown_and_made_again_only_with_retry(tmp_path, command):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"run: {{corpus: {tmp_path}/c.txt, demonstrations: {tmp_path}/d, rankings: {tmp_path}/r}}\n")
    line = ["sweep", recipe, "--vary", "ppo_ptx.kl_coef=0.01,0.02", "--out", tmp_path / "sweep"]
    for arguments, attempts in ((line, 1), (line, 1), ([*line, "--retry"], 2)):
        outcome = command(*arguments)
        assert outcome.code == 1
        assert "2 of 2 cells failed" in outcome.err
        rows = [json.loads(row) for row in (tmp_path / "sweep" / "sweep.jsonl").read_text().splitlines()]
        assert [row["state"] for row in rows] == ["blocked", "blocked"]
        assert all("needs pretrain-" in row["error"] for row in rows)
        assert "blocked: needs pretrain-" in (tmp_path / "sweep" / "sweep.md").read_text()
        (claims,) = (tmp_path / "sweep" / "claims").glob("pretrain-*")
        assert len(list(claims.iterdir())) == attempts
        assert "c.txt" in (claims / str(attempts) / "failed.json").read_text()


def test_intervals_over_seeds_stay_inside_a_shares_range() -> None:
    shares = mean_over_seeds("tax:passage_qa:ppo", [0.33, 0.99, 1.0])
    assert shares.value == pytest.approx(2.32 / 3)
    assert shares.low is not None
    assert shares.high is not None
    assert 0 <= shares.low < 0.33
    assert 0.99 < shares.high <= 1
    assert mean_over_seeds("tax:passage_qa:ppo", [1.0, 1.0, 1.0]).low is None
    loss = mean_over_seeds("tax:heldout_loss:ppo", [0.7, 0.8, 0.9])
    half = float(stats.t.ppf(0.975, 2)) * 0.1 / 3**0.5
    assert (loss.low, loss.high) == pytest.approx((0.8 - half, 0.8 + half))
    gains = mean_over_seeds("overoptimization:truth_gain:best_of_n:end", [-2.0, -0.5, 0.2])
    assert gains.low == pytest.approx(-2.3 / 3 - float(stats.t.ppf(0.975, 2)) * stdev([-2.0, -0.5, 0.2]) / 3**0.5)
