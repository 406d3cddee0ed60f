"""Bad files and bad places: one clear line that names the mend, exit code 2, nothing half written.

pytest tests/core/test_bad_input.py
"""

from __future__ import annotations

import json
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
        ({"completion": "y"}, ":2: expected either 'prompt' (text) or 'messages'"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(second, said, kit, command, tmp_path, out):
    file = write(tmp_path / "d.jsonl", [GOOD, second])
    for argv in (kit.sft(out, "--data", file), ["score", "--reward", kit.reward, "--data", file, "--out", out]):
        told = command(*argv).complaint(2)
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
        ({"cohort": "other"}, ":2: column 'cohort': Input should be 'training' or 'heldout'"),
    ],
)
def test_a_bad_ranking_is_named(change, said, kit, command, tmp_path, out):
    file = write(tmp_path / "r.jsonl", [RANKING, RANKING | change])
    assert f"{file}{said}" in command(*kit.train_reward(out, "--data", file)).complaint(2)
    assert not out.exists()


def test_files_that_are_no_files(kit, command, tmp_path, out):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "completion": "x"}\n')
    write(tmp_path / "empty.jsonl", [])
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "d.txt", ["text"])
    assert "no such file" in command(*kit.sft(out, "--data", tmp_path / "folder" / "d.csv")).complaint(2)
    for name, said in {
        "gone.jsonl": "o such file",
        "latin.jsonl": "not UTF-8 text",
        "empty.jsonl": "no demonstration in it",
    }.items():
        told = command(*kit.sft(out, "--data", tmp_path / name)).complaint(2)
        assert said in told
        assert name in told
    assert not out.exists()


def test_bad_lines_can_be_left_out_and_are_counted(kit, command, tmp_path, out):
    file = tmp_path / "d.jsonl"
    file.write_text(kit.demonstrations.read_text(encoding="utf-8") + "{\n[]\n", encoding="utf-8")
    done = command(*kit.sft(out, "--data", file, "--skip-bad"))
    assert done.code == 0, done
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["left_out"] == {
        "longer than the context": 0,
        "bad lines": 2,
    }
    assert "'bad lines': 2" in " ".join(done.out.split())


