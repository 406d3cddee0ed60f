"""What can be measured on people's own files, where nobody knows the truth: the reward model against held-out rankings,
and the models against each other with the reward model as the judge.

The judge is the very model that PPO was trained against, so its verdict on PPO shows that PPO did its work, not that
people would agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from instructgpt.data.splits import is_heldout
from instructgpt.evaluate.aggregate import ResultRow, with_judge
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.metrics import preference
from instructgpt.evaluate.reward.metrics import measure
from instructgpt.evaluate.reward.scores import attach_reward_scores, ranks_by_score, score_with_lengths
from instructgpt.models.policy import context_length, pick_device
from instructgpt.models.reward_model import ScalarModel
from instructgpt.records import Prompt, Ranking, write_records
from instructgpt.sampling.completions import generate, retokenize_for

_MAX_HELDOUT_PROMPTS = 200
_REWARD_MODEL_JUDGE = "reward model"
"""Who ranks here, and the condition of the win rates."""


def measure_reward_model(reward_model: ScalarModel, rankings: Sequence[Ranking]) -> list[ResultRow]:
    """Accuracy by cohort and by source, beside length baseline and labeler agreement. A completion too long to read is left out."""
    return measure(attach_reward_scores(rankings, partial(score_with_lengths, reward_model))[0])


def compare_models_with_reward_model(
    reward_model: ScalarModel,
    models: Mapping[str, Path],
    prompts: Sequence[Prompt],
    out: Path,
    *,
    max_tokens: int,
    seed: int,
    device: str,
) -> list[ResultRow]:
    """One completion of each model to each held-out prompt, ranked by the reward model's score; win rates against `sft`."""
    answers: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    finished: dict[str, list[bool]] = {}
    heldout_prompts: list[Prompt] = []
    for name, folder in models.items():
        model = EvaluatedModel.load(name, folder, pick_device(device))
        max_prompt_tokens = context_length(model.lm) - max_tokens
        heldout_prompts = (
            heldout_prompts
            or [
                p for p in prompts if is_heldout(p.text) and len(model.tokenizer.encode_prompt(p)) <= max_prompt_tokens
            ][:_MAX_HELDOUT_PROMPTS]
        )
        completions = generate(model.lm, model.tokenizer, heldout_prompts, max_tokens=max_tokens, seed=seed)
        answers[name] = [one.text for one in completions]
        finished[name] = [one.finished for one in completions]
        scores[name] = reward_model.score(retokenize_for(reward_model.tokenizer, model.tokenizer, completions)).tolist()
    rankings = []
    for index, prompt in enumerate(heldout_prompts):
        rankings.append(
            Ranking(
                prompt=prompt.text,
                completions=tuple(answers[name][index] for name in models),
                ranks=ranks_by_score([scores[name][index] for name in models]),
                labeler=_REWARD_MODEL_JUDGE,
                models=tuple(models),
                finish=tuple("stop" if finished[name][index] else "length" for name in models),
            )
        )
    write_records(out, rankings)
    return with_judge(preference.measure(rankings, judge=_REWARD_MODEL_JUDGE), _REWARD_MODEL_JUDGE) if rankings else []
