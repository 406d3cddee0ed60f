"""Formats of preferences and rankings, one function each (see `demonstrations` for arguments and errors)."""

from __future__ import annotations

from itertools import takewhile

from instructgpt.data.importing.fields import (
    DatasetRow,
    RowContext,
    SkipRowError,
    check_not_null,
    check_object,
    get_number_column,
    get_object_list,
    get_ranks,
    get_text_column,
    get_text_list,
    make_ranking,
    parse_prompt,
    parse_turns,
    rank_by_value,
)
from instructgpt.data.importing.transcripts import (
    NO_MARKS_NOTE,
    TranscriptError,
    parse_transcript,
    transcript_notes,
)
from instructgpt.records import Message, Record

_PROMPTS_DIFFER = "the two dialogues part before the last answer"
_NO_LAST_ANSWER = "the dialogue does not end with the assistant"
_ASSISTANT_MARKER = "\n\nAssistant:"


def from_rankings(row: DatasetRow, context: RowContext) -> list[Record]:
    """Ours: `prompt` or `messages`, `completions`, `ranks`, and labelers' additions to each completion."""
    check_not_null(row, "completions", "ranks")
    columns = {name: row[name] for name in ("models", "ratings", "labels") if row.get(name) is not None}
    completions, ranks = get_text_list(row, "completions"), get_ranks(row, "ranks")
    return make_ranking(parse_prompt(row), completions, ranks, context, **columns)


# ---------------------------------------------------------------- pairs


def from_pairs(row: DatasetRow, context: RowContext) -> list[Record]:
    """TRL's `chosen` and `rejected`, text or turns, with an explicit prompt, `messages`, or a shared beginning.

    Transcripts are split at their role marks. A shared beginning of other texts is cut back to white space; words that
    both answers begin with cannot be separated.
    """
    check_not_null(row, "chosen", "rejected")
    if isinstance(row.get("chosen"), list):
        return _from_conversation_pair(row, context)
    chosen, rejected = get_text_column(row, "chosen"), get_text_column(row, "rejected")
    prompt = _explicit_prompt(row, chosen)
    if prompt is None:
        return _from_implicit_prompt(chosen, rejected, context)
    if isinstance(prompt, str) and chosen.startswith(prompt) and rejected.startswith(prompt) and _is_transcript(prompt):
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    return make_ranking(prompt, (chosen, rejected), (1, 2), context)


def _explicit_prompt(row: DatasetRow, chosen: str) -> str | tuple[Message, ...] | None:
    """Return the prompt beside two texts. `messages` count, unless they are the prompt with the chosen answer."""
    if row.get("messages") is not None:
        turns = parse_turns(row["messages"], "messages")
        if turns and turns[-1] == Message(role="assistant", content=chosen):
            turns = turns[:-1]
        return turns
    return parse_prompt(row) if row.get("prompt") is not None else None


def _from_conversation_pair(row: DatasetRow, context: RowContext) -> list[Record]:
    contexts, answers = zip(*(_split_last_turn(row, column) for column in ("chosen", "rejected")), strict=True)
    if contexts[0] != contexts[1]:
        raise SkipRowError(_PROMPTS_DIFFER)
    prompt = row.get("prompt")
    if not contexts[0] and row.get("messages") is not None:
        messages = parse_turns(row["messages"], "messages")
        # Some data sets repeat the chosen conversation in `messages`.
        prompt = messages[:-1] if messages[-1:] == (Message(role="assistant", content=answers[0]),) else messages
    return make_ranking(_merge_prompt(prompt, contexts[0]), answers, (1, 2), context)


def _split_last_turn(row: DatasetRow, column: str) -> tuple[tuple[Message, ...], str]:
    turns = parse_turns(row.get(column), column)
    if not turns or turns[-1].role != "assistant":
        raise SkipRowError(_NO_LAST_ANSWER)
    return turns[:-1], turns[-1].content


def _merge_prompt(prompt: object, context: tuple[Message, ...]) -> str | tuple[Message, ...]:
    """Combine an explicit prompt with the turns before the answer, which some data sets repeat in `chosen`."""
    if isinstance(prompt, str):
        return context or prompt
    if isinstance(prompt, tuple):
        return prompt
    turns = parse_turns(prompt, "prompt") if prompt is not None else ()
    return context if context[: len(turns)] == turns else turns + context


def _is_transcript(prompt: str) -> bool:
    try:
        return bool(parse_transcript(prompt))
    except TranscriptError:
        return False


def _from_implicit_prompt(chosen: str, rejected: str, context: RowContext) -> list[Record]:
    try:
        dialogues = [parse_transcript(text) for text in (chosen, rejected)] if context.split_transcripts else [None]
    except TranscriptError as error:
        context.notes.append(str(error))
        dialogues = [None]
    turns = [dialogue for dialogue in dialogues if dialogue is not None]
    if len(turns) == 2:
        if any(dialogue[-1].role != "assistant" for dialogue in turns):
            raise SkipRowError(_NO_LAST_ANSWER)
        if turns[0][:-1] != turns[1][:-1]:
            raise SkipRowError(_PROMPTS_DIFFER)
        context.notes += transcript_notes(turns[0])
        return make_ranking(turns[0][:-1], [dialogue[-1].content for dialogue in turns], (1, 2), context)
    if all(_ASSISTANT_MARKER in text for text in (chosen, rejected)):
        return _from_text_transcripts(chosen, rejected, context)
    if chosen == rejected:
        raise SkipRowError("chosen and rejected are the same text, so no prompt can be told from them")
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    start = max((index + 1 for index, character in enumerate(shared) if character.isspace()), default=0)
    if not shared[:start].strip():
        raise SkipRowError("chosen and rejected share no prompt")
    context.notes.append(NO_MARKS_NOTE)
    return make_ranking(shared[:start].rstrip(), (chosen[start:], rejected[start:]), (1, 2), context)


