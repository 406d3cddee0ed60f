"""The preference evaluation: rankings, ratings, simulated labelers, reward models, and sampled completions."""

from __future__ import annotations

import json
import random

import pytest

from instructgpt.cli import run_command as command
from instructgpt.evaluate import preference_inputs
from instructgpt.evaluate.metrics.preference import measure_pooled_preference
from instructgpt.evaluate.reward.scores import ranks_by_score
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Ranking
from instructgpt.report.results import Results
from instructgpt.report.sections import preference as sections
from instructgpt.results import read_result_rows
from instructgpt.world import World


def ranking(
    prompt,
    ranks,
    labeler="ann",
    cohort=None,
    texts=("long text", "text", "mid txt"),
    models=("ppo", "sft", "base"),
    **more,
):
    return {
        "prompt": prompt,
        "completions": texts,
        "ranks": ranks,
        "labeler": labeler,
        "cohort": cohort,
        "models": models,
    } | more


RANKINGS = [
    ranking("p1", (1, 2, 3), cohort="training", ratings=(7, 5, 2), use_case="open_qa"),
    ranking("p1", (1, 1, 2), labeler="bob", cohort="training", ratings=(4, 5, 1), use_case="open_qa"),
    ranking("p2", (2, 1, 3), cohort="training", ratings=(4, 6, 3), use_case="chat"),
    ranking("p2", (1, 2, 3), labeler="eve", cohort="heldout", ratings=(6, 3, 3), use_case="chat"),
]


def found(rows, metric, model, condition=""):
    (row,) = [row for row in rows if (row.metric, row.model, row.condition) == (metric, model, condition)]
    return row


def evaluated(tmp_path, *line, code=0):
    out = tmp_path / "results.json"
    assert command(["evaluate", "preference", *map(str, line), "--out", str(out)]) == code
    return read_result_rows(out) if code == 0 else []


def test_rankings_by_people_match_hand_computation(write, tmp_path, capsys):
    rows = evaluated(tmp_path, "--data", write("rankings.jsonl", RANKINGS))
    assert found(rows, "win_rate_vs_sft", "ppo", "training").value == pytest.approx((1 + 0.5 + 0) / 3)
    assert found(rows, "win_rate_vs_sft", "ppo", "heldout").value == 1
    assert found(rows, "win_rate_vs_sft", "ppo").value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found(rows, "win_rate_vs_sft", "ppo", "training/open_qa").value == pytest.approx(0.75)
    assert found(rows, "tie_rate", "ppo").value == pytest.approx(1 / 4)
    assert found(rows, "rating_win_rate_vs_sft", "ppo").value == pytest.approx(2 / 4)  # won twice by rating, lost twice
    assert found(rows, "rating_win_rate_vs_sft", "base").value == pytest.approx(0.5 / 4)  # 3 beside 3 ties
    assert found(rows, "rating", "ppo", "training").value == 5
    assert found(rows, "length_difference", "ppo").value == len("long text") - len("text")
    assert found(rows, "bradley_terry", "base").value is None  # no finite strength without a win
    assert {row.judge for row in rows} == {""}
    said = capsys.readouterr().out
    assert "against sft" in said
    assert "62.5 [" in said


def test_ratings_without_ranks_give_ranks(write, tmp_path):
    rows = [{name: value for name, value in each.items() if name != "ranks"} for each in RANKINGS]
    measured = evaluated(tmp_path, "--data", write("ratings.jsonl", rows))
    assert (
        found(measured, "win_rate_vs_sft", "ppo").value == found(measured, "rating_win_rate_vs_sft", "ppo").value == 0.5
    )


def test_labels_are_measured_with_preference(write, tmp_path):
    labels = [
        {"hallucination": True, "inappropriate": None},
        {"hallucination": False, "inappropriate": None},
        {"hallucination": None},
    ]
    rows = evaluated(
        tmp_path, "--data", write("r.jsonl", [RANKINGS[0] | {"labels": labels}, RANKINGS[2] | {"labels": labels[::-1]}])
    )
    (row,) = [row for row in rows if (row.evaluation, row.metric, row.model) == ("labels", "hallucination", "ppo")]
    assert (row.value, row.n) == (1.0, 1)


