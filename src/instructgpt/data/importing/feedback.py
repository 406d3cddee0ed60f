"""Comparisons by users: Open WebUI's feedback export and votes of Chatbot Arena. Their cohort is `user`.

Votes are compared within one prompt. A thumb without a comparison is no ranking and is left out. Addresses, names and
user ids of the source are not carried over; a hash of the user's id keeps one user's votes together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt.data.importing.fields import (
    DatasetRow,
    RowContext,
    SkipRowError,
    check_object,
    get_list_column,
    get_object_list,
    get_text_column,
    make_pseudonym,
    make_ranking,
    parse_turns,
    raise_column_error,
)
from instructgpt.records import Message, Record

_ARENA_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_VOTES: Mapping[str, tuple[int, int, bool]] = {
    "leftvote": (1, 2, False),
    "rightvote": (2, 1, False),
    "tievote": (1, 1, False),
    "bothbad_vote": (1, 1, True),
    "model_a": (1, 2, False),
    "model_b": (2, 1, False),
    "tie": (1, 1, False),
    "tie (bothbad)": (1, 1, True),
    "bothbad": (1, 1, True),
}
"""Vote -> ranks of both answers, and whether both are bad."""


def is_open_webui(row: DatasetRow) -> bool:
    """Return whether a row is a feedback of Open WebUI's export."""
    data = row.get("data")
    return row.get("type") == "rating" and isinstance(data, dict) and "rating" in data and "snapshot" in row


def is_arena_vote(row: DatasetRow) -> bool:
    """Return whether a row is a vote, as FastChat logs it or as the published data sets have it."""
    is_logged = all(name in row for name in ("type", "models", "states"))
    return is_logged or all(name in row for name in ("winner", "conversation_a", "conversation_b"))


def from_open_webui(row: DatasetRow, context: RowContext) -> list[Record]:
    """Read a rated message and its siblings: a thumb up wins against them, a thumb down loses to them."""
    data, meta = check_object(row.get("data"), "data"), check_object(row.get("meta") or {}, "meta")
    messages = _snapshot_messages(row)
    message_id = meta.get("message_id")
    if not isinstance(message_id, str) or message_id not in messages:
        raise SkipRowError("the rated message is not in the snapshot")
    rating = data.get("rating")
    if rating not in (1, -1, "1", "-1"):
        raise SkipRowError("a rating other than 1 and -1")
    rated = messages[message_id]
    named_models = get_list_column(data, "sibling_model_ids") if data.get("sibling_model_ids") else []
    siblings = _siblings(messages, message_id, named_models)
    if not siblings:
        raise SkipRowError("a thumb without a comparison")
    is_up = int(rating) == 1
    completions = [_content(rated), *map(_content, siblings)]
    ranks = [1 if is_up else 2] + [2 if is_up else 1] * len(siblings)
    models = [
        _model(rated) or str(data.get("model_id") or "unknown"),
        *(_model(item) or "unknown" for item in siblings),
    ]
    additions = {"models": tuple(models), "labeler": make_pseudonym("open-webui", row.get("user_id")), "cohort": "user"}
    return make_ranking(_path_to(messages, rated), completions, ranks, context, source="open-webui", **additions)


def _snapshot_messages(row: DatasetRow) -> dict[str, DatasetRow]:
    """Return the messages of the chat at the time of the feedback, by id."""
    value: Any = row.get("snapshot")
    for name in ("chat", "chat", "history", "messages"):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict):
        raise SkipRowError("no messages in the snapshot; export the feedback with its chats")
    return {key: message for key, message in value.items() if isinstance(message, dict)}


def _siblings(messages: Mapping[str, DatasetRow], message_id: str, model_ids: Sequence[Any]) -> list[DatasetRow]:
    """Return the other answers to the same message, by the models that the feedback names if it names any."""
    parent = messages[message_id].get("parentId")
    return [
        message
        for key, message in messages.items()
        if key != message_id
        and message.get("role") == "assistant"
        and message.get("parentId") == parent
        and _content(message).strip()
        and (not model_ids or _model(message) in model_ids)
    ]


def _path_to(messages: Mapping[str, DatasetRow], answer: DatasetRow) -> list[Message]:
    """Return the conversation before an answer."""
    turns: list[Message] = []
    parent, visited = answer.get("parentId"), set[str]()
    while isinstance(parent, str) and parent in messages and parent not in visited:
        visited.add(parent)
        message = messages[parent]
        turns.append(Message.model_validate({"role": message.get("role"), "content": _content(message)}))
        parent = message.get("parentId")
    return turns[::-1]


def _content(message: DatasetRow) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise_column_error("content", "text", content)
    return content


def _model(message: DatasetRow) -> str | None:
    model = message.get("model")
    return model if isinstance(model, str) else None


def from_arena_vote(row: DatasetRow, context: RowContext) -> list[Record]:
    """Read a vote between two answers to the same conversation; "both bad" is a tie of two bad answers."""
    is_logged = "states" in row
    vote = get_text_column(row, "type" if is_logged else "winner")
    if vote not in _VOTES:
        raise SkipRowError("not a vote between two answers")
    if is_logged:
        names, states = get_list_column(row, "models"), get_object_list(row, "states")
        if len(names) != 2 or len(states) != 2:
            raise_column_error("states", "two conversations", states)
        conversations = [_state_turns(state) for state in states]
        models = [str(name or state.get("model_name")) for name, state in zip(names, states, strict=True)]
    else:
        conversations = [list(parse_turns(row[name], name)) for name in ("conversation_a", "conversation_b")]
        models = [str(row.get("model_a")), str(row.get("model_b"))]
    prompts, answers = zip(*map(_split_answer, conversations), strict=True)
    if prompts[0] != prompts[1]:
        raise SkipRowError("the two conversations part before the last answer")
    first, second, all_bad = _VOTES[vote]
    voter = make_pseudonym("arena", row.get("ip") if is_logged else row.get("judge"))
    additions = {"models": tuple(models), "labeler": voter, "cohort": "user", "none_acceptable": all_bad}
    return make_ranking(prompts[0], answers, (first, second), context, source="arena", **additions)


def _state_turns(state: DatasetRow) -> list[Message]:
    """Return the turns of a logged conversation, whose messages are pairs of role and text."""
    pairs = state.get("messages")
    if not isinstance(pairs, list):
        raise_column_error("messages", "pairs of role and text", pairs)
    offset = state.get("offset")
    turns = []
    for pair in pairs[offset if isinstance(offset, int) and offset > 0 else 0 :]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise_column_error("messages", "pairs of role and text", pair)
        role, text = pair
        if text is None:
            continue  # an answer that never came
        name = _ARENA_ROLES.get(str(role).strip("<|>: ").lower())
        if name is None:
            raise SkipRowError("a role other than user, assistant and system")
        turns.append(Message(role=name, content=str(text)))
    return turns


def _split_answer(turns: list[Message]) -> tuple[list[Message], str]:
    if not turns or turns[-1].role != "assistant":
        raise SkipRowError("the dialogue does not end with the assistant")
    return turns[:-1], turns[-1].content
