"""QuAC: a dialogue of questions about a paragraph, some unanswerable (Choi et al. 2018; paper, appendix D: F1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.metrics.text_metrics import quac_f1
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.loading import as_list, load_task_rows
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
    rows = _flatten_dialogues(load_task_rows(file, "context", "question|questions", "answers"))
    for row_number, row in enumerate(rows):
        answers = list(map(str, as_list(row["answers"]))) or [_CANNOT_ANSWER]
        references = [_UNANSWERABLE_TEXT if _CANNOT_ANSWER in answer else answer for answer in answers]
        context = str(row["context"]).removesuffix(_CANNOT_ANSWER).strip()
        passage_text = f"TITLE: {row.get('title') or row.get('wikipedia_page_title') or ''}\n\nPARAGRAPH: {context}\n\n"
        exchange = QAExchange(str(row.get("id") or row_number), str(row["question"]).strip(), references, references[0])
        exchanges.append((str(row.get("dialogue") or ""), passage_text, row.get("split") == "train", exchange))
    return build_passage_questions(group_by_passage(exchanges), settings, _PROMPT_FORMAT)


def _flatten_dialogues(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if isinstance(row["question"], list):
            for index, question in enumerate(row["question"]):
                answers = row["answers"]["texts"][index]
                yield row | {"question": question, "answers": answers, "id": f"{row.get('dialogue_id', '')}_{index}"}
        else:
            yield row | {"dialogue": row.get("dialogue") or row.get("dialogue_id")}


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return `f1` by condition and model, with several references averaged as in QuAC's own script."""
    metric_fns = {"f1": lambda text, references: quac_f1(text, references, _UNANSWERABLE_TEXT)}
    return metric_rows_by_context(_NAME, replies, metric_fns)


TASK = EvalTask(_NAME, "a dialogue about a paragraph", "quac_dev.json", load, measure, limit=300)
