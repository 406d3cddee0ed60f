"""QuAC: a dialogue of questions about a paragraph, some of which it does not answer (Choi et al. 2018; paper, appendix D: F1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.metrics.text_metrics import quac_f1
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.loading import listed, rows_of
from instructgpt.evaluate.tasks.reading_comprehension import Exchange, Form, passages_of, questions_about, rows_by_context

NAME = "quac"
CANNOT = "CANNOTANSWER"
NOT_KNOWN = "I don't know."
FORM = Form(
    "Answer each question using information in the preceding background paragraph. "
    f"If there is not enough information provided, answer with “{NOT_KNOWN}”",
    ask="Q: {}\n\nA:".format,
    after="\n\n",
    shots=2,
    earlier=100,
)


def read(file: Path, told: Told) -> list[Question]:
    """Every question after its paragraph and the whole dialogue before it; then with example dialogues."""
    exchanges = []
    for number, row in enumerate(turns(rows_of(file, "context", "question|questions", "answers"))):
        references = [NOT_KNOWN if CANNOT in answer else answer for answer in map(str, listed(row["answers"]))] or [NOT_KNOWN]
        context = str(row["context"]).removesuffix(CANNOT).strip()
        text = f"TITLE: {row.get('title') or row.get('wikipedia_page_title') or ''}\n\nPARAGRAPH: {context}\n\n"
        one = Exchange(str(row.get("id") or number), str(row["question"]).strip(), references, references[0])
        exchanges.append((str(row.get("dialogue") or ""), text, row.get("split") == "train", one))
    return questions_about(passages_of(exchanges), told, FORM)


def turns(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row a question; one that holds a whole dialogue, as on the hub, is taken apart."""
    for row in rows:
        if isinstance(row["question"], list):
            for place, question in enumerate(row["question"]):
                texts = row["answers"]["texts"][place]
                yield row | {"question": question, "answers": texts, "id": f"{row.get('dialogue_id', '')}_{place}"}
        else:
            yield row | {"dialogue": row.get("dialogue") or row.get("dialogue_id")}


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`f1` by condition and model: over several references the mean of the best of all but one, as QuAC's own script has it."""
    return rows_by_context(NAME, asked, {"f1": lambda said, references: quac_f1(said, references, NOT_KNOWN)})


EVALUATION = Evaluation(NAME, "a dialogue about a paragraph", "quac_dev.json", read, measure, limit=300)
