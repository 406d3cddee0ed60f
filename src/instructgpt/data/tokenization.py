"""The only place where text becomes tokens: chat template, beginning-of-text, end-of-text.

Prompt and completion are tokenized separately and concatenated as tokens, in every stage and in serving, so no stage
sees a token boundary that another one does not (the reward model reads exactly the tokens the policy sampled).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgpt.data.packing import TokenizedExample
from instructgpt.errors import InputError
from instructgpt.records import Demonstration, Message, PromptFields

_DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
"""Chat template for base models without one: every turn ends with a newline, the assistant's with end-of-text before
it.

A single prompt is its text and a newline; the completion follows at once.
"""


class PromptTokenizer:
    """A tokenizer with its chat template: prompts and completions to tokens and back."""

    def __init__(self, hf_tokenizer: Any) -> None:
        """Use the tokenizer's chat template, or set the plain one, which is saved with every model."""
        if hf_tokenizer.eos_token_id is None:
            reason = (
                "has no end-of-text token, so no model can learn to stop; set eos_token in its tokenizer_config.json"
            )
            raise InputError(f"{hf_tokenizer.name_or_path}: the tokenizer {reason}")
        self.hf_tokenizer = hf_tokenizer
        self.eos: int = hf_tokenizer.eos_token_id
        first_id = hf_tokenizer("a", add_special_tokens=True)["input_ids"][0]
        self.bos: int | None = first_id if first_id == hf_tokenizer.bos_token_id and first_id is not None else None
        if hf_tokenizer.chat_template is None:
            hf_tokenizer.chat_template = (
                _DEFAULT_CHAT_TEMPLATE if self.bos is None else "{{ bos_token }}" + _DEFAULT_CHAT_TEMPLATE
            )

    def encode_prompt(self, prompt: PromptFields | str) -> list[int]:
        """Encode a prompt ready for an answer, with exactly one beginning-of-text if the tokenizer uses one."""
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt.messages
        if messages is None:
            assert not isinstance(prompt, str)
            messages = [Message(role="user", content=prompt.prompt)]
        turns = [message.model_dump() for message in messages]
        text = self.hf_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.encode_text(text)

    def encode_text(self, text: str) -> list[int]:
        """Encode text without a template: continuations, few-shot prompts, pretraining."""
        tokens: list[int] = self.hf_tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.bos is not None and tokens[:1] != [self.bos]:
            tokens = [self.bos, *tokens]
        return tokens

    def encode_completion(self, text: str, *, finished: bool = True) -> list[int]:
        """Encode a completion; end-of-text follows unless it was truncated.

        Names of special tokens are plain characters here, so a completion cannot spell its own end.
        """
        tokens: list[int] = (
            self.hf_tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
        )
        return [*tokens, self.eos] if finished else tokens

    def encode_example(self, prompt: PromptFields | str, completion: str, *, finished: bool = True) -> TokenizedExample:
        return TokenizedExample(self.encode_prompt(prompt), self.encode_completion(completion, finished=finished))

    def is_compatible(self, tokenizer: PromptTokenizer) -> bool:
        """Return whether both tokenizers encode alike: same vocabulary, template and end-of-text.

        A padding token makes no difference: it is never written.
        """
        return self is tokenizer or (
            (
                self.hf_tokenizer.backend_tokenizer.to_str() == tokenizer.hf_tokenizer.backend_tokenizer.to_str()
                or self._vocab_without_padding() == tokenizer._vocab_without_padding()
            )
            and (self.eos, self.bos, self.hf_tokenizer.chat_template)
            == (tokenizer.eos, tokenizer.bos, tokenizer.hf_tokenizer.chat_template)
        )

    def _vocab_without_padding(self) -> dict[str, int]:
        vocab: dict[str, int] = self.hf_tokenizer.get_vocab()
        return {
            token: token_id
            for token, token_id in vocab.items()
            if token != self.hf_tokenizer.pad_token or token_id == self.eos
        }

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode a completion without special tokens."""
        return str(self.hf_tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def tokenize_demonstrations(
    demonstrations: Sequence[Demonstration], tokenizer: PromptTokenizer, max_length: int
) -> tuple[list[TokenizedExample], int]:
    """Tokenize demonstrations; returns also how many exceed the context and were left out.

    Raises:
        InputError: none fits.
    """
    examples = [tokenizer.encode_example(demonstration, demonstration.completion) for demonstration in demonstrations]
    fitting = [example for example in examples if len(example) <= max_length]
    if not fitting:
        raise InputError(
            f"no demonstration fits the context of {max_length} tokens; the shortest has {min(map(len, examples))}"
        )
    return fitting, len(examples) - len(fitting)
