"""Best of n as a policy: an answer is the one of n samples that a reward model scores highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instructgpt.evaluate.inference import EvaluatedModel, generate_answers
from instructgpt.evaluate.sampled_answers import answer_key
from instructgpt.models.reward_model import ScalarModel
from instructgpt.records import Completion


@dataclass(frozen=True, slots=True)
class BestOfN:
    """A reward model that chooses among n samples."""

    reward: ScalarModel
    n: int

    def generate_answers(
        self,
        model: EvaluatedModel,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        seed: int,
        temperature: float,
        per_prompt: int = 1,
    ) -> list[Completion]:
        """Complete instructions as `inference.generate_answers` does, each the best of its own n samples."""
        answers: list[Completion] = []
        for start in range(0, len(prompts), _PROMPTS_PER_BLOCK):
            samples = generate_answers(
                model,
                prompts[start : start + _PROMPTS_PER_BLOCK],
                max_tokens=max_tokens,
                seed=seed + start,  # streams are numbered within a block
                temperature=temperature,
                per_prompt=per_prompt * self.n,
            )
            scores = score_answers(self.reward, samples)
            groups = (range(first, first + self.n) for first in range(0, len(samples), self.n))
            answers += [samples[max(group, key=scores.__getitem__)] for group in groups]
        return answers


_PROMPTS_PER_BLOCK = 64


def score_answers(reward: ScalarModel, answers: Sequence[Completion]) -> list[float]:
    """Return the score of each answer; equal ones are scored once."""
    distinct = {answer_key(answer): answer for answer in answers}
    encode = reward.tokenizer.encode_example
    examples = [encode(answer, answer.completion, finished=answer.finish == "stop") for answer in distinct.values()]
    scores = dict(zip(distinct, reward.score(examples).tolist(), strict=True))
    return [scores[answer_key(answer)] for answer in answers]
