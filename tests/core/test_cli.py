"""The command line: help generated from the configs, one-line errors and exit codes.

pytest tests/core/test_cli.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import Field
from support.commands import SRC, run_in_process, write

from instructgpt import cli
from instructgpt.config import CommandConfig, make_config, presets_with_section
from instructgpt.errors import InputError, RunError
from instructgpt.flags import OPTION_GROUPS, build_parser
from instructgpt.option_names import FOREIGN_COMMANDS, FOREIGN_OPTIONS
from instructgpt.run.configs import RunConfig

PRETRAIN = ["pretrain", "--corpus", "c.txt", "--out", "o"]
SFT = ["sft", "--base", "./b", "--data", "d.jsonl", "--out", "o"]
REWARD = ["reward", "--base", "./b", "--data", "r.jsonl", "--out", "o"]
PPO = ["ppo", "--policy", "./p", "--reward", "r", "--prompts", "p.jsonl", "--out", "o"]
SAMPLE = ["sample", "--model", "./m", "--prompts", "p.jsonl", "--out", "o.jsonl"]
THERE = cli.COMMANDS


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return run_in_process(capsys)


def config_of(*argv: str):
    return cli.parse(list(argv))[1]


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", THERE, ids=lambda one: one.name)
def test_help_names_every_option_with_its_description_and_default(one, command):
    shown = command(*one.name.split(), "--help")
    assert (shown.code, shown.err) == (0, "")
    text = "".join(shown.out.split())
    config = one.config_class
    for name, field in config.model_fields.items():
        if "dict" in str(field.annotation) or "StageConfig" in str(field.annotation):
            continue  # sections of files; another command's options
        if name in config.excluded_fields:
            assert f"--{name}" not in shown.out
            continue
        assert name == one.positional or re.search(rf"--{name.replace('_', '-')}\b", shown.out), name
        assert "".join((field.description or "?").split()) in text, name
        if isinstance(field.default, float) and not field.is_required():
            assert f"(default{field.default})" in text, name


@pytest.mark.parametrize("one", THERE, ids=lambda one: one.name)
def test_help_groups_options_and_shows_what_is_required(one, command):
    out = command(*one.name.split(), "--help").out
    usage = out.splitlines()[0]
    for name, field in one.config_class.model_fields.items():
        if name != one.positional and name not in one.config_class.excluded_fields:
            assert (f"--{name.replace('_', '-')} " in usage) == field.is_required(), name
    assert usage.endswith(" [options]")
    titles = re.findall(r"^([A-Za-z][\w -]*):$", out, re.MULTILINE)
    subjects = [title for title in OPTION_GROUPS if title in titles]
    assert [title for title in titles if title in OPTION_GROUPS] == subjects  # in this order
    assert set(titles) <= {"options", "positional arguments", *OPTION_GROUPS}, "give the option a group in flags.py"


def test_placeholders_name_what_is_expected():
    usages = {command.name: build_parser(command).format_usage() for command in THERE}
    assert (
        usages["ppo"]
        == "usage: instructgpt ppo --policy MODEL --reward MODEL ... --prompts FILE ... --out DIR [options]\n"
    )
    assert usages["sample"] == "usage: instructgpt sample --model MODEL --prompts FILE --out FILE [options]\n"
    assert usages["data split"] == "usage: instructgpt data split --data FILE ... --out DIR [options]\n"
    assert usages["label batch"] == "usage: instructgpt label batch --site DIR --name TEXT [options]\n"
    assert usages["completion"] == "usage: instructgpt completion SHELL [options]\n"


@pytest.mark.parametrize("group", ["label", "data", "judge"])
def test_a_group_has_help_of_its_own(group, command):
    for ask in ((group,), (group, "--help"), (group, "-h")):
        shown = command(*ask)
        assert (shown.code, shown.err) == (0, "")
        for one in THERE:
            assert (f"  {one.name} " in shown.out and one.purpose in shown.out) == one.name.startswith(f"{group} ")


def test_other_libraries_names_lead_to_options_that_exist():
    ours = {name for command in THERE for name in command.config_class.model_fields} | {"stop"}
    assert FOREIGN_OPTIONS.keys() & ours == {"beta", "tasks"}  # options of `dpo` and of `label simulate` alone
    assert {name for names in FOREIGN_OPTIONS.values() for name in names.split()} <= ours
    assert set(FOREIGN_COMMANDS.values()) <= {command.name for command in THERE}


def test_usage_lists_every_command(command):
    for ask in ((), ("--help",), ("-h",)):
        shown = command(*ask)
        assert (shown.code, shown.err) == (0, "")
        assert all(f"  {one.name} " in shown.out and one.purpose in shown.out for one in cli.COMMANDS)
    assert re.fullmatch(r"instructgpt \d+\.\d+\.\d+\n", command("--version").out)


SLOW_MODULES = {"torch", "transformers", "scipy", "datasets", "sqlalchemy", "fastapi", "matplotlib", "numpy"}


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["ppo", "--help"],
        [*PPO, "--learnin-rate", "1"],
        [*PPO, "--ptx-coef", "1"],
        ["pp0"],
        ["plan", "ppo", "--help"],
        ["label", "serve", "--prt", "1"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_load_nothing_slow(argv):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "instructgpt", *argv],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SRC)},
    )
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "instructgpt.cli" in modules
    assert not SLOW_MODULES & {name.partition(".")[0] for name in modules}
    assert len(modules) < 350  # about 270 on Python 3.11, most of them of pydantic


IMPORT_CONFIGS = f"""
import sys
from instructgpt.commands import COMMANDS
for command in COMMANDS:
    command.config_class
    assert not {SLOW_MODULES} & set(sys.modules), command.name
