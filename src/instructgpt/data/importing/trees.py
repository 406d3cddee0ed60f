"""Open Assistant's message trees, nested or one message a row.

A user turn with two ranked replies or more is a ranking. Every conversation along the best replies is a demonstration:
its earlier answers are the assistant's turns of `messages`. A message that was deleted or rejected in review is left
out with all below it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from instructgpt.data.drop_report import DropReport, LocatedItem
from instructgpt.data.importing.fields import (
    DatasetRow,
    RowContext,
    SkipRowError,
    check_not_null,
    check_object,
    get_text_column,
    make_demonstration,
    make_ranking,
    parse_truth_value,
    parse_turns,
    raise_column_error,
    rank_by_value,
)
from instructgpt.records import Message, Record

_REJECTED = "a message that was deleted or rejected in review, or stands below one"
_UNREACHED = "a message whose first message is not in the data"
_REPEATED = "a message whose message_id was there before"
_UNANSWERED = "a user turn without an answer to learn from"
_NOT_BEST = "a reply without a rank beside others, or not the best and in no ranking"


@dataclass(eq=False)
class TreeMessage:
    """One message with its replies."""

    turn: Message
    rank: float | None
    is_rejected: bool
    location: str = ""
    message_id: str = ""
    parent_id: str | None = None
    extra: DatasetRow = field(default_factory=dict)
    parent: TreeMessage | None = None
    replies: list[TreeMessage] = field(default_factory=list)

    def conversation(self) -> list[TreeMessage]:
        """Return the messages from the first to this one."""
        path: list[TreeMessage] = []
        message: TreeMessage | None = self
        while message is not None:
            path.append(message)
            message = message.parent
        return path[::-1]


def _parse_message(node: DatasetRow, context: RowContext) -> TreeMessage:
    (turn,) = parse_turns([{"role": node.get("role"), "content": get_text_column(node, "text")}], "message")
    is_deleted = parse_truth_value(node.get("deleted")) is True
    is_rejected = is_deleted or parse_truth_value(node.get("review_result")) is False
    return TreeMessage(turn, _parse_rank(node.get("rank")), is_rejected, extra=context.extra)


def _parse_rank(value: object) -> float | None:
    """Read a rank, 0 for the best; null, and the empty cell of a table, is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and value.strip().removeprefix("-").replace(".", "", 1).isdecimal():
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise_column_error("rank", "a number", value)
    return value


# ---------------------------------------------------------------- nested


def from_oasst(row: DatasetRow, context: RowContext) -> list[Record]:
    """Open Assistant message trees: `prompt` with `role`, `text`, `rank` and nested `replies`."""
    check_not_null(row, "prompt")
    root = check_object(row.get("prompt"), "prompt")
    tree = _parse_message(root, context)
    waiting = [(root, tree)]
    while waiting:
        node, message = waiting.pop()
        replies = node.get("replies") or ()
        if not isinstance(replies, list | tuple):
            raise_column_error("replies", "a list", replies)
        for reply in replies:
            child_node = check_object(reply, "replies")
            child = _parse_message(child_node, context)
            child.parent = message
            message.replies.append(child)
            waiting.append((child_node, child))
    records = [record for _, _, record in _iter_tree_records(tree)]
    if not records:
        raise SkipRowError("no turn with two ranked replies, and no conversation with an answer")
    return records


# ---------------------------------------------------------------- one message a row


def from_flat_oasst(row: DatasetRow, context: RowContext) -> list[TreeMessage]:
    """One message: `message_id`, `parent_id` (null for the first), `role`, `text`, `rank`."""
    ids = {}
    for name in ("message_id", "parent_id"):
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise_column_error(name, "text", value)
        ids[name] = None if value is None else str(value)
    check_not_null(row, "message_id")
    message = _parse_message(row, context)
    message.message_id, message.parent_id = ids["message_id"] or "", ids["parent_id"] or None
    return [message]


