"""Formats of preferences and rankings, one function each (see `demonstrations` for arguments and errors)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from instructgpt.data.importing.fields import (
    ASSISTANT_MARKER,
    DatasetRow,
    SkipRowError,
    check_object,
    get_list_column,
    get_number_column,
    get_text_column,
    make_ranking,
    parse_turns,
    rank_by_value,
)
from instructgpt.records import Message, Record

_PROMPTS_DIFFER = "the two dialogues part before the last answer"


def from_rankings(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """Ours: `prompt` or `messages`, `completions`, `ranks`, and labelers' additions to each completion."""
    columns = {name: row[name] for name in ("models", "ratings", "labels") if row.get(name) is not None}
    is_conversation = row.get("messages") is not None
    return make_ranking(
        parse_turns(row["messages"], "messages") if is_conversation else get_text_column(row, "prompt"),
        get_list_column(row, "completions"),
        get_list_column(row, "ranks"),
        extra | columns,
    )


def from_hh(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """Anthropic's transcripts in `chosen` and `rejected`: the prompt ends with the last "Assistant:"."""
    prompts, answers = zip(
        *(_split_last_answer(get_text_column(row, column)) for column in ("chosen", "rejected")), strict=True
    )
    if prompts[0] != prompts[1]:
        raise SkipRowError(_PROMPTS_DIFFER)
    return make_ranking(prompts[0], answers, (1, 2), extra)


def _split_last_answer(transcript: str) -> tuple[str, str]:
    prompt, separator, answer = transcript.rpartition(ASSISTANT_MARKER)
    if not separator:
        raise SkipRowError("no assistant turn")
    if "\n\nHuman:" in answer:
        raise SkipRowError("the dialogue does not end with the assistant")
    return (prompt + separator).strip(), answer.strip()


def from_pairs(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """TRL's `chosen` and `rejected`, text or turns, with an explicit prompt or a shared beginning.

    A shared beginning of plain texts is cut back to white space; words that both answers begin with cannot be
    separated.
    """
    sides = (row.get("chosen"), row.get("rejected"))
    if isinstance(sides[0], list):
        contexts, answers = zip(*(_split_last_turn(row, column) for column in ("chosen", "rejected")), strict=True)
        if contexts[0] != contexts[1]:
            raise SkipRowError(_PROMPTS_DIFFER)
        return make_ranking(_merge_prompt(row.get("prompt"), contexts[0]), answers, (1, 2), extra)
    chosen, rejected = get_text_column(row, "chosen"), get_text_column(row, "rejected")
    if isinstance(row.get("prompt"), list):
        return make_ranking(parse_turns(row["prompt"], "prompt"), (chosen, rejected), (1, 2), extra)
    if row.get("prompt") is not None:
        return make_ranking(get_text_column(row, "prompt"), (chosen, rejected), (1, 2), extra)
    if chosen == rejected:
        raise SkipRowError("chosen and rejected are the same text, so no prompt can be told from them")
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    start = max((index + 1 for index, character in enumerate(shared) if character.isspace()), default=0)
    if start == 0:
        raise SkipRowError("chosen and rejected share no prompt")
    return make_ranking(shared[:start].rstrip(), (chosen[start:], rejected[start:]), (1, 2), extra)


def _split_last_turn(row: DatasetRow, column: str) -> tuple[tuple[Message, ...], str]:
    turns = parse_turns(row.get(column), column)
    if not turns or turns[-1].role != "assistant":
        raise SkipRowError("the dialogue does not end with the assistant")
    return turns[:-1], turns[-1].content


def _merge_prompt(prompt: object, context: tuple[Message, ...]) -> str | tuple[Message, ...]:
    """Combine an explicit prompt with the turns before the answer, which some data sets repeat in `chosen`."""
    if isinstance(prompt, str):
        return context or prompt
    turns = parse_turns(prompt, "prompt") if prompt is not None else ()
    return context if context[: len(turns)] == turns else turns + context


def from_nemo(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """NeMo RL's `context` (turns) and `completions` (`rank`, lowest best, and the turns of `completion`)."""
    entries = [check_object(entry, "completions") for entry in get_list_column(row, "completions")]
    answers = [parse_turns(entry.get("completion"), "completion") for entry in entries]
    if not all(len(answer) == 1 and answer[0].role == "assistant" for answer in answers):
        raise SkipRowError("a completion is not one assistant turn")
    ranks = rank_by_value([get_number_column(entry, "rank") for entry in entries], best="low")
    return make_ranking(
        parse_turns(row.get("context"), "context"), [answer[0].content for answer in answers], ranks, extra
    )


def from_ultrafeedback(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """UltraFeedback's `instruction` and `completions`, ordered by mean fine-grained score, else by overall score."""
    entries = [check_object(entry, "completions") for entry in get_list_column(row, "completions")]
    has_fine_scores = all(entry.get("fine-grained_score") is not None for entry in entries)
    scores = [
        get_number_column(entry, "fine-grained_score" if has_fine_scores else "overall_score") for entry in entries
    ]
    models = [str(entry.get("model", "unknown")) for entry in entries]
    completions = [get_text_column(entry, "response") for entry in entries]
    return make_ranking(
        get_text_column(row, "instruction"), completions, rank_by_value(scores), extra | {"models": models}
    )


def from_oasst(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """Open Assistant message trees: a ranking for each user turn with two or more ranked replies (rank 0 is best)."""
    ranking_records = list(_iter_ranked_replies(check_object(row.get("prompt"), "prompt"), (), extra))
    if not ranking_records:
        raise SkipRowError("no turn with two ranked replies")
    return ranking_records


def _iter_ranked_replies(node: DatasetRow, previous_turns: tuple[Message, ...], extra: DatasetRow) -> Iterator[Record]:
    turns = (*previous_turns, *parse_turns([{"role": node.get("role"), "content": node.get("text")}], "prompt"))
    replies = [check_object(reply, "replies") for reply in node.get("replies") or ()]
    ranked = [reply for reply in replies if reply.get("rank") is not None and not reply.get("deleted")]
    if turns[-1].role == "user" and len(ranked) >= 2:
        ranks = rank_by_value([get_number_column(reply, "rank") for reply in ranked], best="low")
        yield from make_ranking(turns, [get_text_column(reply, "text") for reply in ranked], ranks, extra)
    for reply in replies:
        yield from _iter_ranked_replies(reply, turns, extra)


def from_helpsteer3(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """HelpSteer3's `context`, `response1`, `response2`, `overall_preference` (negative: the first is better, 0:
    tie).
    """
    preference = get_number_column(row, "overall_preference")
    completions = (get_text_column(row, "response1"), get_text_column(row, "response2"))
    return make_ranking(
        parse_turns(row.get("context"), "context"), completions, rank_by_value([-preference, preference]), extra
    )


def from_shp(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """Stanford Human Preferences' `history`, `human_ref_A`, `human_ref_B`, `labels` (1: A is better)."""
    ranks = (1, 2) if get_number_column(row, "labels") == 1 else (2, 1)
    return make_ranking(
        get_text_column(row, "history"),
        (get_text_column(row, "human_ref_A"), get_text_column(row, "human_ref_B")),
        ranks,
        extra,
    )


def from_webgpt(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """WebGPT comparisons' `question`, `answer_0`, `answer_1`, `score_0`, `score_1` (equal scores tie)."""
    question = row.get("question")
    prompt = get_text_column(question, "full_text") if isinstance(question, dict) else get_text_column(row, "question")
    ranks = rank_by_value([get_number_column(row, "score_0"), get_number_column(row, "score_1")])
    return make_ranking(prompt, (get_text_column(row, "answer_0"), get_text_column(row, "answer_1")), ranks, extra)


def from_tldr(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """OpenAI's summary comparisons: `info` (the post), two `summaries`, and `choice`, the index of the better one."""
    info = check_object(row.get("info"), "info")
    summaries = [check_object(summary, "summaries") for summary in get_list_column(row, "summaries")]
    choice = int(get_number_column(row, "choice"))
    if info.get("article") is not None:
        prompt = f"TITLE: {info.get('title') or ''}\n\nARTICLE: {get_text_column(info, 'article')}\n\nTL;DR:"
    else:
        title = info.get("title") or ""
        prompt = (
            f"SUBREDDIT: r/{info.get('subreddit') or ''}\n\nTITLE: {title}\n\nPOST: "
            f"{get_text_column(info, 'post')}\n\nTL;DR:"
        )
    policies: Sequence[str] = [str(summary.get("policy", "unknown")) for summary in summaries]
    ranks = [1 if position == choice else 2 for position in range(len(summaries))]
    labeler = {"labeler": row["worker"]} if row.get("worker") is not None else {}
    texts = [get_text_column(summary, "text").strip() for summary in summaries]
    return make_ranking(prompt, texts, ranks, extra | labeler | {"models": policies})
