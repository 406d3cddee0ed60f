"""The command `chat`: a conversation on a terminal, with one model or several side by side.

instructgpt chat --model policy=runs/demo/ppo_ptx sft=runs/demo/sft --reward runs/demo/reward
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from instructgpt.errors import InputError, RunError
from instructgpt.io import format_json_line
from instructgpt.records import Demonstration, Message, Ranking
from instructgpt.serve.chat_models import AnswerScorer, ChatModel, ChatReply, ChatSettings, connect
from instructgpt.serve.configs import CHAT_KEY_VARIABLE, ChatConfig

_HELP = """/regenerate        answer the last turn again
/pick N            go on with answer N (at first: 1)
/edit N TEXT       replace answer N by a better text
/rank R R …        save the ranks of the answers, 1 is best, equal ranks tie (--rankings)
/save              save the conversation with the chosen answer as a demonstration (--demonstrations)
/system TEXT       set the system prompt, and start again
/set NAME VALUE    temperature, top_p, max_tokens or seed
/new               start again
/quit              end; so does Ctrl-D. Ctrl-C ends an answer"""


@dataclass(slots=True)
class Conversation:
    """The turns so far, and the answers to the last one, of which one is chosen."""

    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    """Turns before the answers, the system prompt included; the last is the user's."""
    answers: list[ChatReply] = field(default_factory=list)
    chosen: int = 0

    def restart(self) -> None:
        self.messages = [Message(role="system", content=self.system)] if self.system else []
        self.answers, self.chosen = [], 0

    def add_turn(self, text: str) -> None:
        """Append the chosen answer and the user's next turn."""
        if self.answers:
            self.messages.append(Message(role="assistant", content=self.answers[self.chosen].text))
        self.messages.append(Message(role="user", content=text))
        self.answers, self.chosen = [], 0


