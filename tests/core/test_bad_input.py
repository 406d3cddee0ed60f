"""Bad files and output paths: a one-line error that names the fix, exit code 2, nothing half written.

pytest tests/core/test_bad_input.py
"""

from __future__ import annotations

import json
import re
import shutil

import huggingface_hub.constants
import pytest
import safetensors.torch
from support.commands import edit_json, snapshot, write

from instructgpt import cli

GOOD = {"prompt": "colour of sky 1", "completion": "blue"}
RANKING = {"prompt": "colour of sky 1", "completions": ["blue", "red"], "ranks": [1, 2]}
LONG = "sky " * 60


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / f"copy of {folder.name}")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ('{"prompt": "x", "completion": ', ":2: not valid JSON"),
        ("[1, 2]", ":2: expected a JSON object, found list"),
        (
            {"question": "x", "answer": "y"},
            ":2: column 'completion' is missing (columns found: question, answer); 'data import' reads other formats",
        ),
        ({"prompt": "x", "completion": 3}, ":2: column 'completion': Input should be a valid string"),
        ({"prompt": "  ", "completion": "y"}, ":2: 'prompt' is empty"),
        ({"completion": "y"}, ":2: expected 'prompt' (text) or 'messages'"),
    ],
)
def test_bad_line_error_names_file_and_line(second, said, kit, command, tmp_path, out):
    file = write(tmp_path / "d.jsonl", [GOOD, second])
    for argv in (kit.sft(out, "--data", file), ["score", "--reward", kit.reward, "--data", file, "--out", out]):
        told = command(*argv).error_line(2)
        assert said in told
        assert f"{file}:2: " in told
        assert "--skip-bad" in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ranks": [1]}, ":2: 2 completions but 1 ranks"),
        ({"ranks": [0, 1]}, ":2: ranks start at 1 (best), found 0"),
        ({"ranks": ["best", "worst"]}, ":2: column 'ranks.0'"),
        ({"completions": ["one"], "ranks": [1]}, ":2: a ranking needs at least two completions"),
        ({"cohort": "other"}, ":2: column 'cohort': Input should be 'training', 'heldout' or 'user'"),
    ],
)
def test_bad_ranking_error_names_the_problem(change, said, kit, command, tmp_path, out):
    file = write(tmp_path / "r.jsonl", [RANKING, RANKING | change])
    assert f"{file}{said}" in command(*kit.train_reward(out, "--data", file)).error_line(2)
    assert not out.exists()


def test_unreadable_data_files_are_input_errors(kit, command, tmp_path, out):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "completion": "x"}\n')
    write(tmp_path / "empty.jsonl", [])
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "d.txt", ["text"])
    assert "no such file" in command(*kit.sft(out, "--data", tmp_path / "folder" / "d.csv")).error_line(2)
    for name, said in {
        "gone.jsonl": "o such file",
        "latin.jsonl": "not UTF-8 text",
        "empty.jsonl": "contains no demonstration",
    }.items():
        told = command(*kit.sft(out, "--data", tmp_path / name)).error_line(2)
        assert said in told
        assert name in told
    assert not out.exists()


def test_skip_bad_skips_and_counts_bad_lines(kit, command, tmp_path, out):
    file = tmp_path / "d.jsonl"
    file.write_text(kit.demonstrations.read_text(encoding="utf-8") + "{\n[]\n", encoding="utf-8")
    done = command(*kit.sft(out, "--data", file, "--skip-bad"))
    assert done.code == 0, done
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["left_out"] == {
        "longer than the context": 0,
        "bad lines": 2,
    }
    assert "'bad lines': 2" in " ".join(done.out.split())


