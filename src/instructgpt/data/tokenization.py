"""The only place where text becomes tokens: template, end-of-text, beginning-of-text.

A prompt and its completion are tokenised apart and joined as tokens, in every stage and while serving, so that no
stage sees a boundary that another one does not (the reward model reads the very tokens the policy sampled).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgpt.data.packing import Example
from instructgpt.errors import BadInput
from instructgpt.records import Asked, Demonstration, Message

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
"""The template of a base model that has none: every turn ends with a newline, the assistant's with end-of-text before it.
A single prompt is its text and a newline; the completion follows at once."""


class Renderer:
    """A tokenizer with its template: prompts and completions to tokens and back."""

    def __init__(self, tokenizer: Any) -> None:
        """Take the tokenizer's own chat template, or give it the plain one, which is saved with every model made from it."""
        if tokenizer.eos_token_id is None:
            told = "has no end-of-text token, so no model can learn to stop; set eos_token in its tokenizer_config.json"
            raise BadInput(f"{tokenizer.name_or_path}: the tokenizer {told}")
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        start = tokenizer("a", add_special_tokens=True)["input_ids"][0]
        self.bos: int | None = start if start == tokenizer.bos_token_id and start is not None else None
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_TEMPLATE if self.bos is None else "{{ bos_token }}" + PLAIN_TEMPLATE

    def prompt(self, asked: Asked | str) -> list[int]:
        """Tokens of a prompt, ready to be answered. Exactly one beginning-of-text where the tokenizer uses one."""
        messages = [Message(role="user", content=asked)] if isinstance(asked, str) else asked.messages
        if messages is None:
            assert not isinstance(asked, str)
            messages = [Message(role="user", content=asked.text)]
        turns = [message.model_dump() for message in messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.plain(text)

    def plain(self, text: str) -> list[int]:
        """Tokens of text as it stands, without a template: for continuations, few-shot prompts and pretraining."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.bos is not None and tokens[:1] != [self.bos]:
            tokens = [self.bos, *tokens]
        return tokens

    def completion(self, text: str, *, finished: bool = True) -> list[int]:
        """Tokens of a completion; end-of-text follows unless the completion was cut off (never a made-up one).

        The names of special tokens are letters here: no completion can spell its own end.
        """
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
        return [*tokens, self.eos] if finished else tokens

    def example(self, asked: Asked | str, completion: str, *, finished: bool = True) -> Example:
        """A prompt with its completion."""
        return Example(self.prompt(asked), self.completion(completion, finished=finished))

    def same_tokens(self, other: Renderer) -> bool:
        """Whether another renderer makes the same tokens of the same text: same vocabulary, template and end-of-text.

        A padding token that only one of them has makes no difference: it is never written.
        """
        return self is other or (
            (self.tokenizer.backend_tokenizer.to_str() == other.tokenizer.backend_tokenizer.to_str() or self._words() == other._words())
            and (self.eos, self.bos, self.tokenizer.chat_template) == (other.eos, other.bos, other.tokenizer.chat_template)
        )

    def _words(self) -> dict[str, int]:
        words: dict[str, int] = self.tokenizer.get_vocab()
        return {word: number for word, number in words.items() if word != self.tokenizer.pad_token or number == self.eos}

    def text(self, tokens: Sequence[int]) -> str:
        """The words of a completion, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def demonstration_examples(demonstrations: Sequence[Demonstration], render: Renderer, context: int) -> tuple[list[Example], int]:
    """Demonstrations as tokens, and how many were left out because they do not fit the model's context.

    Raises:
        BadInput: none fits.
    """
    examples = [render.example(demonstration, demonstration.completion) for demonstration in demonstrations]
    kept = [example for example in examples if len(example) <= context]
    if not kept:
        raise BadInput(f"no demonstration fits the context of {context} tokens; the shortest has {min(map(len, examples))}")
    return kept, len(examples) - len(kept)
