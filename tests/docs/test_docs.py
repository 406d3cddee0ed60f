"""The documents say what the code does: links lead somewhere, quotes stand in the code, options are explained, commands parse."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.configs import configs
from support.pages import FENCE, ROOT, commands

from instructgpt.cli import parse
from instructgpt.config import StageConfig
from instructgpt.errors import InputError

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GUIDES = [page for page in PAGES if page.name != "CHANGELOG.md"]

CODE = re.compile(r"`((?:\w+/)+\w+\.py|test_\w+\.py|[a-z]+\.py)(?:`((?:, `[\w.]+`)*)(?:: `([^`\n]+)`)?|: ([^`\n]+)`)")
"""Where a page speaks of code: `file.py`, `name`, `name`: `quoted`, or `file.py: name, name`."""
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^ *\[[^\]^]+\]:\s*(\S+)", re.M)


def prose(text: str) -> str:
    """A page without its fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The names by which a page's headings can be linked: small letters, hyphens for spaces, other signs left out."""
    headings = re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> Iterator[str]:
    for match in LINK.finditer(prose(page.read_text(encoding="utf-8"))):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue  # another site; nothing here needs the network
        name, _, anchor = target.partition("#")
        goal = (page.parent / name).resolve() if name else page
        if not goal.exists() or (
            anchor and goal.suffix == ".md" and anchor not in anchors(goal.read_text(encoding="utf-8"))
        ):
            yield target


@cache
def names_in(file: Path) -> set[str]:
    """Every function, class, method, constant and field that a file defines."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def without_blanks(text: str) -> str:
    return re.sub(r"\s+", "", text).replace("\\|", "|")


def misquoted(text: str) -> Iterator[str]:
    """What a page says is in the code, and is not: a file with its folder, a name in it, a piece of it."""
    for path, listed, quote, told in CODE.findall(FENCE.sub("", text)):
        places = [
            place
            for place in (ROOT / "src" / "instructgpt" / path, ROOT / "tests" / path, ROOT / path)
            if place.is_file()
        ]
        if not places:
            if "/" in path or path.startswith("test_"):
                yield path
            continue
        names = [
            name for name in re.findall(r"[\w.]+", f"{listed} {told}") if not name.endswith(".py")
        ]  # `a/b.py`, `c.py` are two files
        if quote and without_blanks(quote) not in without_blanks(places[0].read_text(encoding="utf-8")):
            names.append(quote)
        yield from (f"{path}: {name}" for name in names if name.rpartition(".")[2] not in names_in(places[0]))


def words_in_code(text: str) -> set[str]:
    """Every word in backticks or fenced blocks, options as they are called in Python: `--max-length 64` gives max_length."""
    code = [block[2] for block in FENCE.findall(text)] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return {word.replace("-", "_") for part in code for word in re.findall(r"(?<![\w-])-{0,2}(\w[\w-]*)", part)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not list(dead_links(page))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_quoted_stands_in_the_code(page):
    assert not list(misquoted(page.read_text(encoding="utf-8")))


def test_a_wrong_quote_is_found():
    page = (
        "`train/sft.py`, `train`, `tran`: `x = 1`; `train/sft.py: main, mani`; `train/sf.py`; "
        "`data/tokenization.py`: `Renderer.prompt`; `a.py`"
    )
    assert list(misquoted(page)) == ["train/sft.py: tran", "train/sft.py: x = 1", "train/sft.py: mani", "train/sf.py"]


def test_every_option_is_explained_on_the_page_of_its_command():
    missing = {}
    for name, config in configs():
        page = ROOT / "docs" / f"{name}.md"
        if page.exists():
            said = words_in_code(page.read_text(encoding="utf-8"))
            own = set(config.model_fields) - set(StageConfig.model_fields)  # those of all stages: see the next test
            missing[f"{page.name}: {config.__name__}"] = sorted(own - said)
    assert not {place: names for place, names in missing.items() if names}


def test_options_of_all_stages_are_explained_somewhere():
    if not (ROOT / "README.md").exists():
        pytest.skip("there is no README yet")
    said = set().union(*(words_in_code(page.read_text(encoding="utf-8")) for page in GUIDES))
    assert not set(StageConfig.model_fields) - said


def complaints(text: str) -> Iterator[str]:
    """What the real parser says against the commands of a page."""
    for arguments in commands(text):
        try:
            parse(arguments)
        except InputError as error:
            yield f"instructgpt {shlex.join(arguments)}: {error}"
        except SystemExit as ended:
            if ended.code:  # --help and --version end with 0
                yield f"instructgpt {shlex.join(arguments)}: exit code {ended.code}"


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page):
    assert not list(complaints(page.read_text(encoding="utf-8")))


def test_a_wrong_command_does_not_parse():
    (complaint,) = complaints(
        "```sh\ninstructgpt sft --base gpt2 --data f.jsonl --out d\ninstructgpt sft --bases gpt2 --out d --data f\n```\n"
    )
    assert "--bases" in complaint


PAGE = """# A title, with `signs`
See [the licence](LICENSE), [below](#a-part-of-it), [nothing](nothing.md "a title"), [no part](#no-part), [elsewhere](https://example.org/x).
Not a link: `[a](b)`. The option `--max-length N` and `seed`.
## A part of it
```sh
$ make setup && .venv/bin/instructgpt sft --base gpt2 \\
    --data 'my file.jsonl' --out runs/sft  # a comment
OMP_NUM_THREADS=1 instructgpt report runs/demo | tee log; echo instructgpted
instructgpt plan
```
```text
instructgpt not a command [text](nowhere)
```
"""


def test_how_pages_are_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    (tmp_path / "LICENSE").touch()
    assert list(dead_links(page)) == ["nothing.md", "#no-part"]
    assert {"max_length", "seed", "base"} <= words_in_code(PAGE)
    assert "title" not in words_in_code(PAGE)
    assert list(commands(PAGE)) == [
        ["sft", "--base", "gpt2", "--data", "my file.jsonl", "--out", "runs/sft"],
        ["report", "runs/demo"],
        ["plan"],
    ]