def test_empty_completion_is_a_valid_demonstration(kit, command, tmp_path, out):
    rows = [json.loads(line) for line in kit.demonstrations.read_text(encoding="utf-8").splitlines()]
    file = write(tmp_path / "d.jsonl", [row | {"completion": ""} for row in rows])
    assert command(*kit.sft(out, "--data", file)).code == 0
    assert command("score", "--reward", kit.reward, "--data", file, "--out", tmp_path / "s.jsonl").code == 0
    assert len((tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()) == len(rows)


def test_reward_refuses_rankings_without_ranked_pairs(kit, command, tmp_path, out):
    rows = [json.loads(line) | {"ranks": [1, 1, 1]} for line in kit.rankings.read_text(encoding="utf-8").splitlines()]
    told = command(*kit.train_reward(out, "--data", write(tmp_path / "r.jsonl", rows))).error_line(2)
    assert "0 prompts with a decided pair to train on, 0 to validate on" in told
    assert not out.exists()


def test_rankings_that_are_all_too_long_are_refused_with_the_reason(kit, command, tmp_path, out):
    long = "a long way to go " * 400
    rows = [{"prompt": f"p{n}", "completions": [f"x {long}", f"y {long}"], "ranks": [1, 2]} for n in range(3)]
    file = write(tmp_path / "long.jsonl", rows)
    told = command(*kit.train_reward(out, "--data", file, "--validation", file)).error_line(2)
    assert re.search(r"left out, with a context of \d+ tokens: .*completions longer than the context: 6", told)
    assert not out.exists()


def test_tied_rankings_are_counted(kit, command, tmp_path, out):
    rows = [json.loads(line) for line in kit.rankings.read_text(encoding="utf-8").splitlines()]
    tied = [rows[0] | {"ranks": [1, 1, 1], "prompt": f"tied {i}"} for i in range(5)]
    assert command(*kit.train_reward(out, "--data", write(tmp_path / "r.jsonl", rows + tied))).code == 0
    left_out = json.loads((out / "run.json").read_text(encoding="utf-8"))["left_out"]
    assert {reason: count for reason, count in left_out.items() if count} == {"rankings without a decided pair": 5}


# --- what is too long ------------------------------------------------------------------------------------------------


def test_sample_refuses_or_skips_prompts_longer_than_the_context(kit, command, tmp_path, out):
    file = write(tmp_path / "p.jsonl", [{"prompt": "sky"}, {"prompt": LONG}, "{", {"prompt": "sea"}])
    argv = ["sample", "--model", kit.base, "--prompts", file, "--max-tokens", 4, "--out", out]
    assert f"{file}:3: not valid JSON" in command(*argv).error_line(2)
    write(file, [{"prompt": "sky"}, {"prompt": LONG}, {"prompt": "sea"}])
    told = command(*argv).error_line(2)
    assert f"{file}: prompt 'sky sky" in told
    assert "the context leaves 44 before --max-tokens 4" in told
    assert not out.exists()
    done = command(*argv, "--skip-bad", "--n", 2)
    assert done.code == 0
    assert "4 completions of 2 prompts" in done.out
    assert "left out: 1" in done.out
    assert [json.loads(line)["prompt"] for line in out.read_text(encoding="utf-8").splitlines()] == [
        "sky",
        "sky",
        "sea",
        "sea",
    ]
    write(file, [{"prompt": LONG}])
    assert "nothing is left, 1 records were left out" in command(*argv, "--skip-bad").error_line(2)


def test_score_refuses_or_skips_completions_longer_than_the_context(kit, command, tmp_path, out):
    messages = [{"role": "user", "content": "sea"}]
    rows = [
        GOOD | {"note": 1},
        GOOD | {"completion": LONG},
        {"messages": messages, "completion": "red"},
    ]
    file = write(tmp_path / "c.jsonl", rows)
    argv = ["score", "--reward", kit.reward, "--data", file, "--out", out]
    assert "makes" in (told := command(*argv).error_line(2))
    assert "the reward model's context is 48" in told
    assert command(*argv, "--skip-bad").code == 0
    scored = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [{key: value for key, value in row.items() if key not in ("score", "finish")} for row in scored] == [
        rows[0],
        rows[2],
    ]
    assert all(isinstance(row["score"], float) for row in scored)
    write(file, [GOOD | {"completion": LONG}])
    assert "nothing is left" in command(*argv, "--skip-bad").error_line(2)
    write(file, [GOOD | {"finish": "sometimes"}])
    assert "c.jsonl:1: column 'finish': Input should be 'stop' or 'length'" in command(*argv).error_line(2)


def test_stages_skip_and_count_examples_longer_than_the_context(kit, command, tmp_path):
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "sky"}, {"prompt": LONG}])
    assert command(*kit.ppo(tmp_path / "ppo", "--prompts", prompts)).code == 0
    assert json.loads((tmp_path / "ppo" / "run.json").read_text(encoding="utf-8"))["left_out"] == {
        "prompts too long": 1,
        "bad lines": 0,
    }
    rows = [json.loads(line) for line in kit.demonstrations.read_text(encoding="utf-8").splitlines()]
    data = write(tmp_path / "d.jsonl", [*rows, {"prompt": LONG, "completion": "x"}])
    assert command(*kit.sft(tmp_path / "sft", "--data", data)).code == 0
    assert (
        json.loads((tmp_path / "sft" / "run.json").read_text(encoding="utf-8"))["left_out"]["longer than the context"]
        == 1
    )


