"""The documents say what the code does: links lead somewhere, quotes stand in the code, options are explained,
commands parse.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from support.configs import configs
from support.pages import DOCS, FENCE, ROOT, commands, find_page

from instructgpt.cli import COMMANDS, parse
from instructgpt.config import StageConfig
from instructgpt.errors import InputError
from instructgpt.option_names import FOREIGN_OPTIONS

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
GUIDES = [page for page in PAGES if page.name != "CHANGELOG.md"]
OPTIONS = DOCS / "reference" / "options.md"

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
    """Every word in backticks or fenced blocks, options as they are called in Python:
    `--max-length 64` gives max_length.
    """
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
        "`data/tokenization.py`: `PromptTokenizer.encode_prompt`; `a.py`"
    )
    assert list(misquoted(page)) == ["train/sft.py: tran", "train/sft.py: x = 1", "train/sft.py: mani", "train/sf.py"]


def load_generator(name: str = "generate_options") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_options_page_is_what_the_generator_writes():
    assert OPTIONS.read_text(encoding="utf-8") == load_generator().render(), "run: make docs"


def test_notebook_is_what_the_generator_writes():
    notebook = DOCS / "tutorials" / "vary-one-detail.ipynb"
    assert notebook.read_text(encoding="utf-8") == load_generator("generate_notebook").render(), "run: make docs"


def page_sections(text: str) -> dict[str, str]:
    """Text below each second-level heading."""
    parts = re.split(r"^## +(.+)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def option_rows(text: str) -> list[list[str]]:
    """Cells of the rows whose first cell is an option in backticks."""
    rows = [re.split(r" *(?<!\\)\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("| `")]
    return [row for row in rows if re.match(r"`-", row[0])]


def test_every_option_of_every_command_is_explained():
    generator = load_generator()
    sections = page_sections(OPTIONS.read_text(encoding="utf-8"))
    shared = words_in_code(sections[generator.SHARED])
    documented = dict(generator.FILE_SECTIONS)
    for command in COMMANDS:
        documented[command.name] = command.config_class
    for name, config in documented.items():
        rows = re.findall(r"^\| `(.+?)` \| .+? \| (.*) \|$", sections[name], re.M)
        assert all(text.strip() for _, text in rows), f"{name}: an option without a description"
        said = {word.lower() for word in words_in_code(" ".join(f"`{option}`" for option, _ in rows))} | shared
        said |= {word.removeprefix("no_") for word in said}
        assert not set(config.model_fields) - said - set(getattr(config, "excluded_fields", ())), name
    assert {config for _, config in configs()} <= set(documented.values())


def test_options_of_all_stages_are_explained_on_other_pages():
    said = set().union(*(words_in_code(page.read_text(encoding="utf-8")) for page in GUIDES if page != OPTIONS))
    assert not set(StageConfig.model_fields) - said


def same_default(cell: str, default: object) -> bool:
    if isinstance(default, bool):
        return cell == ("on" if default else "off")
    if isinstance(default, int | float):
        return float(cell.replace(",", "")) == default
    return cell.strip("`") == str(default)


@pytest.mark.parametrize("name", sorted({name for name, _ in configs()}))
def test_option_tables_of_a_page_agree_with_its_command(name):
    page = find_page(name)
    if page is None:
        pytest.skip("options of this command are on docs/reference/options.md only")
    fields = {
        key: field for page_name, config in configs() if page_name == name for key, field in config.model_fields.items()
    }
    for cells in option_rows(page_sections(page.read_text(encoding="utf-8")).get("Options", "")):
        options = re.findall(r"`--([a-z-]+)`", cells[0])
        shown = cells[1].split(", ") if len(options) > 1 else [cells[1]]
        for option, cell in zip(options, shown, strict=True):
            field = fields[option.replace("-", "_")]
            default = "required" if field.is_required() else field.get_default()
            if default not in (None, (), "required"):
                assert same_default(cell, default), f"{page.name}: {option} has the default {default}"


FOREIGN = {
    "build-arg",
    "deps",
    "from",
    "index-url",
    "spec",
    "wheel-dir",
    "nproc-per-node",
    "nodes",
    "logdir",
    "clean",
    "dbname",
    "help",
    "version",
    "debug",
    "preset",
    "config",
}
FOREIGN |= {"served-model-name", "generation-config", "outfile", "jinja"}  # servers in the tutorial `serve-it`
"""Options of other programs, and those that every command has."""


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_named_on_a_page_exist(page):
    known = {name.replace("_", "-") for _, config in configs() for name in config.model_fields} | FOREIGN
    known |= {name.replace("_", "-") for name in FOREIGN_OPTIONS}
    for script in (
        *(ROOT / "bench").glob("*.py"),
        *(ROOT / "docs").glob("*.py"),
        ROOT / "src" / "instructgpt" / "world" / "__main__.py",
    ):
        known |= set(re.findall(r'"--([a-z-]+)"', script.read_text(encoding="utf-8")))
    named = re.findall(r"(?<![\w-])--([a-z][a-z-]*[a-z])", page.read_text(encoding="utf-8"))
    assert not {name.removeprefix("no-") for name in named} - known


def complaints(text: str) -> Iterator[str]:
    """What the real parser says against the commands of a page; a configuration that the page writes is not read."""
    written: set[str] = set()
    for arguments in commands(text):
        options = dict(pairwise(arguments))
        written.add(options.get("--out", ""))
        if options.get("--config") in written:
            continue
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
        "```sh\ninstructgpt sft --base gpt2 --data f.jsonl --out d\ninstructgpt sft --bases gpt2 --out d --data "
        "f\n```\n"
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
