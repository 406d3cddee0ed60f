"""What every stage does once its models are loaded, before the first step."""

from __future__ import annotations

from rich.markup import escape

from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.run.directory import RunDirectory


def announce_tokenizer(tokenizer: PromptTokenizer, run: RunDirectory) -> None:
    """Fix the template's date for the whole run, and report and record how completions end."""
    tokenizer.pin_date(run.start_date)
    run.summary["stop_tokens"] = tokenizer.hf_tokenizer.convert_ids_to_tokens(list(tokenizer.stop_tokens))
    run.info(escape(tokenizer.describe()))
