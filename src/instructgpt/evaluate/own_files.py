"""What can be measured on people's own files, where nobody knows the truth: the reward model against held-out rankings,
and the models against each other with the reward model as the judge.

The judge is the very model that PPO was trained against, so its verdict on PPO shows that PPO did its work, not that
people would agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from instructgpt.data.splits import held_out
from instructgpt.evaluate.aggregate import Row, judged
from instructgpt.evaluate.inference import Subject
from instructgpt.evaluate.metrics import preference
from instructgpt.evaluate.reward.metrics import measure
from instructgpt.evaluate.reward.scores import ranks_by_score, score_texts, scored_rankings
from instructgpt.models.policy import context_length, pick_device
from instructgpt.models.reward_model import ScalarModel
from instructgpt.records import Prompt, Ranking, write_records
from instructgpt.sampling.completions import generate, read_by

PROMPTS = 200
JUDGE = "reward model"
"""Who ranks here, and the condition of the win rates."""


def score_rankings(reward: ScalarModel, rankings: Sequence[Ranking]) -> list[Row]:
    """Accuracy by cohort and by source, beside length baseline and labeler agreement. A completion too long to read is left out."""
    return measure(scored_rankings(rankings, partial(score_texts, reward))[0])


def judged_by_reward_model(
    reward: ScalarModel, models: Mapping[str, Path], prompts: Sequence[Prompt], out: Path, *, max_tokens: int, seed: int, device: str
) -> list[Row]:
    """One completion of each model to each held-out prompt, ranked by the reward model's score; win rates against `sft`."""
    answers: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    finished: dict[str, list[bool]] = {}
    asked: list[Prompt] = []
    for name, folder in models.items():
        subject = Subject.load(name, folder, pick_device(device))
        room = context_length(subject.model) - max_tokens
        asked = asked or [p for p in prompts if held_out(p.text) and len(subject.render.prompt(p)) <= room][:PROMPTS]
        made = generate(subject.model, subject.render, asked, max_tokens=max_tokens, seed=seed)
        answers[name] = [one.text for one in made]
        finished[name] = [one.finished for one in made]
        scores[name] = reward.score(read_by(reward.render, subject.render, made)).tolist()
    rankings = []
    for i, prompt in enumerate(asked):
        rankings.append(
            Ranking(
                prompt=prompt.text,
                completions=tuple(answers[name][i] for name in models),
                ranks=ranks_by_score([scores[name][i] for name in models]),
                labeler=JUDGE,
                models=tuple(models),
                finish=tuple("stop" if finished[name][i] else "length" for name in models),
            )
        )
    write_records(out, rankings)
    return judged(preference.measure(rankings, judge=JUDGE), JUDGE) if rankings else []
