"""The pipeline from an existing chat model on conversations: `run --base MODEL`, and recipes/chat-model.yaml.

pytest tests/run/test_base_model.py
"""

import json
from pathlib import Path

import pytest
import yaml
from conftest import CORPUS
from support.commands import run_in_process

from instructgpt.data.splits import is_heldout
from instructgpt.records import Prompt
from instructgpt.results import read_result_rows

RECIPE = Path(__file__).parents[2] / "recipes" / "chat-model.yaml"
SMALL = {
    "start": {"batch": 8},
    "reward": {"batch": 8},
    "ppo_ptx": {"episodes": 8, "batch": 4, "minibatch": 4, "max_tokens": 5, "save_every": 1},
}


def conversation(index):
    return [
        {"role": "user", "content": f"the cat {index}"},
        {"role": "assistant", "content": "the dog"},
        {"role": "user", "content": "and then"},
    ]


@pytest.fixture
def files(tmp_path, write):
    """Conversations in the files that the recipe names."""
    talks = [conversation(index) for index in range(40)]
    write("text.jsonl", CORPUS)
    write("demonstrations.jsonl", [{"messages": talk, "completion": "the end"} for talk in talks])
    write("rankings.jsonl", [{"messages": talk, "completions": ["the end", "a"], "ranks": [1, 2]} for talk in talks])
    return tmp_path


@pytest.fixture
def command(capsys):
    return run_in_process(capsys)


def small_recipe(folder, **changes):
    """Write the recipe with small sizes; None removes a section or an option of the run."""
    sections = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    for name, options in (SMALL | changes).items():
        sections[name] = {**sections.get(name, {}), **(options or {})}
        sections[name] = {option: value for option, value in sections[name].items() if value is not None}
        if options is None:
            del sections[name]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def test_recipe_runs_from_a_chat_model(files, save, command):
    base, out = save("llama", "chat"), files / "run"
    run = ("run", "--config", small_recipe(files), "--base", base, "--data", files, "--out", out)
    outcome = command(*run)
    assert outcome.code == 0, outcome.err
    assert not (out / "base").exists()
    record = json.loads((out / "start" / "run.json").read_text())
    assert record["parents"]["base"]["path"] == str(base)
    assert (record["config"]["lora"], record["config"]["memory"]) == (16, []), "float32 on a CPU"
    assert (out / "ppo_ptx" / "adapter").is_dir()
    assert len(json.loads((out / "ppo_ptx" / "run.json").read_text())["policies"]) == 2
    template = (base / "chat_template.jinja").read_text()
    assert (out / "ppo_ptx" / "chat_template.jinja").read_text() == template
    rows = [
        json.loads(line) for line in (out / "evaluation" / "preference" / "rankings.jsonl").read_text().splitlines()
    ]
    heldout = [
        talk for talk in map(conversation, range(40)) if is_heldout(Prompt.model_validate({"messages": talk}).prompt)
    ]
    assert [row["messages"] for row in rows] == heldout
    assert rows[0]["models"] == ["base", "sft", "ppo_ptx"]
    results = read_result_rows(out / "results.json")
    assert {row.model for row in results if row.metric == "win_rate_vs_sft"} == {"base", "sft", "ppo_ptx"}
    assert any(row.metric == "pair_accuracy" for row in results)
    assert "already finished" in command(*run).out


def test_without_text_there_is_plain_ppo(files, save, command):
    ptx = dict.fromkeys(("ptx_coef", "ptx_ratio"))
    options = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["ppo_ptx"] | SMALL["ppo_ptx"] | ptx
    recipe = small_recipe(files, run={"corpus": None}, start={"batch": 8, "mix": None}, ppo_ptx=None, ppo=options)
    outcome = command(
        "run", "--config", recipe, "--base", save("llama", "chat"), "--data", files, "--out", files / "run"
    )
    assert outcome.code == 0, outcome.err
    assert not (files / "run" / "ppo_ptx").exists()
    rows = read_result_rows(files / "run" / "results.json")
    assert {row.model for row in rows if row.metric == "win_rate_vs_sft"} == {"base", "sft", "ppo"}


def test_conversation_that_the_template_refuses_is_named_before_the_first_stage(files, save, command, write):
    base = save("llama", "chat")
    refusing = files / "refusing"
    refusing.mkdir()
    for path in base.iterdir():
        (refusing / path.name).write_bytes(path.read_bytes())
    template = (base / "chat_template.jinja").read_text()
    check = "{% for message in messages %}{% if message['content'] == 'odd' %}{{ raise_exception('odd') }}"
    check += "{% endif %}{% endfor %}"
    (refusing / "chat_template.jinja").write_text(check + template)
    odd = [{"messages": [{"role": "user", "content": "odd"}], "completions": ["a", "b"], "ranks": [1, 2]}]
    talks = [{"messages": conversation(index), "completions": ["the", "a"], "ranks": [1, 2]} for index in range(3)]
    write("rankings.jsonl", talks + odd)
    out = files / "run"
    line = command(
        "run", "--config", small_recipe(files), "--base", refusing, "--data", files, "--out", out
    ).error_line(2)
    assert "rankings.jsonl:4:" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": {"rankings": None}}, "--base, --demonstrations and --rankings belong together; --rankings is missing"),
        ({"run": {"corpus": None}}, "section ppo_ptx needs pretraining text; add --corpus, or name the section ppo"),
        ({"pretrain": {"width": 8}}, "section pretrain has no effect with --base"),
    ],
)
def test_what_does_not_fit_a_base_is_refused(files, save, command, changes, reason):
    recipe = small_recipe(files, **changes)
    outcome = command(
        "run", "--config", recipe, "--base", save("llama", "chat"), "--data", files, "--out", files / "run"
    )
    assert reason in outcome.error_line(2)


def test_missing_base_is_named_before_the_first_stage(files, command):
    recipe = small_recipe(files)
    line = command(
        "run", "--config", recipe, "--base", files / "nothing", "--data", files, "--out", files / "run"
    ).error_line(2)
    assert "nothing: no such directory" in line
    assert not (files / "run").exists()