def test_an_empty_completion_is_a_demonstration(kit, command, tmp_path, out):
    rows = [json.loads(line) for line in kit.demonstrations.read_text(encoding="utf-8").splitlines()]
    file = write(tmp_path / "d.jsonl", [row | {"completion": ""} for row in rows])
    assert command(*kit.sft(out, "--data", file)).code == 0
    assert command("score", "--reward", kit.reward, "--data", file, "--out", tmp_path / "s.jsonl").code == 0
    assert len((tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()) == len(rows)


def test_rankings_that_all_tie_teach_nothing(kit, command, tmp_path, out):
    rows = [json.loads(line) | {"ranks": [1, 1, 1]} for line in kit.rankings.read_text(encoding="utf-8").splitlines()]
    told = command(*kit.train_reward(out, "--data", write(tmp_path / "r.jsonl", rows))).complaint(2)
    assert "0 prompts with a decided pair to train on, 0 to validate on" in told
    assert not out.exists()


def test_some_rankings_tie_and_are_counted(kit, command, tmp_path, out):
    rows = [json.loads(line) for line in kit.rankings.read_text(encoding="utf-8").splitlines()]
    tied = [rows[0] | {"ranks": [1, 1, 1], "prompt": f"tied {i}"} for i in range(5)]
    assert command(*kit.train_reward(out, "--data", write(tmp_path / "r.jsonl", rows + tied))).code == 0
    left_out = json.loads((out / "run.json").read_text(encoding="utf-8"))["left_out"]
    assert {reason: count for reason, count in left_out.items() if count} == {"rankings without a decided pair": 5}


# --- what is too long ------------------------------------------------------------------------------------------------


def test_sample_refuses_a_prompt_longer_than_the_context_or_leaves_it_out(kit, command, tmp_path, out):
    file = write(tmp_path / "p.jsonl", [{"prompt": "sky"}, {"prompt": LONG}, "{", {"prompt": "sea"}])
    argv = ["sample", "--model", kit.base, "--prompts", file, "--max-tokens", 4, "--out", out]
    assert f"{file}:3: not valid JSON" in command(*argv).complaint(2)
    write(file, [{"prompt": "sky"}, {"prompt": LONG}, {"prompt": "sea"}])
    told = command(*argv).complaint(2)
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
    assert "nothing is left, 1 records were left out" in command(*argv, "--skip-bad").complaint(2)


def test_score_refuses_a_completion_longer_than_the_context_or_leaves_it_out(kit, command, tmp_path, out):
    messages = [{"role": "user", "content": "sea"}]
    rows = [
        GOOD | {"note": 1},
        GOOD | {"completion": LONG},
        {"messages": messages, "completion": "red", "prompt": "sea"},
    ]
    file = write(tmp_path / "c.jsonl", rows)
    argv = ["score", "--reward", kit.reward, "--data", file, "--out", out]
    assert "makes" in (told := command(*argv).complaint(2))
    assert "the reward model's context is 48" in told
    assert command(*argv, "--skip-bad").code == 0
    scored = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [{key: value for key, value in row.items() if key not in ("score", "finish")} for row in scored] == [
        rows[0],
        rows[2],
    ]
    assert all(isinstance(row["score"], float) for row in scored)
    write(file, [GOOD | {"completion": LONG}])
    assert "nothing is left" in command(*argv, "--skip-bad").complaint(2)
    write(file, [GOOD | {"finish": "sometimes"}])
    assert "c.jsonl:1: column 'finish': Input should be 'stop' or 'length'" in command(*argv).complaint(2)


def test_stages_leave_out_what_is_too_long_and_count_it(kit, command, tmp_path):
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


def test_nothing_that_fits_is_bad_input(kit, command, tmp_path, out):
    prompts = write(tmp_path / "p.jsonl", [{"prompt": LONG}])
    told = command(*kit.ppo(out, "--prompts", prompts)).complaint(2)
    assert "none of the 1 prompts leaves room for --max-tokens 6 in a context of 48 tokens" in told
    rows = [{"prompt": LONG + str(i), "completion": "x"} for i in range(40)]
    assert "no demonstration fits the context of 48" in command(
        *kit.sft(out, "--data", write(tmp_path / "d.jsonl", rows))
    ).complaint(2)
    corpus = write(tmp_path / "c.jsonl", [{"text": "a"}, {"text": "b"}])
    assert "less than one window" in command(*kit.pretrain(out, "--corpus", corpus)).complaint(2)
    assert not out.exists()


# --- models ----------------------------------------------------------------------------------------------------------


def test_directories_that_are_no_model(kit, command, monkeypatch, tmp_path, out):
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
        told = command("sample", "--model", model, "--prompts", kit.prompts, "--max-tokens", 4, "--out", out).complaint(
            2
        )
        assert said in told
        assert str(model) in told
    assert str(bare) in command(*kit.sft(out, "--base", bare)).complaint(2)
    assert not out.exists()


def test_a_reward_model_without_its_head_or_offset(kit, command, tmp_path, out):
    headless, shifted, twofold = (copied(kit.reward, tmp_path / name) for name in ("1", "2", "3"))
    weights = safetensors.torch.load_file(headless / "model.safetensors")
    del weights["score.weight"]
    safetensors.torch.save_file(weights, headless / "model.safetensors", {"format": "pt", "score_offset": "0.0"})
    edit_json(shifted / "config.json", lambda config: config.pop("score_offset"))
    edit_json(twofold / "config.json", lambda config: config.update(score_offset=99.0))
    for reward, said in {
        headless: "weights are missing from the files: score.weight; train one with 'instructgpt reward'",
        kit.base: "not a reward model",
        shifted: "no recorded offset",
        twofold: "the files are of two models",
    }.items():
        score = ["score", "--reward", reward, "--data", kit.demonstrations, "--out", out]
        for argv in (score, kit.ppo(out, "--reward", reward)):
            told = command(*argv).complaint(2)
            assert said in told
            assert str(reward) in told
    assert not out.exists()


def test_a_device_that_is_not_there(kit, command, out):
    told = command(*kit.sft(out, "--device", "cuda:77")).complaint(2)
    assert told.startswith("--device cuda:77: not a device that works here")
    assert not out.exists()


# --- places ----------------------------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_found_before_anything_is_computed(kit, command, tmp_path):
    file = write(tmp_path / "file", ["x"])
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "README.md", ["my notes"])
    before = snapshot(tmp_path)
    for place, said in {
        file: f"--out {file}: is a file, expected a folder",
        file / "under": f"--out {file / 'under'}: {file} is not a folder; choose another --out",
        file / "far" / "under": f"{file} is not a folder",
        tmp_path / "mine": "is not empty and holds no run; choose another --out",
    }.items():
        assert said in command(*kit.pretrain(place, "--corpus", "gone")).complaint(2)
    told = command("sample", "--model", "./gone", "--prompts", "gone", "--out", file / "under.jsonl").complaint(2)
    assert f"{file} is not a folder" in told
    assert "is a folder" in command(
        "sample", "--model", "./gone", "--prompts", "gone", "--out", tmp_path / "mine"
    ).complaint(2)
    assert "is a folder" in command("score", "--reward", "./gone", "--data", "gone", "--out", "").complaint(2)
    assert snapshot(tmp_path) == before