def test_folder_uses_its_rankings_file(write, tmp_path):
    write("prompts.jsonl", [{"prompt": "p"}])
    write("rankings.jsonl", RANKINGS)
    assert found(evaluated(tmp_path, "--data", tmp_path), "win_rate_vs_sft", "ppo").n == 4


def test_baseline_option(write, tmp_path):
    rows = evaluated(tmp_path, "--data", write("r.jsonl", RANKINGS), "--baseline", "base")
    assert found(rows, "win_rate_vs_base", "sft").value == 1
    assert found(rows, "win_rate_vs_base", "sft", "training").low < 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            ["--data", "{file}", "--baseline", "gpt"],
            "--baseline gpt: no completion is by that model; available: base, ppo, sft",
        ),
        (["--data", "{none}"], "no rankings found"),
        (["--data", "{file}", "--max-tokens", "4"], "--max-tokens has no effect"),
        ([], "give --data"),
        (["--data", "{nameless}"], "does not name its models"),
        (["--data", "{bad}"], "bad.jsonl:1: 3 completions but 2 ranks"),
    ],
)
def test_errors_are_reported_in_one_line(write, tmp_path, capsys, line, said):
    (tmp_path / "empty").mkdir()
    places = {
        "file": write("r.jsonl", RANKINGS),
        "none": tmp_path / "empty",
        "nameless": write("nameless.jsonl", [RANKINGS[0] | {"models": None}]),
        "bad": write("bad.jsonl", [RANKINGS[0] | {"ranks": (1, 2)}]),
    }
    evaluated(tmp_path, *(word.format(**places) for word in line), code=2)
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not (tmp_path / "results.json").exists()


def test_pooled_measures_are_clustered_by_prompt_and_labeler():
    rng = random.Random(0)
    sharp = {f"l{i}": rng.random() for i in range(8)}
    rows = []
    for p in range(60):
        for labeler in rng.sample(sorted(sharp), 3):
            wins = rng.random() < sharp[labeler]
            rows.append(
                Ranking(
                    prompt=f"p{p}",
                    completions=("a", "bb"),
                    ranks=(1, 2) if wins else (2, 1),
                    labeler=labeler,
                    models=("new", "sft"),
                )
            )
    measured = measure_pooled_preference(rows, "sft")
    wide = found(measured, "length_difference", "new")
    assert (wide.value, wide.low, wide.high) == (-1, None, None)  # nothing varied: how far it may is not known
    strength = found(measured, "bradley_terry", "new")
    alone = measure_pooled_preference([row.model_copy(update={"labeler": f"{i}"}) for i, row in enumerate(rows)], "sft")
    lonely = found(alone, "bradley_terry", "new")
    assert strength.high - strength.low > 1.5 * (lonely.high - lonely.low)


# --- judges ------------------------------------------------------------------------------------------------------


def test_simulated_labelers_prefer_right_answers(write, tmp_path):
    world = World(0)
    prompts = list(world.prompts("test", 30))
    right = [world.task(each.prompt).gold_answer(random.Random(i)) for i, each in enumerate(prompts)]
    rows = [
        {"prompt": prompt.prompt, "completion": text, "model": model}
        for i, prompt in enumerate(prompts)
        for model, text in (("good", right[i]), ("sft", right[i - 1]))
    ]
    measured = evaluated(tmp_path, "--completions", write("c.jsonl", rows), "--judge", "simulated")
    for cohort in ("training", "heldout"):
        assert found(measured, "win_rate_vs_sft", "good", cohort).low > 0.7
    assert found(measured, "rating", "good", "training").value > found(measured, "rating", "sft", "training").value + 1
    assert {row.judge for row in measured} == {"simulated labelers of seed 0"}


