"""The model card of a directory: what the model is, how to load it, what it was made from, and how it went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LOADING_CODE = {
    "policy": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    "tokenizer = AutoTokenizer.from_pretrained(folder)\nmodel = AutoModelForCausalLM.from_pretrained(folder)",
    "reward": "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
    "tokenizer = AutoTokenizer.from_pretrained(folder)\nmodel = AutoModelForSequenceClassification.from_pretrained(folder)",
}
_STAGE_DESCRIPTIONS = {
    "pretrain": "a base language model, trained from scratch",
    "sft": "a policy fine-tuned on demonstrations (InstructGPT, section 3.5)",
    "reward": "a reward model trained on K-wise rankings (InstructGPT, section 3.5)",
    "ppo": "a policy trained with PPO against a reward model (InstructGPT, equation 2)",
}
_OFFSET_NOTE = """Scores are shifted so that demonstrations average 0. Stock classification heads have no bias, so the shift of
`{offset:.6g}` is kept in `config.json` (`score_offset`) and in the metadata of the weights: what stock transformers returns is
higher than this package's score by exactly that constant. Differences between completions of one prompt are the same."""

_ADAPTER_NOTE = """The weights have the trained adapter merged in. `adapter/` holds it by itself in peft's format, rank {lora}, to be put on
the model it was trained on: `peft.PeftModel.from_pretrained(base, folder + "/adapter")`."""


def format_model_card(record: Mapping[str, Any]) -> str:
    """The card as Markdown with the hub's front matter.

    Args:
        record: what `run.json` says; the template of the tokenizer is said there to be saved with it.
    """
    stage = record["stage"]
    model_kind = "reward" if stage == "reward" else "policy"
    pipeline_tag = "text-classification" if model_kind == "reward" else "text-generation"
    offset = (record.get("validation") or {}).get("offset")
    settings = {name: value for name, value in record["config"].items() if name not in ("out", "resume", "device")}
    parents = [
        f"| {name} | `{parent['path']}` | `{parent['sha256'][:16]}` |" for name, parent in record["parents"].items()
    ]
    summary = {
        name: value
        for name, value in record.items()
        if name in ("seed", "seconds", "tokens", "episodes", "parameters", "trained", "left_out")
    }
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"pipeline_tag: {pipeline_tag}",
            f"tags: [instructgpt, {stage}]",
            "---",
            "",
            f"# {stage}",
            "",
            f"This is {_STAGE_DESCRIPTIONS.get(stage, 'a model')}. A prompt is rendered with the tokenizer's chat template.",
            "",
            "```python",
            _LOADING_CODE[model_kind],
            "```",
            "",
            *([_OFFSET_NOTE.format(offset=offset), ""] if offset is not None else []),
            *([_ADAPTER_NOTE.format(**settings), ""] if settings.get("lora") else []),
            "## Made from",
            "",
            "| what | where | sha256 |",
            "|---|---|---|",
            *parents,
            "",
            "## How",
            "",
            "```json",
            json.dumps(settings, indent=2, default=str),
            "```",
            "",
            "## Facts",
            "",
            "```json",
            json.dumps(summary | {"versions": record["versions"]}, indent=2, default=str),
            "```",
            "",
            "It may repeat falsehoods, insults and prejudice of its data, and follows harmful instructions unless it was taught not to.",
            "",
        ]
    )
