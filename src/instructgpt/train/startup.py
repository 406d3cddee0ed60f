"""What every stage does once its models are loaded, before the first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.markup import escape

from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.comm import barrier
from instructgpt.errors import InputError, RunError
from instructgpt.io import translate_write_errors
from instructgpt.models.loading import from_pretrained
from instructgpt.models.policy import check_no_missing_weights, load_tokenizer, save_policy
from instructgpt.run.directory import RunDirectory

_TRIAL_FOLDER = ".trial"


def announce_tokenizer(tokenizer: PromptTokenizer, run: RunDirectory) -> None:
    """Fix the template's date for the whole run, and report and record how completions end."""
    tokenizer.pin_date(run.start_date)
    run.summary["stop_tokens"] = tokenizer.hf_tokenizer.convert_ids_to_tokens(list(tokenizer.stop_tokens))
    run.info(escape(tokenizer.describe()))


def save_and_verify_policy(model: Any, tokenizer: PromptTokenizer, folder: Path) -> None:
    """Save a policy, and raise RunError unless transformers loads it with all weights, and its tokenizer."""
    save_policy(model, tokenizer, folder)
    try:
        load_tokenizer(folder)
        with torch.random.fork_rng():
            _, loading_info = from_pretrained(
                transformers.AutoModelForCausalLM, folder, dtype="auto", use_safetensors=True, output_loading_info=True
            )
        check_no_missing_weights(folder, loading_info)
    except InputError as error:
        raise RunError(f"the saved model does not load: {error}") from error


def try_saving(run: RunDirectory, save: Callable[[Path], None]) -> None:
    """Save a result once before training, so that a model that cannot be saved fails at the start, not at the end.

    All ranks call this; rank 0 saves. The files are removed again.

    Raises:
        RunError, InputError, OSError: what saving raises.
    """
    folder = run.directory / _TRIAL_FOLDER
    if run.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with translate_write_errors(run.directory):
                folder.mkdir()
                save(folder)
        except (ValueError, TypeError, RuntimeError) as error:
            raise RunError(f"the model cannot be saved, so training would be lost: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    barrier()