def test_reward_model_judges_by_score(save_reward, write, tmp_path):
    folder = save_reward()
    texts = {"ppo": "croak", "sft": "moo", "base": "blue by day", "long": "blue " * 100}
    rows = [
        {"prompt": f"What does frog {i} say?", "completion": f"{text} {i}", "model": model}
        for i in range(5)
        for model, text in texts.items()
    ]
    measured = evaluated(tmp_path, "--completions", write("c.jsonl", rows), "--judge", folder)
    reward = load_reward_model(folder, "cpu")
    examples = [
        [reward.tokenizer.encode_example(row["prompt"], row["completion"]) for row in rows if row["model"] == model]
        for model in ("ppo", "sft")
    ]
    ppo, sft = (reward.score(each) for each in examples)
    assert found(measured, "win_rate_vs_sft", "ppo", folder.name).value == pytest.approx(
        float((ppo > sft).float().mean())
    )
    assert not [row for row in measured if row.model == "long"]  # longer than the context: left out
    (judge,) = {row.judge for row in measured}
    assert judge.startswith(f"{folder.name} sha256:")
    kept = [
        json.loads(line) for line in (tmp_path / "results" / "preference" / "rankings.jsonl").read_text().splitlines()
    ]
    assert {len(each["completions"]) for each in kept} == {3}


def test_models_are_sampled_once(save, save_reward, write, tmp_path, monkeypatch):
    prompts = write(
        "prompts.jsonl",
        [{"prompt": f"Name colour {i}.", "use_case": "chat"} for i in range(6)] + [{"prompt": "long " * 200}],
    )
    line = [
        "--model",
        f"sft={save('gpt2')}",
        f"new={save('llama')}",
        "--data",
        prompts,
        "--max-tokens",
        "8",
        "--judge",
        save_reward(),
    ]
    rows = evaluated(tmp_path, *line)
    said = [
        json.loads(line)
        for line in (tmp_path / "results" / "preference" / "completions.jsonl").read_text().splitlines()
    ]
    assert [(each["model"], each["prompt"]) for each in said] == [
        (m, f"Name colour {i}.") for m in ("sft", "new") for i in range(6)
    ]
    assert found(rows, "win_rate_vs_sft", "new", f"{save_reward().name}/chat").n == 6

    def never(*_args, **_kwargs):
        raise AssertionError("asked again")

    monkeypatch.setattr(preference_inputs, "generate", never)
    assert evaluated(tmp_path, *line) == rows
    monkeypatch.undo()
    other = evaluated(tmp_path, *line, "--seed", "1")
    assert (tmp_path / "results" / "preference" / "completions.jsonl").read_text() != json.dumps(said)
    assert {row.metric for row in other} == {row.metric for row in rows}


def test_limit_samples_whole_prompts(write, tmp_path):
    rows = evaluated(tmp_path, "--data", write("r.jsonl", RANKINGS), "--limit", "1")
    counts = [
        row.n
        for row in rows
        if (row.metric, row.model) == ("win_rate_vs_sft", "ppo") and row.condition in ("training", "heldout")
    ]
    assert sum(counts) == 2


def test_report_shows_length_controlled_rates(write, tmp_path):
    rng = random.Random(1)
    rows = [
        ranking(
            f"p{i}",
            (1, 2, 3) if rng.random() < 0.6 else (3, 2, 1),
            texts=tuple(letter * rng.randint(5, 40) for letter in "xyz"),
            models=("mine", "theirs", "small"),
        )
        for i in range(60)
    ]
    measured = evaluated(tmp_path, "--data", write("r.jsonl", rows), "--baseline", "theirs")
    section = sections.length_controlled_section(Results.from_rows(measured), [])
    assert section.figure.count("<svg") == 1
    best = found(measured, "length_controlled_win_rate_vs_theirs", "mine")
    other = found(measured, "length_controlled_win_rate_vs_theirs", "small")
    assert ("mine" if best.value > other.value else "small") in section.headline
    assert "as they are" in section.figure
    assert len(section.tables) == 2
    assert sections.length_controlled_section(Results.from_rows([]), []) is None


def test_ranks_by_score():
    assert ranks_by_score([3.0, 9.0, 3.0, 1.0]) == (2, 1, 2, 4)
    assert ranks_by_score([]) == ()
