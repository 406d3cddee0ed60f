"""What keeps the code small enough to read: sizes, options, one place for each formula, one word for each idea."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.configs import configs

from instructgpt.config import SamplingOptions, StageConfig

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "instructgpt"
CODE = sorted([*SRC.rglob("*.py"), *(ROOT / "tests").rglob("*.py")])

LINES_A_FILE, LINES_A_FUNCTION, DEPTH = 600, 60, 5
OPTIONS_A_STAGE = 42  # grouped by subject in --help
COLUMNS = 120
PRAGMA = re.compile(r"  # (noqa|type: ignore)\S*.*$")
LINES_A_TEST = 90  # tests spell out their data
OPTIONS_OF_ALL_STAGES = 14

OTHER_WORDS = re.compile(
    r"(?<![a-z])(query|queries|responses?|annotators?|crowdworkers?|log_?probs?|actors?|critics?|refs?(?!_logp)|sft_samples?"
    r"|preference_lists?|rollout_batch_size)(?![a-z])"
)
"""Words for which the project has another: prompt, completion, labeler, logp, policy,
reference (`ref_logp` is a common formula's name).
"""
DEMANDED: dict[str, str] = {"logprobs": "OpenAI's API", "top_logprobs": "OpenAI's API"}
"""Names that an outside API demands, each with that API."""
PATHS = re.compile(r"(?<![\w./~-])/(?:home|root|work|tmp|opt|mnt|Users)/\w+")


def code(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def names_made(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of everything the code itself names: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def in_small_letters(name: str) -> str:
    """`ActorCritic` -> `actor_critic`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def lines_of_literals(tree: ast.Module) -> set[int]:
    """Return the lines inside multi-line string literals: embedded programs, patterns and data."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr)]
    return {
        line
        for node in strings
        if id(node) not in docstrings and node.lineno != node.end_lineno
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES_A_FILE
    tree = code(path)
    literal = lines_of_literals(tree)
    assert not [
        f"line {n}" for n, line in enumerate(lines, 1) if len(PRAGMA.sub("", line)) > COLUMNS and n not in literal
    ]
    if "migrations" in path.parts:
        return  # a list of table definitions
    sizes = {f"line {f.lineno}: {f.name}": (f.end_lineno or 0) - f.lineno + 1 for f in functions(tree)}
    assert not {
        name: size for name, size in sizes.items() if size > (LINES_A_FUNCTION if SRC in path.parents else LINES_A_TEST)
    }
    starts = {node.lineno: lines[node.lineno - 1] for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    depths = {number: (len(line) - len(line.lstrip())) // 4 for number, line in starts.items()}
    assert not {f"line {number}": depth for number, depth in depths.items() if depth > DEPTH}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_word_per_idea(path):
    wrong = [
        f"line {line}: {name}"
        for line, name in names_made(code(path))
        if OTHER_WORDS.search(in_small_letters(name)) and name not in DEMANDED
    ]
    assert not wrong, "see the vocabulary"


def test_other_words_are_recognised():
    source = (
        "def f(query, *, log_probs): pass\nclass ActorModel: pass\nfor old_logprob in []: self.response = "
        "1\nprompt_query = 1"
    )
    assert sorted(name for _, name in names_made(ast.parse(source)) if OTHER_WORDS.search(in_small_letters(name))) == [
        "ActorModel",
        "log_probs",
        "old_logprob",
        "prompt_query",
        "query",
        "response",
    ]
    harmless = [
        "preference",
        "reference",
        "factor",
        "logp",
        "prefix",
        "refuse",
        "correspondence",
        "criticism",
        "catalog_problem",
    ]
    assert not [name for name in harmless if OTHER_WORDS.search(name)]


def test_options_a_stage():
    shared = len(StageConfig.model_fields)  # where and on what a stage runs, the same for all of them
    counts = {
        config.__name__: len(config.model_fields)
        - issubclass(config, StageConfig) * shared
        - issubclass(config, SamplingOptions) * len(SamplingOptions.model_fields)
        for _, config in configs()
    }
    assert "PPOConfig" in counts
    assert shared <= OPTIONS_OF_ALL_STAGES
    assert not {name: count for name, count in counts.items() if count > OPTIONS_A_STAGE}


def test_every_formula_is_defined_once():
    formulas = {function.name for function in functions(code(SRC / "functional.py"))}
    twice = [
        f"{path.relative_to(SRC)}:{function.lineno} {function.name}"
        for path in SRC.rglob("*.py")
        if path.name != "functional.py"
        for function in functions(code(path))
        if function.name in formulas
    ]
    assert formulas
    assert not twice


def test_no_paths_of_one_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    texts = [ROOT / name for name in listed.splitlines() if name != "LICENSE"]
    found = []
    for path in texts:
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        except UnicodeDecodeError:
            continue  # a picture
        found += [
            f"{path.relative_to(ROOT)}:{number}: {match[0]}"
            for number, line in enumerate(lines, 1)
            for match in PATHS.finditer(line)
        ]
    assert texts
    assert not found
