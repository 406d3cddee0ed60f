"""Formats of preferences and rankings, one function each (see `demonstrations` for what they take, return and raise)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from instructgpt.data.importing.fields import (
    ANSWER,
    Dropped,
    Row,
    dense_ranks,
    list_of,
    make_ranking,
    number_of,
    object_of,
    text_of,
    turns_of,
)
from instructgpt.records import Message, Record

PART_EARLY = "the two dialogues part before the last answer"


def from_rankings(row: Row, extra: Row) -> list[Record]:
    """Ours: `prompt`, `completions`, `ranks`, and whatever labelers added to each completion."""
    columns = {name: row[name] for name in ("models", "ratings", "labels") if row.get(name) is not None}
    return make_ranking(text_of(row, "prompt"), list_of(row, "completions"), list_of(row, "ranks"), extra | columns)


def from_hh(row: Row, extra: Row) -> list[Record]:
    """Anthropic's transcripts in `chosen` and `rejected`: the prompt goes up to and with the last "Assistant:"."""
    prompts, answers = zip(*(_last_answer(text_of(row, column)) for column in ("chosen", "rejected")), strict=True)
    if prompts[0] != prompts[1]:
        raise Dropped(PART_EARLY)
    return make_ranking(prompts[0], answers, (1, 2), extra)


def _last_answer(transcript: str) -> tuple[str, str]:
    """The prompt and the last answer of a transcript."""
    prompt, mark, answer = transcript.rpartition(ANSWER)
    if not mark:
        raise Dropped("no assistant turn")
    if "\n\nHuman:" in answer:
        raise Dropped("the dialogue does not end with the assistant")
    return (prompt + mark).strip(), answer.strip()


