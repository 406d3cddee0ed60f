"""Run a tutorial as a reader does: its files, commands and Python, block by block, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.pages import FENCE, commands, read_page

from instructgpt import cli

Hook = Callable[[list[str], ExitStack], None]


@dataclass
class Tutorial:
    """A page, what to put in place of its placeholders, and options that make its commands small.

    `options` and `hooks` are by the first words of a command (`sample`, `label batch`). A hook runs its command itself
    and may leave something open until the end. Blocks of `console` are for reading: nothing of them is run.
    """

    name: str
    replace: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    names: dict[str, object] = field(default_factory=dict)

    def run(self, monkeypatch, folder: Path) -> None:
        """Run every block in its order."""
        monkeypatch.chdir(folder)
        with ExitStack() as open_things:
            for _, language, block in FENCE.findall(read_page(self.name)):
                self.run_block(language, self.fill(block), folder, open_things)

    def run_block(self, language: str, text: str, folder: Path, open_things: ExitStack) -> None:
        """Run commands or Python; a block of YAML that begins with a file's name as a comment is written to it."""
        if language == "sh":
            for argv in commands(f"```sh\n{text}```\n"):
                self.run_command(argv, open_things)
        elif language == "python":
            exec(compile(text, self.name, "exec"), self.names)
        elif language == "yaml" and text.startswith("# "):
            (folder / text.partition("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")

    def fill(self, text: str) -> str:
        for placeholder, value in self.replace.items():
            text = text.replace(placeholder, value)
        return text

    def run_command(self, argv: list[str], open_things: ExitStack) -> None:
        key = " ".join(argv[:2]) if argv[0] in {"label", "data", "judge", "plan"} else argv[0]
        self.ran.append(key)
        full = [*argv, *self.options.get(key, ())]
        if key in self.hooks:
            self.hooks[key](full, open_things)
        else:
            assert cli.run_command(full) == 0, full


@contextmanager
def served(argv: Sequence[str], port: int) -> Iterator[None]:
    """Run `instructgpt serve …` until the end of the block, from when it answers."""
    import httpx
    from support.commands import CommandProcess, wait_for

    process = CommandProcess(*argv, program=("-m", "instructgpt"))

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        except httpx.TransportError:
            return process.process.poll() is not None

    try:
        wait_for(answers)
        assert process.process.poll() is None, process.end()
        yield
    finally:
        process.process.terminate()
        process.end()