def _from_text_transcripts(chosen: str, rejected: str, context: RowContext) -> list[Record]:
    """Split transcripts at the last "Assistant:" only; all before it stays text."""
    (prompt, answer), (other_prompt, other_answer) = (_split_last_answer(text) for text in (chosen, rejected))
    if prompt != other_prompt:
        raise SkipRowError(_PROMPTS_DIFFER)
    text_context = RowContext(context.extra, split_transcripts=False)
    return make_ranking(prompt, (answer, other_answer), (1, 2), text_context)


def _split_last_answer(transcript: str) -> tuple[str, str]:
    prompt, separator, answer = transcript.rpartition(_ASSISTANT_MARKER)
    if "\n\nHuman:" in answer:
        raise SkipRowError(_NO_LAST_ANSWER)
    return (prompt + separator).strip(), answer.strip()


# ---------------------------------------------------------------- rankings of other libraries


def from_nemo(row: DatasetRow, context: RowContext) -> list[Record]:
    """NeMo RL's `context` (turns) and `completions` (`rank`, lowest best, and the turns of `completion`)."""
    check_not_null(row, "context", "completions")
    entries = get_object_list(row, "completions")
    answers = [parse_turns(entry.get("completion"), "completion") for entry in entries]
    if not all(len(answer) == 1 and answer[0].role == "assistant" for answer in answers):
        raise SkipRowError("a completion is not one assistant turn")
    ranks = rank_by_value([get_number_column(entry, "rank") for entry in entries], best="low")
    completions = [answer[0].content for answer in answers]
    return make_ranking(parse_turns(row.get("context"), "context"), completions, ranks, context)


def from_ultrafeedback(row: DatasetRow, context: RowContext) -> list[Record]:
    """UltraFeedback's `instruction` and `completions`, ordered by mean fine-grained score.

    The overall score of this data set is wrong for a part of its completions, so it is never used.
    """
    check_not_null(row, "completions")
    entries = get_object_list(row, "completions")
    if any(entry.get("fine-grained_score") is None for entry in entries):
        raise SkipRowError("a completion without 'fine-grained_score' ('overall_score' is known to be wrong)")
    scores = [get_number_column(entry, "fine-grained_score") for entry in entries]
    models = [str(entry.get("model", "unknown")) for entry in entries]
    completions = [get_text_column(entry, "response") for entry in entries]
    return make_ranking(get_text_column(row, "instruction"), completions, rank_by_value(scores), context, models=models)


def from_helpsteer3(row: DatasetRow, context: RowContext) -> list[Record]:
    """HelpSteer3's `context`, `response1`, `response2`, `overall_preference` (negative: the first is better, 0:
    tie).
    """
    preference = get_number_column(row, "overall_preference")
    completions = (get_text_column(row, "response1"), get_text_column(row, "response2"))
    check_not_null(row, "context")
    return make_ranking(
        parse_turns(row.get("context"), "context"), completions, rank_by_value([-preference, preference]), context
    )


def from_shp(row: DatasetRow, context: RowContext) -> list[Record]:
    """Stanford Human Preferences' `history`, `human_ref_A`, `human_ref_B`, `labels` (1: A is better, 0: B)."""
    preference = get_number_column(row, "labels")
    if preference not in (0, 1):
        raise ValueError(f"column 'labels': expected 1 (A is better) or 0, found {preference}")
    completions = (get_text_column(row, "human_ref_A"), get_text_column(row, "human_ref_B"))
    return make_ranking(get_text_column(row, "history"), completions, (1, 2) if preference else (2, 1), context)


def from_webgpt(row: DatasetRow, context: RowContext) -> list[Record]:
    """WebGPT comparisons' `question`, `answer_0`, `answer_1`, `score_0`, `score_1` (equal scores tie)."""
    question = row.get("question")
    prompt = get_text_column(question, "full_text") if isinstance(question, dict) else get_text_column(row, "question")
    ranks = rank_by_value([get_number_column(row, "score_0"), get_number_column(row, "score_1")])
    return make_ranking(prompt, (get_text_column(row, "answer_0"), get_text_column(row, "answer_1")), ranks, context)


def from_tldr(row: DatasetRow, context: RowContext) -> list[Record]:
    """OpenAI's summary comparisons: `info` (the post), two `summaries`, and `choice`, the index of the better one."""
    check_not_null(row, "info", "summaries")
    info = check_object(row.get("info"), "info")
    summaries = get_object_list(row, "summaries")
    choice = get_number_column(row, "choice")
    if choice not in range(len(summaries)):
        raise ValueError(f"column 'choice': expected the index of one of {len(summaries)} summaries, found {choice}")
    title = info.get("title") or ""
    if info.get("article") is not None:
        prompt = f"TITLE: {title}\n\nARTICLE: {get_text_column(info, 'article')}\n\nTL;DR:"
    else:
        forum = info.get("subreddit") or ""
        prompt = f"SUBREDDIT: r/{forum}\n\nTITLE: {title}\n\nPOST: {get_text_column(info, 'post')}\n\nTL;DR:"
    policies = [str(summary.get("policy", "unknown")) for summary in summaries]
    ranks = [1 if position == choice else 2 for position in range(len(summaries))]
    labeler = {"labeler": row["worker"]} if row.get("worker") is not None else {}
    texts = [get_text_column(summary, "text").strip() for summary in summaries]
    return make_ranking(prompt, texts, ranks, context, models=policies, **labeler)