def assemble_trees(rows: Sequence[LocatedItem[TreeMessage]], report: DropReport) -> list[LocatedItem[Record]]:
    """Join messages into trees and return their rankings and demonstrations; every unused message is counted."""
    by_id: dict[str, TreeMessage] = {}
    for location, message in rows:
        message.location = location
        if message.message_id in by_id:
            report.drop(_REPEATED, location)
        else:
            by_id[message.message_id] = message
    for message in by_id.values():
        message.parent = by_id.get(message.parent_id) if message.parent_id is not None else None
        if message.parent is not None:
            message.parent.replies.append(message)
    used: set[TreeMessage] = set()
    accepted: set[TreeMessage] = set()
    records: list[LocatedItem[Record]] = []
    for root in by_id.values():
        if root.parent_id is None:
            accepted.update(_iter_accepted(root))
            for messages, location, record in _iter_tree_records(root):
                used.update(messages)
                records.append((location, record))
    rooted = _find_rooted(by_id.values())
    for message in by_id.values():
        if message not in used:
            report.drop(_unused_reason(message, message in rooted, message in accepted), message.location)
    report.count_records(rows=len(used), records=len(records))
    return records


def _find_rooted(messages: Iterable[TreeMessage]) -> set[TreeMessage]:
    """Return the messages below a first message; those of a cut tree or a circle are not."""
    rooted: set[TreeMessage] = set()
    waiting = [message for message in messages if message.parent_id is None]
    while waiting:
        message = waiting.pop()
        rooted.add(message)
        waiting += message.replies
    return rooted


def _unused_reason(message: TreeMessage, is_rooted: bool, is_accepted: bool) -> str:
    if not is_rooted:
        return _UNREACHED
    if not is_accepted:
        return _REJECTED
    return _UNANSWERED if message.turn.role == "user" else _NOT_BEST


# ---------------------------------------------------------------- records of a tree


def _iter_accepted(root: TreeMessage) -> Iterator[TreeMessage]:
    waiting = deque([root])
    while waiting:
        message = waiting.popleft()
        if not message.is_rejected:
            yield message
            waiting += message.replies


def _iter_tree_records(root: TreeMessage) -> Iterator[tuple[list[TreeMessage], str, Record]]:
    """Yield (messages used, location, record): rankings in the order of their prompts, then demonstrations."""
    for message in _iter_accepted(root):
        ranked = [reply for reply in _answers(message) if reply.rank is not None]
        if message.turn.role == "user" and message.turn.content.strip() and len(ranked) >= 2:
            path = message.conversation()
            context = RowContext(message.extra, split_transcripts=False)
            ranks = rank_by_value([reply.rank or 0 for reply in ranked], best="low")
            texts = [reply.turn.content for reply in ranked]
            (ranking,) = make_ranking([turn.turn for turn in path], texts, ranks, context)
            yield [*path, *ranked], ranked[0].location, ranking
    for answer in _iter_last_best_answers(root):
        path = answer.conversation()
        context = RowContext(answer.extra, split_transcripts=False)
        turns = [message.turn for message in path[:-1]]
        (demonstration,) = make_demonstration(turns, answer.turn.content, context)
        yield path, answer.location, demonstration


def _answers(message: TreeMessage) -> list[TreeMessage]:
    return [
        reply
        for reply in message.replies
        if reply.turn.role == "assistant" and not reply.is_rejected and reply.turn.content.strip()
    ]


def _best_answer(message: TreeMessage) -> TreeMessage | None:
    """Return the best-ranked reply of a user turn, or the only one; of several without ranks none is known as good."""
    answers = _answers(message)
    ranked = [reply for reply in answers if reply.rank is not None]
    if ranked:
        return min(ranked, key=lambda reply: reply.rank or 0)
    return answers[0] if len(answers) == 1 else None


def _iter_last_best_answers(root: TreeMessage) -> Iterator[TreeMessage]:
    """Yield the last answer of every conversation in which each answer is the best of its turn."""
    waiting = [root] if root.turn.role == "user" and not root.is_rejected else []
    while waiting:
        answer = _best_answer(message) if (message := waiting.pop()).turn.content.strip() else None
        if answer is None:
            continue
        questions = [
            reply
            for reply in answer.replies
            if reply.turn.role == "user" and not reply.is_rejected and reply.turn.content.strip()
        ]
        answered = [question for question in questions if _best_answer(question) is not None]
        if answered:
            waiting += reversed(answered)
        else:
            yield answer
