"""Where results go, how a second command adds to them, and which names and options it suggests."""

from __future__ import annotations

import json
import re
import threading

import pytest

from instructgpt.cli import run_command as command
from instructgpt.evaluate.output import add_result_rows, resolve_results_path
from instructgpt.results import ResultRow, merge_result_rows, read_result_rows, write_result_rows


def row(evaluation, metric, model, condition="", value=0.5, judge=""):
    return ResultRow(evaluation, metric, model, condition, value, None, None, 3, judge)


def write_samples(folder, model, count=3):
    file = folder / f"{model}.jsonl"
    rows = [{"model": model, "context": f"c{i}", "sample": "x", "ref_text": "x|y"} for i in range(count)]
    file.write_text("".join(json.dumps(sample) + "\n" for sample in rows))
    return str(file)


def test_a_second_command_adds_its_rows_and_replaces_its_own(tmp_path, capsys):
    out = tmp_path / "results.json"
    for words in (["squad", "a"], ["drop", "a"], ["squad", "b"]):
        file = write_samples(tmp_path, words[1])
        assert command(["evaluate", words[0], "--completions", file, "--out", str(out)]) == 0
    assert re.search(r"beside \d+ rows of earlier commands", capsys.readouterr().out)
    rows = {(each.evaluation, each.metric, each.model): each.n for each in read_result_rows(out)}
    assert {key[::2] for key in rows} == {("squad", "a"), ("drop", "a"), ("squad", "b")}
    assert command(["evaluate", "squad", "--completions", write_samples(tmp_path, "a", 7), "--out", str(out)]) == 0
    found = read_result_rows(out)
    assert len({(each.evaluation, each.metric, each.model, each.condition) for each in found}) == len(found)
    assert {each.n for each in found if (each.evaluation, each.model) == ("squad", "a")} == {7}
    assert {each.n for each in found if (each.evaluation, each.model) != ("squad", "a")} == {3}


def test_what_a_command_no_longer_measures_does_not_stay():
    """A share of missing scores, or of unreadable verdicts, belongs to the numbers it was measured with."""
    earlier = [
        row("real_toxicity", "mean_toxicity", "m", judge="s"),
        row("real_toxicity", "unscored", "m", judge="s"),
        row("real_toxicity", "unscored", "other", judge="s"),
        row("preference", "win_rate_vs_sft", "m", "judge-1", judge="judge-1 at URL"),
        row("preference", "win_rate_vs_sft", "m", "training"),
        row("difference", "real_toxicity/mean_toxicity", "m", "sft", judge="s"),
        row("difference", "squad/f1", "m", "sft"),
    ]
    new = [
        row("real_toxicity", "mean_toxicity", "m", value=0.1, judge="s"),
        row("preference", "win_rate_vs_sft", "m", "judge-2", judge="judge-2 at URL"),
    ]
    assert merge_result_rows(earlier, new) == [earlier[2], earlier[3], earlier[4], earlier[6], *new]


def test_equal_keys_are_replaced_whoever_judged():
    earlier = [row("real_toxicity", "mean_toxicity", "m", judge="first"), row("squad", "f1", "m")]
    new = [row("real_toxicity", "mean_toxicity", "m", judge="second")]
    assert merge_result_rows(earlier, new) == [earlier[1], *new]


def test_commands_at_the_same_time_lose_nothing(tmp_path):
    out = tmp_path / "results.json"
    threads = [
        threading.Thread(target=add_result_rows, args=(out, [row("squad", "f1", f"m{place}")])) for place in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.model for each in read_result_rows(out)} == {f"m{place}" for place in range(12)}


def test_default_place_is_where_report_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in ("runs/mine/sft", "runs/mine/ppo", "runs/other/ppo", "models/gpt2"):
        (tmp_path / stage).mkdir(parents=True)
        if stage != "models/gpt2":
            (tmp_path / stage / "run.json").write_text("{}")
    cases = {
        ("runs/mine/sft", "runs/mine/ppo"): "runs/mine/results.json",
        ("runs/mine/ppo", "runs/other/ppo"): "results.json",
        ("runs/mine/ppo", "models/gpt2"): "results.json",
        ("owner/name",): "results.json",
        (): "results.json",
    }
    for models, expected in cases.items():
        assert str(resolve_results_path(None, models)) == expected


def test_out_is_a_file_or_a_folder(tmp_path):
    assert resolve_results_path(tmp_path, ()) == tmp_path / "results.json"
    assert resolve_results_path(tmp_path / "new", ()) == tmp_path / "new" / "results.json"
    assert resolve_results_path(tmp_path / "x.json", ()) == tmp_path / "x.json"
    file = write_samples(tmp_path, "a")
    assert command(["evaluate", "squad", "--completions", file, "--out", str(tmp_path / "folder")]) == 0
    assert read_result_rows(tmp_path / "folder" / "results.json")


@pytest.mark.parametrize("content", ["{", '{"a": 1}', '[{"model": "x"}]'])
def test_a_file_of_something_else_is_kept(tmp_path, capsys, content):
    """The mistake is named before anything is measured."""
    out = tmp_path / "mine.json"
    out.write_text(content)
    assert command(["evaluate", "squad", "--completions", write_samples(tmp_path, "a"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "name another" in error
    assert error.count("\n") == 1
    assert out.read_text() == content


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["preferences"], "no evaluation 'preferences', did you mean 'preference'?"),
        (["squadv2"], "no evaluation 'squadv2', did you mean 'squad'?"),
        (["truthfulqa", "wsc", "hellaswg", "--model", "m"], "no evaluation 'hellaswg', did you mean 'hellaswag'?"),
        (["squad", "--model", "m", "--data", "sqaud=f.jsonl"], "sqaud is not among the requested evaluations, did you"),
        (["squad", "--model", "m", "--data", "drop=f.jsonl"], "drop is not among the requested evaluations"),
        (["squad", "--completions", "sqad=FILE"], "sqad is not among the requested evaluations, did you mean 'squad'?"),
        (["all", "--completions", "sqad=FILE"], "no evaluation 'sqad', did you mean 'squad'?"),
        (["squad", "--judge-temperature", "0"], "--judge-temperature has no effect without the evaluation preference"),
        (["preference", "--judge", "m", "--judge-temperature", "0"], "unless --judge is the address of an endpoint"),
        (["preference", "--judge", "simulated", "--judge-max-tokens", "9"], "--judge-max-tokens has no effect unless"),
    ],
)
def test_misspelt_names_and_options_without_effect_are_named(tmp_path, capsys, words, complaint):
    file = write_samples(tmp_path, "a")
    words = [word.replace("FILE", file) for word in words]
    assert command(["evaluate", *words, "--out", str(tmp_path / "r.json")]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_report_shows_rows_of_both_commands(tmp_path):
    out = tmp_path / "results.json"
    write_result_rows(out, [row("squad", "f1", "m", "zero_shot")])
    add_result_rows(out, [row("drop", "f1", "m", "zero_shot")])
    assert command(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "SQuADv2" in page
    assert "DROP" in page
