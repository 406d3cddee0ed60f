"""The model card (README.md) of a model directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from instructgpt.run.use_policy import UsePolicy

_STAGE_DESCRIPTIONS = {
    "pretrain": "a base language model, trained from scratch",
    "sft": "a policy fine-tuned on demonstrations (InstructGPT, section 3.5)",
    "reward": "a reward model trained on K-wise rankings (InstructGPT, section 3.5)",
    "dpo": "a policy trained on K-wise rankings by direct preference optimization (Rafailov et al. 2023)",
    "expert-iteration": "a policy fine-tuned on its own best completions by score (Dong et al. 2023)",
    "ppo": "a policy trained with PPO against a reward model (InstructGPT, equation 2)",
}
_TEMPLATE = """---
{{ card_data }}
---

# {{ stage }}

This is {{ description }}. A prompt is rendered with the tokenizer's chat template.

```python
from transformers import {{ model_class }}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = {{ model_class }}.from_pretrained(folder)
```
{% if offset is not none %}
Scores are shifted so that demonstrations average 0. Stock classification heads have no bias, so the shift of
`{{ "%.6g" % offset }}` is stored in `config.json` (`score_offset`) and in the metadata of the weights. Stock
transformers return this package's score plus that constant. Differences between completions of one prompt are the same.
{% endif %}{% if lora %}
The weights have the trained adapter merged in. `adapter/` holds the adapter alone in peft's format, rank {{ lora }},
for the model it was trained on: `peft.PeftModel.from_pretrained(base, folder + "/adapter")`.
{% endif %}
## Made from

| what | where | sha256 |
|---|---|---|
{% for name, parent in parents.items() -%}
| {{ name }} | `{{ parent.path }}` | `{{ parent.sha256[:16] }}` |
{% endfor %}
## How

```json
{{ settings }}
```

## Facts

```json
{{ facts }}
```

The model may repeat falsehoods, insults and prejudice of its data, and follows harmful instructions unless it was
trained not to.

{{ use_policy }}
"""
_FACTS = (
    "checkpoint",
    "seed",
    "seconds",
    "tokens",
    "episodes",
    "parameters",
    "trained",
    "left_out",
    "patches",
    "versions",
)


def format_model_card(record: Mapping[str, Any]) -> str:
    """Return the card of a directory with this run.json as Markdown with the hub's front matter."""
    from huggingface_hub import ModelCard, ModelCardData  # slow to import

    stage, config = record["stage"], record["config"]
    is_reward = stage == "reward"
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if is_reward else "text-generation",
        tags=["instructgpt", stage],
    )
    settings = {name: value for name, value in config.items() if name not in ("out", "resume", "device")}
    facts = {name: record[name] for name in _FACTS if name in record}
    card = ModelCard.from_template(
        card_data,
        template_str=_TEMPLATE,
        stage=stage,
        description=_STAGE_DESCRIPTIONS.get(stage, "a model"),
        model_class="AutoModelForSequenceClassification" if is_reward else "AutoModelForCausalLM",
        offset=(record.get("validation") or {}).get("offset"),
        lora=config.get("lora"),
        parents=record["parents"],
        settings=json.dumps(settings, indent=2, default=str),
        facts=json.dumps(facts, indent=2, default=str),
        use_policy=UsePolicy().format_markdown(),
    )
    return str(card)