def from_pairs(row: Row, extra: Row) -> list[Record]:
    """TRL's `chosen` and `rejected`, text or turns, with the `prompt` or with one that both share as their beginning.

    A shared beginning of plain texts is taken back to its last white space, so that no word is cut in two; words with which both
    answers begin cannot be told from the prompt.
    """
    sides = (row.get("chosen"), row.get("rejected"))
    if isinstance(sides[0], list):
        contexts, answers = zip(*(_last_turn(row, column) for column in ("chosen", "rejected")), strict=True)
        if contexts[0] != contexts[1]:
            raise Dropped(PART_EARLY)
        return make_ranking(_whole_prompt(row.get("prompt"), contexts[0]), answers, (1, 2), extra)
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    if isinstance(row.get("prompt"), list):
        return make_ranking(turns_of(row["prompt"], "prompt"), (chosen, rejected), (1, 2), extra)
    if row.get("prompt") is not None:
        return make_ranking(text_of(row, "prompt"), (chosen, rejected), (1, 2), extra)
    if chosen == rejected:
        raise Dropped("chosen and rejected are the same text, so no prompt can be told from them")
    shared = "".join(a for a, _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    start = max((at + 1 for at, character in enumerate(shared) if character.isspace()), default=0)
    if start == 0:
        raise Dropped("chosen and rejected share no prompt")
    return make_ranking(shared[:start].rstrip(), (chosen[start:], rejected[start:]), (1, 2), extra)


def _last_turn(row: Row, column: str) -> tuple[tuple[Message, ...], str]:
    """What comes before the last turn, and that turn, which must be the assistant's."""
    turns = turns_of(row.get(column), column)
    if not turns or turns[-1].role != "assistant":
        raise Dropped("the dialogue does not end with the assistant")
    return turns[:-1], turns[-1].content


def _whole_prompt(prompt: object, context: tuple[Message, ...]) -> str | tuple[Message, ...]:
    """An explicit prompt, and the turns before the answer, which some data sets repeat in `chosen` and some do not."""
    if isinstance(prompt, str):
        return context or prompt
    turns = turns_of(prompt, "prompt") if prompt is not None else ()
    return context if context[: len(turns)] == turns else turns + context


def from_nemo(row: Row, extra: Row) -> list[Record]:
    """NeMo RL's `context` (turns) and `completions` (`rank`, the lowest best, and the turns of `completion`)."""
    entries = [object_of(entry, "completions") for entry in list_of(row, "completions")]
    answers = [turns_of(entry.get("completion"), "completion") for entry in entries]
    if not all(len(answer) == 1 and answer[0].role == "assistant" for answer in answers):
        raise Dropped("a completion is not one assistant turn")
    ranks = dense_ranks([number_of(entry, "rank") for entry in entries], best="low")
    return make_ranking(turns_of(row.get("context"), "context"), [answer[0].content for answer in answers], ranks, extra)


def from_ultrafeedback(row: Row, extra: Row) -> list[Record]:
    """UltraFeedback's `instruction` and `completions`, ordered by the mean of their fine-grained scores, else by the overall score."""
    entries = [object_of(entry, "completions") for entry in list_of(row, "completions")]
    fine = all(entry.get("fine-grained_score") is not None for entry in entries)
    scores = [number_of(entry, "fine-grained_score" if fine else "overall_score") for entry in entries]
    models = [str(entry.get("model", "unknown")) for entry in entries]
    completions = [text_of(entry, "response") for entry in entries]
    return make_ranking(text_of(row, "instruction"), completions, dense_ranks(scores), extra | {"models": models})


def from_oasst(row: Row, extra: Row) -> list[Record]:
    """An Open Assistant message tree: a ranking for each user turn with two or more ranked replies (rank 0 is best)."""
    found = list(_ranked_replies(object_of(row.get("prompt"), "prompt"), (), extra))
    if not found:
        raise Dropped("no turn with two ranked replies")
    return found


def _ranked_replies(node: Row, before: tuple[Message, ...], extra: Row) -> Iterator[Record]:
    """The rankings in a tree below one message; `before` are the turns that lead to it."""
    turns = (*before, *turns_of([{"role": node.get("role"), "content": node.get("text")}], "prompt"))
    replies = [object_of(reply, "replies") for reply in node.get("replies") or ()]
    ranked = [reply for reply in replies if reply.get("rank") is not None and not reply.get("deleted")]
    if turns[-1].role == "user" and len(ranked) >= 2:
        ranks = dense_ranks([number_of(reply, "rank") for reply in ranked], best="low")
        yield from make_ranking(turns, [text_of(reply, "text") for reply in ranked], ranks, extra)
    for reply in replies:
        yield from _ranked_replies(reply, turns, extra)


def from_helpsteer3(row: Row, extra: Row) -> list[Record]:
    """HelpSteer3's `context`, `response1`, `response2`, `overall_preference` (below 0 the first is better, 0 is a tie)."""
    preference = number_of(row, "overall_preference")
    completions = (text_of(row, "response1"), text_of(row, "response2"))
    return make_ranking(turns_of(row.get("context"), "context"), completions, dense_ranks([-preference, preference]), extra)


def from_shp(row: Row, extra: Row) -> list[Record]:
    """Stanford Human Preferences' `history`, `human_ref_A`, `human_ref_B`, `labels` (1: A is better)."""
    ranks = (1, 2) if number_of(row, "labels") == 1 else (2, 1)
    return make_ranking(text_of(row, "history"), (text_of(row, "human_ref_A"), text_of(row, "human_ref_B")), ranks, extra)


def from_webgpt(row: Row, extra: Row) -> list[Record]:
    """WebGPT comparisons' `question`, `answer_0`, `answer_1`, `score_0`, `score_1` (equal scores tie)."""
    question = row.get("question")
    prompt = text_of(question, "full_text") if isinstance(question, dict) else text_of(row, "question")
    ranks = dense_ranks([number_of(row, "score_0"), number_of(row, "score_1")])
    return make_ranking(prompt, (text_of(row, "answer_0"), text_of(row, "answer_1")), ranks, extra)


def from_tldr(row: Row, extra: Row) -> list[Record]:
    """OpenAI's summary comparisons: `info` (the post), two `summaries`, and `choice`, the position of the better one."""
    info = object_of(row.get("info"), "info")
    summaries = [object_of(summary, "summaries") for summary in list_of(row, "summaries")]
    choice = int(number_of(row, "choice"))
    if info.get("article") is not None:
        prompt = f"TITLE: {info.get('title') or ''}\n\nARTICLE: {text_of(info, 'article')}\n\nTL;DR:"
    else:
        title = info.get("title") or ""
        prompt = f"SUBREDDIT: r/{info.get('subreddit') or ''}\n\nTITLE: {title}\n\nPOST: {text_of(info, 'post')}\n\nTL;DR:"
    policies: Sequence[str] = [str(summary.get("policy", "unknown")) for summary in summaries]
    ranks = [1 if position == choice else 2 for position in range(len(summaries))]
    labeler = {"labeler": row["worker"]} if row.get("worker") is not None else {}
    texts = [text_of(summary, "text").strip() for summary in summaries]
    return make_ranking(prompt, texts, ranks, extra | labeler | {"models": policies})