def test_no_fitting_example_is_an_input_error(kit, command, tmp_path, out):
    prompts = write(tmp_path / "p.jsonl", [{"prompt": LONG}])
    told = command(*kit.ppo(out, "--prompts", prompts)).error_line(2)
    assert "none of the 1 prompts leaves room for --max-tokens 6: a prompt may have 42 tokens here" in told
    rows = [{"prompt": LONG + str(i), "completion": "x"} for i in range(40)]
    assert "no demonstration fits the context of 48" in command(
        *kit.sft(out, "--data", write(tmp_path / "d.jsonl", rows))
    ).error_line(2)
    corpus = write(tmp_path / "c.jsonl", [{"text": "a"}, {"text": "b"}])
    assert "less than one window" in command(*kit.pretrain(out, "--corpus", corpus)).error_line(2)
    assert not out.exists()


# --- models ----------------------------------------------------------------------------------------------------------


def test_invalid_model_directories_are_input_errors(kit, command, monkeypatch, tmp_path, out):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    bare, halved, hollow = (copied(kit.base, tmp_path / name) for name in ("1", "2", "3"))
    for file in bare.glob("*token*"):
        file.unlink()
    weights = halved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (hollow / "model.safetensors").unlink()
    garbled = copied(kit.base, tmp_path / "4")
    (garbled / "tokenizer.json").write_text("{", encoding="utf-8")
    for model, said in {
        tmp_path / "gone": "no such directory",
        tmp_path / "empty": "no tokenizer in this model directory; save one there",
        kit.corpus: "is a file, expected the directory of a model",
        "nosuchmodel": "there is no such directory, and no model of that name can be loaded from the hub",
        bare: "no tokenizer in this model directory",
        halved: "cannot be loaded",
        hollow: "cannot be loaded",
        garbled: "cannot be loaded",
    }.items():
        told = command(
            "sample", "--model", model, "--prompts", kit.prompts, "--max-tokens", 4, "--out", out
        ).error_line(2)
        assert said in told
        assert str(model) in told
    assert str(bare) in command(*kit.sft(out, "--base", bare)).error_line(2)
    assert not out.exists()


def test_reward_model_without_head_or_with_two_offsets_is_an_input_error(kit, command, tmp_path, out):
    headless, labeled, twofold = (copied(kit.reward, tmp_path / name) for name in ("1", "2", "3"))
    weights = safetensors.torch.load_file(headless / "model.safetensors")
    del weights["score.weight"]
    safetensors.torch.save_file(weights, headless / "model.safetensors", {"format": "pt", "score_offset": "0.0"})
    edit_json(labeled / "config.json", lambda config: config.update(id2label={0: "no", 1: "yes"}))
    edit_json(twofold / "config.json", lambda config: config.update(score_offset=99.0))
    for reward, said in {
        headless: "weights are missing from the files: score.weight; train one with 'instructgpt reward'",
        kit.base: "not a reward model",
        labeled: "is a classifier with 2 labels (no, yes), expected a reward model",
        twofold: "the files belong to two models",
    }.items():
        score = ["score", "--reward", reward, "--data", kit.demonstrations, "--out", out]
        for argv in (score, kit.ppo(out, "--reward", reward)):
            told = command(*argv).error_line(2)
            assert said in told
            assert str(reward) in told
    assert not out.exists()


