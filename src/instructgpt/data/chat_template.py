"""Chat templates: the plain one, errors, a pinned date, the end of a turn, and control tokens that users type."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from tokenizers import Tokenizer

from instructgpt.errors import InputError, one_line
from instructgpt.records import Message

PLAIN_TEMPLATE = (
    "{%- if messages | length == 1 and messages[0]['role'] == 'user' -%}"
    "{{ messages[0]['content'] + '\\n' }}"
    "{%- else -%}"
    "{%- for message in messages -%}"
    "{{ (message['role'] | capitalize) + ':\\n' + message['content'] }}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    "{{ '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:\\n' }}{%- endif -%}"
    "{%- endif -%}"
)
"""Template for models without one.

A single prompt is its text and a newline; the completion follows at once. Where there are more turns, a line with the
role stands before each, and end-of-text after the assistant's.
"""
UNMARKED_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
"""The plain template of models made before turns had role marks."""

_QUESTION, _ANSWER, _FOLLOW_UP, _SYSTEM = "Qwertz one", "Zyxwv two", "Plokij three", "Mnbvc four"
"""Texts of the probe dialogue; no template contains them."""
_READ_PARTS = (
    "{#- this template reads content as a list of parts; text becomes one part -#}"
    "{%- set turns = namespace(all=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set content = [{'type': 'text', 'text': message['content']}]"
    " if message['content'] is string else message['content'] -%}"
    "{%- set turns.all = turns.all + [{'role': message['role'], 'content': content}] -%}"
    "{%- endfor -%}"
    "{%- set messages = turns.all -%}"
)
"""Put before templates of models that read images too, which loop over the parts of each turn."""
_DATE_CALL = re.compile(r"strftime_now\s*\(\s*(['\"])(.*?)\1\s*\)")
_PIN_MARK = "{#- the date is pinned, so that one conversation is always the same tokens -#}"
_PRIVATE_USE = range(0xE000, 0xF8FF)


def render_messages(hf_tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """Render a conversation with the tokenizer's template. Raises InputError if the template refuses it."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(hf_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt))
    except Exception as error:  # a template raises whatever its expressions raise
        roles = ", ".join(message.role for message in messages)
        raise InputError(f"the chat template refuses the turns {roles} ({one_line(error, 200)})") from error


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a template does with a dialogue."""

    end_of_turn: str | None  # the added token that ends the assistant's turn; None if the template writes none
    control_tokens: frozenset[str]  # added tokens that the template writes
    ignores_system: bool

    @classmethod
    def probe(cls, hf_tokenizer: Any) -> ChatFormat:
        """Render a short dialogue. Raises InputError if the template cannot render one user turn."""
        user = Message(role="user", content=_QUESTION)
        dialogue = [user, Message(role="assistant", content=_ANSWER), Message(role="user", content=_FOLLOW_UP)]
        rendered = [_render_probe(hf_tokenizer, [user], required=True)]
        rendered += [_render_probe(hf_tokenizer, dialogue[:count]) for count in (2, 3)]
        with_system = _render_probe(hf_tokenizer, [Message(role="system", content=_SYSTEM), user])
        added = added_token_ids(hf_tokenizer)
        ends = [_first_added_token(text.partition(_ANSWER)[2].partition(_FOLLOW_UP)[0], added) for text in rendered[1:]]
        return cls(
            end_of_turn=next((end for end in ends if end), None),
            control_tokens=frozenset(token for token in added if any(token in text for text in rendered)),
            ignores_system=bool(with_system) and _SYSTEM not in with_system,
        )


def _render_probe(hf_tokenizer: Any, messages: Sequence[Message], *, required: bool = False) -> str:
    """Render with a generation prompt after a user turn; "" where the template refuses these turns."""
    try:
        return render_messages(hf_tokenizer, messages, add_generation_prompt=messages[-1].role == "user")
    except InputError as error:
        if required:
            raise InputError(
                f"{hf_tokenizer.name_or_path}: the tokenizer's chat template is broken: {error}"
            ) from error
        return ""


def added_token_ids(hf_tokenizer: Any) -> dict[str, int]:
    """Return the tokens that are no part of the model's vocabulary of text, with their ids."""
    return {token.content: token_id for token_id, token in hf_tokenizer.added_tokens_decoder.items() if token.content}


def special_token_ids(hf_tokenizer: Any) -> dict[str, int]:
    """Return the added tokens that are marked as special, with their ids."""
    return {
        token.content: token_id
        for token_id, token in hf_tokenizer.added_tokens_decoder.items()
        if token.content and (token.special or token_id in hf_tokenizer.all_special_ids)
    }


def _first_added_token(text: str, added: dict[str, int]) -> str | None:
    match = _spelling_pattern(added).search(text) if added else None
    return match[0] if match else None


