"""QuAC: a dialogue of questions about a paragraph, some unanswerable (Choi et al. 2018; paper, appendix D: F1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.metrics.text_metrics import quac_f1
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.loading import as_list, flatten_articles, load_task_rows
from instructgpt.evaluate.tasks.reading_comprehension import (
    PromptFormat,
    QAExchange,
    build_passage_questions,
    group_by_passage,
    metric_rows_by_context,
)
from instructgpt.results import ResultRow

_NAME = "quac"
_CANNOT_ANSWER = "CANNOTANSWER"
_UNANSWERABLE_TEXT = "I don't know."
_PROMPT_FORMAT = PromptFormat(
    "Answer each question using information in the preceding background paragraph. "
    f"If there is not enough information provided, answer with “{_UNANSWERABLE_TEXT}”",
    format_question="Q: {}\n\nA:".format,
    separator="\n\n",
    shots=2,
    max_history=100,
)


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    exchanges = []
    options: dict[str, Any] = {"skip_bad": settings.skip_bad, "check_row": _check_answers}
    rows = load_task_rows(file, "context", "question", "answers", **options, split_row=_split_dialogue)
    for row_number, row in enumerate(rows):
        answers = _non_blank_answers(row)
        references = [_UNANSWERABLE_TEXT if _CANNOT_ANSWER in answer else answer for answer in answers]
        context = str(row["context"]).removesuffix(_CANNOT_ANSWER).strip()
        passage_text = f"TITLE: {row.get('title') or row.get('wikipedia_page_title') or ''}\n\nPARAGRAPH: {context}\n\n"
        exchange = QAExchange(str(row.get("id") or row_number), str(row["question"]).strip(), references, references[0])
        exchanges.append((str(row.get("dialogue") or ""), passage_text, row.get("split") == "train", exchange))
    return build_passage_questions(group_by_passage(exchanges), settings, _PROMPT_FORMAT)


def _split_dialogue(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row per question: of the official articles, or of the hub's lists of questions."""
    for dialogue in flatten_articles(row):
        questions = dialogue.get("question") or dialogue.get("questions")
        if isinstance(questions, list):
            for index, question in enumerate(questions):
                answers = dialogue["answers"]["texts"][index]
                yield dialogue | {
                    "question": question,
                    "answers": answers,
                    "id": f"{dialogue.get('dialogue_id', '')}_{index}",
                }
        else:
            yield dialogue | {
                "question": questions,
                "dialogue": dialogue.get("dialogue") or dialogue.get("dialogue_id"),
            }


def _non_blank_answers(row: dict[str, Any]) -> list[str]:
    return [str(answer) for answer in as_list(row["answers"]) if answer is not None and str(answer).strip()]


def _check_answers(row: dict[str, Any]) -> None:
    if not _non_blank_answers(row):
        raise ValueError(f"column 'answers' is empty; a question without an answer has '{_CANNOT_ANSWER}'")


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return `f1` by condition and model, with several references averaged as in QuAC's own script."""
    metric_fns = {"f1": lambda text, references: quac_f1(text, references, _UNANSWERABLE_TEXT)}
    return metric_rows_by_context(_NAME, replies, metric_fns)


TASK = EvalTask(_NAME, "a dialogue about a paragraph", "quac_dev.json", load, measure, limit=300)