def test_a_missing_offset_is_measured_or_said(kit, command, tmp_path, out):
    """Scores with the measured offset average 0 over the demonstrations."""
    folder = copied(kit.reward, tmp_path / "plain")
    edit_json(folder / "config.json", lambda config: config.pop("score_offset"))
    safetensors.torch.save_file(
        safetensors.torch.load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt"}
    )
    argv = ["score", "--reward", folder, "--data", kit.demonstrations, "--out", out]
    assert "records no offset" in command(*argv).out
    measured = command(*argv, "--demonstrations", kit.demonstrations)
    assert "measured on" in measured.out
    scores = [json.loads(line)["score"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert abs(sum(scores) / len(scores)) < 1e-5


def test_missing_device_is_an_input_error(kit, command, out):
    told = command(*kit.sft(out, "--device", "cuda:77")).error_line(2)
    assert told.startswith("--device cuda:77: not a device that works here")
    assert not out.exists()


# --- output paths ----------------------------------------------------------------------------------------------------


def test_output_path_is_checked_before_any_computation(kit, command, tmp_path):
    file = write(tmp_path / "file", ["x"])
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "README.md", ["my notes"])
    before = snapshot(tmp_path)
    for place, said in {
        file: f"--out {file}: is a file, expected a directory",
        file / "under": f"--out {file / 'under'}: {file} is not a directory; choose another --out",
        file / "far" / "under": f"{file} is not a directory",
        tmp_path / "mine": "is not empty and is not a run directory; choose another --out",
    }.items():
        assert said in command(*kit.pretrain(place, "--corpus", "gone")).error_line(2)
    told = command("sample", "--model", "./gone", "--prompts", "gone", "--out", file / "under.jsonl").error_line(2)
    assert f"{file} is not a directory" in told
    assert "is a directory" in command(
        "sample", "--model", "./gone", "--prompts", "gone", "--out", tmp_path / "mine"
    ).error_line(2)
    assert "is a directory" in command("score", "--reward", "./gone", "--data", "gone", "--out", "").error_line(2)
    assert snapshot(tmp_path) == before


def test_output_directory_of_another_run_is_refused(kit, command):
    before = snapshot(kit.folder)
    for argv, said in {
        tuple(kit.sft(kit.reward)): "holds a run of stage 'reward', not of 'sft'; choose another --out",
        tuple(
            kit.pretrain(kit.base, "--lr", 0.5)
        ): "--lr was 0.003 when the run started and is 0.5 now; choose another --out, or restart",
        tuple(kit.pretrain(kit.base, "--tokens", 64 * 6)): "--tokens was 768 when the run started and is 384 now",
        tuple(kit.train_reward(kit.reward, "--seed", 7)): "--seed was 0 when the run started and is 7 now",
        tuple(kit.sft(kit.reward, "--no-resume")): "not of 'sft'",
        tuple(kit.ppo(kit.folder, "--no-resume")): "contains the input policy",
    }.items():
        assert said in command(*argv).error_line(2)
    assert snapshot(kit.folder) == before


def test_finished_run_is_not_repeated(kit, command):
    before = snapshot(kit.folder)
    for argv in (kit.pretrain(kit.base), kit.train_reward(kit.reward)):
        assert command(*argv).code == 0
    assert snapshot(kit.folder) == before


def test_changed_parent_is_refused(kit, command, tmp_path, out):
    base = copied(kit.base, tmp_path)
    assert command(*kit.sft(out, "--base", base)).code == 0
    edit_json(base / "config.json", lambda config: config.update(note="another"))
    assert f"'base' ({base}) has changed since the run started" in command(*kit.sft(out, "--base", base)).error_line(2)
    assert command(*kit.sft(out, "--base", base, "--no-resume")).code == 0


def test_no_resume_deletes_nothing_before_input_is_valid(kit, command, tmp_path):
    base = copied(kit.base, tmp_path)
    before = snapshot(base)
    command(*kit.pretrain(base, "--no-resume", "--corpus", tmp_path / "gone.jsonl")).error_line(2)
    assert snapshot(base) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "pretrain"}'])
def test_corrupt_run_json_is_an_input_error(content, kit, command, tmp_path):
    base = copied(kit.base, tmp_path)
    (base / "run.json").write_text(content, encoding="utf-8")
    told = command(*kit.pretrain(base)).error_line(2)
    assert f"{base / 'run.json'}: corrupt" in told
    assert f"delete {base} and run the same command again" in told


# --- the whole paper -------------------------------------------------------------------------------------------------


def test_run_reads_all_files_before_it_starts(kit, command, tmp_path, out):
    rankings = write(tmp_path / "r.jsonl", [RANKING, RANKING | {"ranks": [1]}])
    files = ["--corpus", kit.corpus, "--demonstrations", kit.demonstrations, "--rankings", rankings]
    assert f"{rankings}:2: 2 completions but 1 ranks" in command(
        "run", "--preset", "smoke", *files, "--out", out
    ).error_line(2)
    assert not out.exists()


def test_run_refuses_changed_settings(command, out):
    argv = ["run", "--preset", "smoke", "--out", str(out)]
    out.mkdir()
    config = json.loads(cli.parse(argv)[1].model_dump_json())
    write(out / "run.json", [{"stage": "run", "finished": False, "config": config, "parents": {}}])
    settings = write(out.parent / "mine.yaml", ["ppo: {lr: 0.5}"])
    told = command(*argv, "--config", settings).error_line(2)
    assert "ppo.lr was 0.0001 when the run started and is 0.5 now" in told