class Chat:
    """The loop: reads lines, shows answers, saves records."""

    def __init__(
        self,
        models: Sequence[ChatModel],
        scorer: AnswerScorer | None,
        config: ChatConfig,
        console: Console,
        settings: ChatSettings,
    ) -> None:
        self.models, self.scorer, self.config, self.console, self.settings = models, scorer, config, console, settings
        self.conversation = Conversation(config.system)
        self.conversation.restart()
        self._commands: dict[str, Callable[[str], None]] = {
            "/regenerate": lambda _: self._regenerate(),
            "/pick": self._pick,
            "/edit": self._edit,
            "/rank": self._save_ranking,
            "/save": lambda _: self._save_demonstration(),
            "/system": self._set_system,
            "/set": self._set,
            "/new": lambda _: self._restart(),
            "/help": lambda _: self._print(_HELP),
        }

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def run(self) -> None:
        """Read lines until the end."""
        self._print(f"models: {', '.join(model.name for model in self.models)}; /help shows the commands")
        while True:
            try:
                line = self.console.input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._print("")
                return
            if line == "/quit":
                return
            if not line:
                continue
            try:
                self._handle(line)
            except (InputError, RunError) as error:
                self._print(f"{error}")

    def _handle(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if not word.startswith("/"):
            self.conversation.add_turn(line)
            self._answer()
        elif word in self._commands:
            self._commands[word](rest.strip())
        else:
            raise InputError(f"no command {word}; /help shows them")

    # ------------------------------------------------------------ answers

    def _answer(self) -> None:
        """Let all models answer at once; the texts grow on a terminal."""
        texts = [""] * len(self.models)
        results: list[ChatReply | RunError | None] = [None] * len(self.models)
        interrupt = threading.Event()
        messages, settings = tuple(self.conversation.messages), self.settings

        def work(index: int) -> None:
            def show(text: str) -> None:
                texts[index] = text

            try:
                results[index] = self.models[index].answer(messages, settings, show, interrupt)
            except RunError as error:
                results[index] = error

        threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(self.models))]
        for thread in threads:
            thread.start()
        try:
            self._watch(threads, texts)
        except KeyboardInterrupt:
            interrupt.set()
            for thread in threads:
                thread.join()
        errors = [result for result in results if isinstance(result, RunError)]
        if errors:
            self.conversation.messages.pop()  # the turn can be sent again
            raise errors[0]
        self.conversation.answers = [result for result in results if isinstance(result, ChatReply)]
        self._show_answers()

    def _watch(self, threads: Sequence[threading.Thread], texts: Sequence[str]) -> None:
        live = Live(console=self.console, transient=True, refresh_per_second=8) if self.console.is_terminal else None
        with live or contextlib.nullcontext():
            while any(thread.is_alive() for thread in threads):
                threads[-1].join(0.1)
                for thread in threads[:-1]:
                    thread.join(0.02)
                if live is not None:
                    names = [model.name for model in self.models]
                    live.update(self._panels(names, texts))

    def _panels(self, titles: Sequence[str], texts: Sequence[str]) -> Columns:
        width = max(20, self.console.width // len(titles) - 1)
        panels = [Panel(Text(text), title=Text(title)) for title, text in zip(titles, texts, strict=True)]
        return Columns(panels, width=width, padding=(0, 0))

    def _show_answers(self) -> None:
        answers = self.conversation.answers
        titles = []
        for number, answer in enumerate(answers, 1):
            parts = [f"{number} {answer.model}"]
            if self.scorer is not None:
                parts.append(f"score {self.scorer.score(self.conversation.messages, answer):.2f}")
            if answer.finish == "length":
                parts.append("cut off")
            titles.append(", ".join(parts))
        self.console.print(self._panels(titles, [answer.text for answer in answers]))

    # ------------------------------------------------------------ commands

    def _require_answers(self) -> list[ChatReply]:
        if not self.conversation.answers:
            raise InputError("there is no answer yet: write something first")
        return self.conversation.answers

    def _answer_index(self, text: str) -> int:
        answers = self._require_answers()
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= len(answers)):
            raise InputError(f"'{text}': expected the number of an answer, 1 to {len(answers)}")
        return int(text) - 1

    def _regenerate(self) -> None:
        self._require_answers()
        self.conversation.answers = []
        self._answer()

    def _pick(self, rest: str) -> None:
        self.conversation.chosen = self._answer_index(rest)
        self._print(f"goes on with answer {rest}")

    def _edit(self, rest: str) -> None:
        number, _, text = rest.partition(" ")
        index = self._answer_index(number)
        if not text.strip():
            raise InputError("/edit N TEXT: the text is missing")
        answers = self.conversation.answers
        answers[index] = replace(answers[index], text=text.strip(), finish="stop")
        self.conversation.chosen = index
        self._show_answers()

    def _save_ranking(self, rest: str) -> None:
        answers = self._require_answers()
        if self.config.rankings is None:
            raise InputError("start chat with --rankings FILE to save rankings")
        words = rest.split()
        if len(answers) < 2 or len(words) != len(answers) or not all(w.isascii() and w.isdigit() for w in words):
            raise InputError(
                f"/rank: expected a rank for each of the {len(answers)} answers; a ranking needs two or more"
            )
        columns = {
            "messages": self.conversation.messages,
            "completions": [answer.text for answer in answers],
            "ranks": [int(word) for word in words],
            "models": [answer.model for answer in answers],
            "source": "chat",
        }
        try:
            ranking = Ranking.model_validate(columns)
        except ValueError as error:
            raise InputError("/rank: ranks start at 1") from error
        self._append(self.config.rankings, ranking.to_dict())

    def _save_demonstration(self) -> None:
        answers = self._require_answers()
        if self.config.demonstrations is None:
            raise InputError("start chat with --demonstrations FILE to save demonstrations")
        columns = {"completion": answers[self.conversation.chosen].text, "source": "chat"}
        record = Demonstration.model_validate(columns | {"messages": self.conversation.messages})
        self._append(self.config.demonstrations, record.to_dict())

    def _append(self, path: Path, record: dict[str, Any]) -> None:
        with path.open("ab") as stream:
            stream.write(format_json_line(record).encode())
            stream.flush()
            os.fsync(stream.fileno())
        self._print(f"saved: {path}")

    def _set_system(self, rest: str) -> None:
        self.conversation.system = rest or None
        self._restart()

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        self.settings = self.settings.change(name.replace("-", "_"), value.strip())
        self._print(f"{name} {value.strip()}")

    def _restart(self) -> None:
        self.conversation.restart()
        self._print("a new conversation")


def main(config: ChatConfig) -> None:
    """Talk to models on a terminal.

    Raises:
        InputError: a model cannot be loaded, or the endpoint does not answer.
    """
    if not config.url and not config.model:
        raise InputError("chat: give --model DIR, or --url URL")
    for path in (config.demonstrations, config.rankings):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path}: no such directory: {path.parent}")
    models, scorer = _load(config)
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # editing and history of the lines
    settings = ChatSettings(config.temperature, config.top_p, config.max_tokens, config.seed)
    try:
        Chat(models, scorer, config, Console(), settings).run()
    finally:
        for model in models:
            model.close()


def _load(config: ChatConfig) -> tuple[Sequence[ChatModel], AnswerScorer | None]:
    """Connect to an endpoint or load models; PyTorch is imported only where a model runs in this process."""
    models: Sequence[ChatModel] = ()
    if config.url:
        models = connect(config.url, config.model, os.environ.get(CHAT_KEY_VARIABLE))
        if not config.reward:
            return models, None
    print("chat: loading PyTorch", flush=True)
    from instructgpt.serve.local_chat_models import load_chat_models, load_scorer

    scorer = load_scorer(config.reward, config.device) if config.reward else None
    return models or load_chat_models(config.model, config.device), scorer