def test_a_place_that_holds_another_run(kit, command):
    before = snapshot(kit.folder)
    for argv, said in {
        tuple(kit.sft(kit.reward)): "holds a run of stage 'reward', not of 'sft'; choose another --out",
        tuple(
            kit.pretrain(kit.base, "--lr", 0.5)
        ): "was begun with --lr 0.003, now it is 0.5; choose another --out, or start it afresh",
        tuple(kit.train_reward(kit.reward, "--epochs", 2)): "was begun with --epochs 1, now it is 2",
        tuple(kit.sft(kit.reward, "--no-resume")): "not of 'sft'",
        tuple(kit.ppo(kit.folder, "--no-resume")): "is made from; choose another --out",
    }.items():
        assert said in command(*argv).complaint(2)
    assert snapshot(kit.folder) == before


def test_a_finished_run_is_not_made_again(kit, command):
    before = snapshot(kit.folder)
    for argv in (kit.pretrain(kit.base), kit.train_reward(kit.reward)):
        assert command(*argv).code == 0
    assert snapshot(kit.folder) == before


def test_a_parent_that_has_changed_is_noticed(kit, command, tmp_path, out):
    base = copied(kit.base, tmp_path)
    assert command(*kit.sft(out, "--base", base)).code == 0
    edit_json(base / "config.json", lambda config: config.update(note="another"))
    assert "was made from another 'base'" in command(*kit.sft(out, "--base", base)).complaint(2)
    assert command(*kit.sft(out, "--base", base, "--no-resume")).code == 0


def test_no_resume_keeps_what_is_there_until_its_input_is_known_to_be_good(kit, command, tmp_path):
    base = copied(kit.base, tmp_path)
    before = snapshot(base)
    command(*kit.pretrain(base, "--no-resume", "--corpus", tmp_path / "gone.jsonl")).complaint(2)
    assert snapshot(base) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "pretrain"}'])
def test_a_damaged_run_json(content, kit, command, tmp_path):
    base = copied(kit.base, tmp_path)
    (base / "run.json").write_text(content, encoding="utf-8")
    told = command(*kit.pretrain(base)).complaint(2)
    assert f"{base / 'run.json'}: damaged" in told
    assert f"delete {base} and give the same command again" in told


# --- the whole paper -------------------------------------------------------------------------------------------------


def test_run_reads_all_files_before_it_starts(kit, command, tmp_path, out):
    rankings = write(tmp_path / "r.jsonl", [RANKING, RANKING | {"ranks": [1]}])
    files = ["--corpus", kit.corpus, "--demonstrations", kit.demonstrations, "--rankings", rankings]
    assert f"{rankings}:2: 2 completions but 1 ranks" in command(
        "run", "--preset", "smoke", *files, "--out", out
    ).complaint(2)
    assert not out.exists()


def test_run_on_its_own_directory_with_other_settings(command, out):
    argv = ["run", "--preset", "smoke", "--out", str(out)]
    out.mkdir()
    config = json.loads(cli.parse(argv)[1].model_dump_json())
    write(out / "run.json", [{"stage": "run", "finished": False, "config": config, "parents": {}}])
    settings = write(out.parent / "mine.yaml", ["ppo: {lr: 0.5}"])
    told = command(*argv, "--config", settings).complaint(2)
    assert "was begun with ppo.lr 0.0001, now it is 0.5" in told
