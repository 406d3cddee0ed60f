"""The only place where text becomes tokens: chat template, beginning-of-text, end of a turn.

Prompt and completion are tokenized separately and concatenated as tokens, in every stage and in serving, so no stage
sees a token boundary that another one does not (the reward model reads exactly the tokens the policy sampled).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from instructgpt.data import chat_template
from instructgpt.data.packing import TokenizedExample
from instructgpt.errors import InputError
from instructgpt.records import Demonstration, Message, PromptFields


class PromptTokenizer:
    """A tokenizer with its chat template: prompts and completions to tokens and back.

    Attributes:
        eos: the tokenizer's end-of-text token; it separates pretraining documents.
        bos: the beginning-of-text token where the tokenizer adds one, else None.
        end_of_turn: the token that a completion is taught to end with: the template's, or `eos` if it has none.
        stop_tokens: tokens that end a completion when they are sampled; always `eos` and `end_of_turn`.
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        """Use the tokenizer's chat template, or set the plain one, which is saved with every model.

        Raises:
            InputError: the tokenizer has no end-of-text token, or no template that renders a user turn.
        """
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
            plain = chat_template.PLAIN_TEMPLATE
            hf_tokenizer.chat_template = plain if self.bos is None else "{{ bos_token }}" + plain
        chat_template.choose_template(hf_tokenizer)
        self._dated_template: str | None = None
        template = hf_tokenizer.get_chat_template()
        if chat_template.uses_date(template):
            self._dated_template = template
            self.pin_date(date.today())
        self.format = chat_template.ChatFormat.probe(hf_tokenizer)
        end = self.format.end_of_turn
        self.end_of_turn: int = self.eos if end is None else chat_template.added_token_ids(hf_tokenizer)[end]
        self.stop_tokens: tuple[int, ...] = tuple(dict.fromkeys((self.eos, self.end_of_turn)))
        self._encoder = chat_template.TextEncoder(hf_tokenizer, self.format.control_tokens)

    def pin_date(self, day: date) -> None:
        """Fix the date that the template prints, unless a model directory has fixed it before."""
        if self._dated_template is not None:
            self.hf_tokenizer.chat_template = chat_template.pin_date(self._dated_template, day)

    def add_stop_tokens(self, token_ids: Iterable[int]) -> None:
        """Add a model's own stop tokens. Ids of ordinary text are ignored: some configurations hold a wrong default."""
        added = set(chat_template.added_token_ids(self.hf_tokenizer).values())
        self.stop_tokens = tuple(dict.fromkeys((*self.stop_tokens, *(id for id in token_ids if id in added))))

    def describe(self) -> str:
        """Describe in one line how turns end, and what the template does that a user may not expect."""
        names = self.hf_tokenizer.convert_ids_to_tokens([*self.stop_tokens, self.end_of_turn])
        parts = [f"a completion stops at {' '.join(names[:-1])}"]
        if len(self.stop_tokens) > 1:
            parts.append(f"training ends turns with {names[-1]}")
        if self._dated_template is not None:
            parts.append("the date in the chat template is now fixed")
        if self.format.ignores_system:
            parts.append("the chat template ignores system turns")
        if self.hf_tokenizer.chat_template.endswith(chat_template.UNMARKED_TEMPLATE):
            parts.append("turns have no role marks, as in models of an earlier version")
        return "; ".join(parts)

    def check_prompt(self, record: PromptFields) -> None:
        """Raise InputError if the template refuses the record's conversation, or its only turn."""
        chat_template.render_messages(self.hf_tokenizer, record.bare_prompt.conversation)

    def encode_prompt(self, prompt: PromptFields | str) -> list[int]:
        """Encode a prompt ready for an answer, with exactly one beginning-of-text if the tokenizer uses one.

        Names of control tokens in messages are plain characters. Raises InputError if the template refuses the turns.
        """
        messages = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt.conversation
        masked, mark = self._encoder.mask(messages)
        text = chat_template.render_messages(self.hf_tokenizer, masked)
        return self._prepend_bos(self._encoder.encode(text, mark)) if mark else self.encode_text(text)

    def encode_text(self, text: str) -> list[int]:
        """Encode text without a template: continuations, few-shot prompts, pretraining."""
        return self._prepend_bos(self.hf_tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prepend_bos(self, tokens: list[int]) -> list[int]:
        return tokens if self.bos is None or tokens[:1] == [self.bos] else [self.bos, *tokens]

    def encode_completion(self, text: str, *, finished: bool = True) -> list[int]:
        """Encode a completion; the end of the turn follows unless it was truncated.

        Names of special tokens are plain characters here, so a completion cannot spell its own end.
        """
        tokens: list[int] = (
            self.hf_tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
        )
        return [*tokens, self.end_of_turn] if finished else tokens

    def encode_example(self, prompt: PromptFields | str, completion: str, *, finished: bool = True) -> TokenizedExample:
        return TokenizedExample(self.encode_prompt(prompt), self.encode_completion(completion, finished=finished))

    def with_end_of_turn(self, example: TokenizedExample) -> TokenizedExample:
        """Return a finished completion with `end_of_turn` last, whichever stop token ended it: what is scored is then
        the same tokens as the text in a file.
        """
        if example.completion_ids[-1] == self.end_of_turn:
            return example
        return replace(example, completion_ids=[*example.completion_ids[:-1], self.end_of_turn])

    def is_compatible(self, tokenizer: PromptTokenizer) -> bool:
        """Return whether both tokenizers encode alike: same vocabulary, template and end of a turn.

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


def split_assistant_turns(demonstration: Demonstration) -> Iterator[Demonstration]:
    """Yield a demonstration of each assistant turn that answers a user's, with all turns before it; the last one last.

    So every turn is learned in the context in which it is sampled, whatever the template does with earlier turns.
    """
    messages = demonstration.messages or ()
    for index, message in enumerate(messages):
        if message.role == "assistant" and index and messages[index - 1].role == "user":
            columns = {"prompt": "", "messages": messages[:index], "completion": message.content}
            yield Demonstration.model_validate(demonstration.model_dump() | columns)
    yield demonstration


def tokenize_demonstrations(
    demonstrations: Iterable[Demonstration], tokenizer: PromptTokenizer, max_length: int
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