"""


def test_no_configuration_loads_anything_slow():
    subprocess.run([sys.executable, "-c", IMPORT_CONFIGS], env={"PYTHONPATH": str(SRC)}, check=True)


WITHOUT_TORCH = """
import sys
from instructgpt.commands import COMMANDS
sys.modules["torch"] = None  # an import of torch fails
for command in COMMANDS:
    try:
        command.resolve_function()
        loads_torch = False
    except ImportError:
        loads_torch = True
    assert loads_torch == command.loads_torch, command.name
"""


def test_commands_say_whether_they_load_torch():
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], env={"PYTHONPATH": str(SRC)}, check=True)


def test_a_line_stands_before_torch_is_loaded(tmp_path):
    argv = [sys.executable, "-X", "importtime", "-m", "instructgpt", *PRETRAIN]
    done = subprocess.run(
        argv, text=True, cwd=tmp_path, env={"PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines = done.stdout.splitlines()
    assert lines.index("pretrain: loading PyTorch") < next(i for i, line in enumerate(lines) if line.endswith(" torch"))


def test_closed_pipe_prints_no_traceback():
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m instructgpt --help | true"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SRC)},
    )
    assert done.stderr == ""


def test_work_goes_on_when_the_reader_of_the_output_leaves(tmp_path):
    """The file is whole, and one line says why nothing more is printed."""
    rows = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b"} for number in range(50)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"{sys.executable} -m instructgpt data import --data pairs.jsonl --out rankings.jsonl"
    done = subprocess.run(
        ["bash", "-c", f"(sleep 0.5; {command}) | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(SRC)},
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "rankings.jsonl").read_text().splitlines()) == 50
    assert done.stderr == (
        "instructgpt: the reader of standard output has closed it; the command goes on without output\n"
    )


def test_ascii_terminal_prints_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "instructgpt", "näme"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SRC), "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("instructgpt: no command 'n?me'")


# --- input errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pertrain"], "no command 'pertrain', did you mean 'pretrain'?"),
        (["xyzzy"], "no command 'xyzzy'; available: run, pretrain,"),
        (
            ["data", "xyzzyxyzzy"],
            "no command 'data xyzzyxyzzy'; available: data import, data clean, data mix, data split, data stats",
        ),
        (["labl"], "no command 'labl', did you mean 'label'?"),
        (["import"], "no command 'import'; there is 'data import': convert other formats to ours and back, 'label"),
        (["generate"], "no command 'generate', did you mean 'sample'?"),
        ([*PPO, "--learning-rate", "1"], "unknown option '--learning-rate', did you mean '--lr'?"),
        ([*PPO, "--learning_rate=1"], "unknown option '--learning_rate', did you mean '--lr'?"),
        ([*PPO, "--beta", "1"], "unknown option '--beta', did you mean '--kl-coef'?"),
        ([*SFT, "--num-train-epochs", "1"], "unknown option '--num-train-epochs', did you mean '--epochs'?"),
        ([*PPO, "--per-device-train-batch-size", "1"], "did you mean '--batch'? (it counts all devices together)"),
        ([*REWARD, "--model_name_or_path", "m"], "did you mean '--base'?"),
        ([*SAMPLE, "--max_new_tokens", "8"], "did you mean '--max-tokens'?"),
        ([*SFT, "--bf16"], "did you mean '--memory'? (as: --memory bf16)"),
        ([*PPO, "--gamma", "0.9"], "unknown option '--gamma' (the discount is 1)"),
        (["data", "clea"], "did you mean 'data clean'?"),
        ([*PPO, "--minbatch", "8"], "unknown option '--minbatch', did you mean '--minibatch'?"),
        ([*PPO, "--max_tokens=8"], "unknown option '--max_tokens', did you mean '--max-tokens'?"),
        ([*PPO, "--episode", "8"], "unknown option '--episode', did you mean '--episodes'?"),
        ([*PPO, "--xyzzy"], "ppo: unknown option '--xyzzy'; see 'instructgpt ppo --help'"),
        (["sample", "prompts.jsonl"], "sample: unexpected argument 'prompts.jsonl'"),
        (["ppo", "--out", "o"], "ppo: --policy is required"),
        (["report"], "report: the following arguments are required: RUN"),
        ([*PRETRAIN, "--out", "o\udcff"], "'o\\udcff' is not UTF-8; rename the file"),
        (["pretrain", "--corpus", "c.txt"], "pretrain: --out is required"),
        ([*PPO, "--lr"], "--lr: expected one argument"),
        ([*PPO, "--lr", "fast"], "ppo: --lr fast: Input should be a valid number"),
        ([*PPO, "--lr", "inf"], "ppo: --lr inf: Input should be a finite number"),
        ([*PPO, "--episodes", "1.5"], "ppo: --episodes 1.5: Input should be a valid integer"),
        ([*PPO, "--clip", "-0.2"], "ppo: --clip -0.2: Input should be greater than 0"),
        ([*PPO, "--ptx-reduction", "batch"], "ppo: --ptx-reduction batch: Input should be 'token' or 'sequence'"),
        ([*PRETRAIN, "--vocabulary", "12"], "--vocabulary 12: Input should be greater than or equal to 257"),
        ([*SFT, "--memory", "int4"], "sft: --memory int4: Input should be 'bf16', 'checkpointing', '4bit',"),
        ([*PPO, "--preset", "dmo"], "no preset 'dmo'; available: demo, demo-refusal, smoke"),
        ([*PRETRAIN, "--config", "gone.yaml"], "--config gone.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_wrong_command_line_is_one_line(argv, said, command):
    assert said in command(*argv).error_line(2)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*PPO, "--ptx-coef", "1"], "--ptx-coef has no effect without --pretraining"),
        ([*PPO, "--ptx-ratio", "1"], "--ptx-ratio has no effect without --pretraining"),
        ([*PPO, "--ptx-reduction", "token"], "--ptx-reduction has no effect without --pretraining"),
        ([*PPO, "--pretraining", "c.txt", "--ptx-coef", "0"], "--pretraining has no effect with --ptx-coef 0"),
        ([*PPO, "--batch", "10", "--minibatch", "4"], "--batch 10 is not a multiple of --minibatch 4"),
        ([*PPO, "--episodes", "100"], "--episodes 100 is not a multiple of --batch 512: 512 is"),
        ([*PPO, "--episodes", "1200"], "--episodes 1200 is not a multiple of --batch 512: 1024 is"),
        ([*SFT, "--mix", "0.2"], "--mix has no effect without --pretraining"),
        ([*SFT, "--mix", "0", "--pretraining", "./c.jsonl"], "--pretraining has no effect with --mix 0"),
        ([*SFT, "--muon-lr", "0.01"], "--muon-lr has no effect without --optimizer muon"),
        ([*SFT, "--optimizer", "muon", "--lora", "8"], "--optimizer muon does not train --lora adapters; use adamw"),
        ([*SFT, "--max-tokens", "16"], "--max-tokens has no effect without --reward"),
        ([*PRETRAIN, "--tokenizer", "./t", "--vocabulary", "300"], "--vocabulary has no effect with --tokenizer"),
        ([*PRETRAIN, "--window", "256"], "--window 256 is longer than --context 128"),
        ([*REWARD, "--folds", "1"], "--folds 1 leaves nothing to train on"),
        ([*SAMPLE, "--n", "2", "--temperature", "0"], "--n has no effect at --temperature 0"),
        ([*SAMPLE, "--seed", "2", "--temperature", "0"], "--seed has no effect at --temperature 0"),
        (["run", "--corpus", "c.txt"], "--corpus, --demonstrations and --rankings belong together"),
        (["run", "--data", "folder"], "--data has no effect without --corpus or --base"),
    ],
)
def test_ineffective_option_is_refused(argv, said, command):
    assert said in command(*argv).error_line(2)


def test_refused_command_writes_nothing(command, tmp_path):
    command(*PPO, "--ptx-coef", "1").error_line(2)
    command(*PRETRAIN).error_line(2)  # there is no c.txt
    assert not list(tmp_path.iterdir())


# --- layers ----------------------------------------------------------------------------------------------------------


def test_flags_override_file_and_file_overrides_preset(tmp_path):
    file = write(tmp_path / "mine.yaml", ["pretrain: {width: 40}"])
    preset = config_of(*PRETRAIN, "--preset", "smoke")
    assert (preset.width, preset.layers, preset.lr) == (32, 2, 4e-3)
    both = config_of(*PRETRAIN, "--preset", "smoke", "--config", str(file))
    assert (both.width, both.layers) == (40, 2)
    flags = config_of(*PRETRAIN, "--width", "48", "--preset", "smoke", "--config", str(file))
    assert (flags.width, flags.layers) == (48, 2)


def test_repeated_file_flags_are_all_read():
    argv = [
        "ppo",
        "--policy",
        "p",
        "--reward",
        "r",
        "--out",
        "o",
        "--prompts",
        "a.jsonl",
        "--prompts",
        "b.jsonl",
        "c.jsonl",
    ]
    assert cli.parse(argv)[1].prompts == (Path("a.jsonl"), Path("b.jsonl"), Path("c.jsonl"))


def test_config_file_may_hold_options_of_one_stage(tmp_path):
    file = write(tmp_path / "flat.yaml", ["weight-decay: 0.5", "tokenizer: null", "corpus: [a.txt, b.txt]", "out: o"])
    config = config_of("pretrain", "--config", str(file))
    assert (config.weight_decay, config.tokenizer, config.corpus) == (0.5, None, (Path("a.txt"), Path("b.txt")))


def test_a_list_in_a_file_may_be_a_single_value(tmp_path):
    file = write(tmp_path / "flat.yaml", ["corpus: a.txt", "memory: bf16", "track: tensorboard", "out: o"])
    config = config_of("pretrain", "--config", str(file))
    assert (config.corpus, config.memory, config.track) == ((Path("a.txt"),), ("bf16",), ("tensorboard",))
    assert config_of("plan", "runs/x", "--config", str(write(tmp_path / "p.yaml", ["ranks: 8"]))).ranks == (8,)


def test_run_merges_the_options_of_each_stage(tmp_path):
    file = write(tmp_path / "mine.yaml", ["run: {labelers: 5}", "ppo: {episodes: 32}"])
    config = config_of("run", "--preset", "smoke", "--config", str(file), "--words", "70000")
    assert (config.words, config.labelers, config.ppo_prompts) == (70_000, 5, 60)
    assert config.stages["ppo"]["episodes"] == 32
    assert config.stages["ppo"]["batch"] == 32
    assert config.stages["pretrain"]["width"] == 32


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: [1", "mine.yaml: not valid YAML"),
        ("- lr", "expected 'option: value' lines, found a list"),
        ("0", "expected 'option: value' lines, found a number"),
        ("tokenizer: 3", "pretrain: --tokenizer 3: Input is not a valid path"),
        ("corpus: {a: [b, 1]}", "mine.yaml: no section pretrain; sections found: corpus"),
        ("pretrain: {memory: {a: [b, 1]}}", "pretrain: --memory {a: b 1}: Input should be a list"),
        ("pretrain: {width: null}", "pretrain: --width null: Input should be a valid integer"),
        ("learning_rate: 3", "pretrain: unknown option 'learning_rate', did you mean 'lr'?"),
        ("lr: 1\nlr: 2", "not valid YAML (duplicate key 'lr'"),
        ("widht: 3", "pretrain: unknown option 'widht', did you mean 'width'?"),
        ("pretrain: {widht: 3}", "pretrain: unknown option 'widht', did you mean 'width'?"),
        ("width: wide", "pretrain: --width wide: Input should be a valid integer"),
        ("pretrain: {width: 16}\nseed: 3", "section seed: expected 'option: value' lines, found a number"),
        ("pertrain: {width: 16}", "mine.yaml: no section pretrain; sections found: pertrain"),
    ],
)
def test_invalid_config_file_is_one_line(text, said, command, tmp_path):
    write(tmp_path / "mine.yaml", [text])
    assert said in command(*PRETRAIN, "--config", "mine.yaml").error_line(2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pp: {episodes: 32}", "run: no stage 'pp'"),
        ("ppo: {episods: 32}", "section ppo: unknown option 'episods', did you mean 'episodes'?"),
        ("ppo_ptx: {lr: fast}", "section ppo_ptx: --lr fast: Input should be a valid number"),
        ("ppo: {ptx_coef: 3}", "section ppo: --ptx-coef has no effect without --pretraining"),
        ("candidates: {lest: 4}", "section candidates: unknown option 'lest', did you mean 'least'?"),
        ("exam: {prompts: many}", "section exam: --prompts many: Input should be a valid integer"),
    ],
)
def test_invalid_section_is_refused_before_the_first_stage(text, said, command, tmp_path):
    write(tmp_path / "mine.yaml", [text])
    assert said in command("run", "--preset", "smoke", "--config", "mine.yaml", "--out", "o").error_line(2)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("preset", presets_with_section(RunConfig))
@pytest.mark.parametrize("argv", [PRETRAIN, SFT, REWARD, PPO], ids=lambda argv: argv[0])
def test_presets_are_valid_for_every_stage(preset, argv):
    section = yaml.safe_load((SRC / "instructgpt" / "presets" / f"{preset}.yaml").read_text(encoding="utf-8"))[argv[0]]
    assert section.items() <= config_of(*argv, "--preset", preset).model_dump().items()


def test_demos_share_their_base():
    demo, refusal = (
        yaml.safe_load((SRC / "instructgpt" / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("demo", "demo-refusal")
    )
    assert refusal["pretrain"] == demo["pretrain"]


class Few(CommandConfig):
    stage = "few"
    lr: float = Field(1.0, description="rate")


def test_config_layers_by_hand():
    assert make_config(Few, {"lr": 2}, {}, {"lr": "3e0"}).lr == 3.0
    with pytest.raises(InputError, match="few: unknown option 'lrr', did you mean 'lr'"):
        make_config(Few, {"lrr": 2})


# --- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("f.jsonl:3: not\nvalid"), 2, "f.jsonl:3: not valid"),
        (RunError("gone wrong"), 1, "gone wrong"),
        (PermissionError(13, "Permission denied", "f"), 1, "f: permission denied; fix this"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 1, "out of memory"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "failed unexpectedly, ZeroDivisionError: division by zero (--debug prints the traceback)",
        ),
        (KeyboardInterrupt(), 1, "interrupted; run the same command to resume"),
    ],
)
def test_every_failure_is_one_line_and_an_exit_code(error, code, said, capsys, monkeypatch, tmp_path):
    def fail(config):
        assert config.stage == "pretrain"
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("instructgpt.train.pretrain.main", fail)
    ended = run_in_process(capsys)(*PRETRAIN)
    assert ended.code == code
    assert ended.err.count("\n") == 1
    assert said in ended.err


def test_debug_prints_the_traceback_and_keeps_the_exit_code(command):
    plain, debug = command(*PRETRAIN), command("--debug", *PRETRAIN)
    assert (plain.code, debug.code) == (2, 2)
    assert "Traceback (most recent call last)" in debug.err
    assert "iter_lines" in debug.err
    assert debug.err.endswith(plain.error_line(2) + "\n")