def _spelling_pattern(tokens: Sequence[str] | dict[str, int] | frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


# ---------------------------------------------------------------- templates that expect something else


def choose_template(hf_tokenizer: Any) -> None:
    """Keep the default one of several named templates, and let one that reads lists of parts read text too.

    Raises:
        InputError: no template is the default one, or it does not write the text of a user turn.
    """
    templates = hf_tokenizer.chat_template
    if isinstance(templates, dict):
        if "default" not in templates:
            names = ", ".join(sorted(templates))
            reason = f"has several chat templates ({names}) and none is named 'default'; set one as chat_template"
            raise InputError(f"{hf_tokenizer.name_or_path}: the tokenizer {reason}")
        hf_tokenizer.chat_template = templates["default"]
    template, user = hf_tokenizer.chat_template, [Message(role="user", content=_QUESTION)]
    for candidate in (template, _READ_PARTS + template):
        hf_tokenizer.chat_template = candidate
        try:
            if _QUESTION in render_messages(hf_tokenizer, user):
                return
        except InputError:
            continue
    hf_tokenizer.chat_template = template
    _render_probe(hf_tokenizer, user, required=True)  # says why it is broken
    reason = "the tokenizer's chat template does not write the text of a user turn"
    raise InputError(f"{hf_tokenizer.name_or_path}: {reason}")


# ---------------------------------------------------------------- dates


def uses_date(template: str) -> bool:
    """Return whether a template prints the day on which it is rendered."""
    return _PIN_MARK not in template and ("strftime_now" in template or "date_string" in template)


def pin_date(template: str, day: date) -> str:
    """Return the template with a fixed date; any program that renders it gets the same text."""
    formats = dict.fromkeys(match[2] for match in _DATE_CALL.finditer(template))
    dates = json.dumps({format: day.strftime(format) for format in formats}, ensure_ascii=False)
    macro = (
        "{%- macro strftime_now(format) -%}{{ " + dates + f".get(format, '{day.isoformat()}') " + "}}{%- endmacro -%}"
    )
    date_string = "{%- set date_string = '" + day.strftime("%d %b %Y") + "' -%}" if "date_string" in template else ""
    return _PIN_MARK + macro + date_string + template


# ---------------------------------------------------------------- control tokens in messages


class TextEncoder:
    """Encodes rendered conversations in which some spellings of control tokens are plain text.

    `mask` marks such spellings in a message before it is rendered; `encode` encodes what is marked as letters, and the
    template's own control tokens as tokens.
    """

    def __init__(self, hf_tokenizer: Any, control_tokens: frozenset[str]) -> None:
        self.added = added_token_ids(hf_tokenizer)
        special = frozenset(special_token_ids(hf_tokenizer))
        # A model may write added tokens that are not special, such as <think>; they stay tokens in its own turns.
        self._patterns = {
            role: _spelling_pattern(tokens) if tokens else None
            for role, tokens in (("assistant", special), ("user", special | control_tokens))
        }
        self._split_pattern = _spelling_pattern(self.added) if self.added else None
        self._backend: str = hf_tokenizer.backend_tokenizer.to_str()
        self._letter_tokenizers: tuple[Tokenizer, Tokenizer] | None = None

    def mask(self, messages: Sequence[Message]) -> tuple[list[Message], str]:
        """Return the messages with a mark inside each spelling of a control token, and the mark; "" if none occurs."""
        patterns = [self._patterns.get(message.role) or self._patterns["user"] for message in messages]
        pairs = list(zip(messages, patterns, strict=True))
        if not any(pattern and pattern.search(message.content) for message, pattern in pairs):
            return list(messages), ""
        text = "".join(message.content for message in messages)
        mark = next(chr(code) for code in _PRIVATE_USE if chr(code) not in text)
        masked = []
        for message, pattern in pairs:
            assert pattern is not None
            content = pattern.sub(lambda match: match[0][0] + mark + match[0][1:], message.content)
            masked.append(message.model_copy(update={"content": content}))
        return masked, mark

    def encode(self, text: str, mark: str) -> list[int]:
        """Encode a rendered conversation with marked spellings."""
        first, later = self._get_letter_tokenizers()
        assert self._split_pattern is not None
        ids: list[int] = []
        position = 0
        for match in [*self._split_pattern.finditer(text), None]:
            piece = text[position : match.start() if match else len(text)]
            if piece:
                ids += self._encode_letters(later if ids else first, piece, mark)
            if match:
                ids.append(self.added[match[0]])
                position = match.end()
        return ids

    def _encode_letters(self, tokenizer: Tokenizer, piece: str, mark: str) -> list[int]:
        ids: list[int] = tokenizer.encode(piece.replace(mark, ""), add_special_tokens=False).ids
        if not set(ids) & set(self.added.values()):
            return ids
        # A unigram model may have a control token among its pieces: encode the two sides of each mark separately.
        return [id for part in piece.split(mark) if part for id in tokenizer.encode(part, add_special_tokens=False).ids]

    def _get_letter_tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """Return the tokenizer without added tokens, for the beginning of a text and for what follows a token."""
        if self._letter_tokenizers is None:
            settings = json.loads(self._backend)
            settings["added_tokens"] = []
            first = Tokenizer.from_str(json.dumps(settings))
            _drop_leading_space(settings.get("pre_tokenizer"))
            self._letter_tokenizers = first, Tokenizer.from_str(json.dumps(settings))
        return self._letter_tokenizers


def _drop_leading_space(pre_tokenizer: Any) -> None:
    """Change settings that put a space before the first word only: no later piece gets one."""
    if not isinstance(pre_tokenizer, dict):
        return
    if pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") == "first":
        pre_tokenizer["prepend_scheme"] = "never"
    for part in pre_tokenizer.get("pretokenizers", ()):
        _drop_leading_space(part)
