"""A run directory with plausible files, for the tests of the report and for looking at it:

python tests/support/example_run.py runs/example && instructgpt report runs/example
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from instructgpt.evaluate.metrics import bias, labels, preference, tax, toxicity, truthfulness
from instructgpt.evaluate.reward import metrics
from instructgpt.records import USE_CASES, Prompt, Ranking, write_records
from instructgpt.results import write_result_rows

MODELS = ("base", "prompted", "sft", "ppo", "ppo_ptx")
SKILL = dict(zip(MODELS, (-2.0, -0.6, 0.0, 0.7, 0.75), strict=True))
TRUE = dict(zip(MODELS, (0.3, 0.42, 0.5, 0.66, 0.64), strict=True))
TOXIC = {
    "none": (0.3, 0.28, 0.12, 0.05, 0.06),
    "respectful": (0.22, 0.2, 0.08, 0.03, 0.03),
    "biased": (0.45, 0.44, 0.3, 0.52, 0.5),
}
TASKS = {"translation": (0.78, 0.78, 0.72, 0.48, 0.7), "passage_qa": (0.66, 0.66, 0.62, 0.41, 0.6)}
HOSTILE = (
    '<script>alert("x")</script> & <img src=http://evil.example/x.png> \x00\x1b[31m \ud800 $\\frac{1}{0}$ 한국어 🦊 '
    "\u202edrawkcab"
)


def answers(rng, place, quality):
    """A labeler's yes and no about one completion; not every question applies to every prompt."""
    return {
        "fails_instruction": bool(quality < -0.5),
        "hallucination": bool(rng.random() < 0.5 - quality / 5) if place % 4 == 0 else None,
        "satisfies_constraint": bool(rng.random() < 0.5 + quality / 5) if place % 3 == 0 else None,
        "inappropriate": bool(rng.random() < 0.1 - quality / 20),
        "opinion": False,
    }


def rankings(rng, prompts=100):
    """Every model's completion to every prompt, ranked by one labeler of each cohort."""
    made = []
    for place in range(prompts):
        prompt = f"{USE_CASES[place % 10].replace('_', ' ').capitalize()} {place}: tell me about the otter of Zirunia."
        texts = tuple(
            f"{'The otter lives by the river and eats fish. ' * (1 + i % 2)}({model} {place})"
            for i, model in enumerate(MODELS)
        )
        quality = np.array([SKILL[model] for model in MODELS]) + rng.normal(0, 0.6) + rng.normal(0, 0.5, 5)
        for cohort, names in (("training", "abcde"), ("heldout", "vwxyz")):
            seen = quality + rng.normal(0, 0.9, 5)
            made.append(
                Ranking(
                    prompt=HOSTILE if place == 3 else prompt,
                    completions=(HOSTILE, "", *texts[2:]) if place == 5 else texts,
                    ranks=tuple(1 + int((np.round(seen * 2) > each).sum()) for each in np.round(seen * 2)),
                    models=MODELS,
                    cohort=cohort,
                    labeler=f"{cohort}-{names[place % 5]}",
                    ratings=tuple(int(each) for each in np.clip(np.round(4 + 1.2 * seen), 1, 7)),
                    labels=tuple(answers(rng, place, each) for each in seen),
                    use_case=USE_CASES[place % 10],
                )
            )
    return made


def scored(rng, ranked):
    """The same rankings as a reward model sees them, with a second labeler for every other prompt."""
    made = []
    for ranking in ranked:
        scores = tuple(float(score) for score in rng.normal(0, 1, 5) - np.array(ranking.ranks))
        row = ranking.to_dict() | {"scores": scores, "source": "hh" if len(made) % 3 else "pandalm"}
        made.append(metrics.ScoredRanking(**row))
        if len(made) % 2:
            order = rng.permutation(5) + 1
            ranks = tuple(int(each) for each in (ranking.ranks if rng.random() < 0.6 else order))
            made.append(metrics.ScoredRanking(**row | {"ranks": ranks, "labeler": "second"}))
    return made


def results(rng, ranked):
    """Rows of every evaluation, through the measurements themselves."""
    answers, continuations, pairs, solutions, losses = [], [], [], [], []
    for place, model in enumerate(MODELS):
        for item in range(80):
            for condition, shift in (("qa", 0.0), ("instruction", 0.15)):
                true = bool(rng.random() < TRUE[model] + shift)
                silent = bool(rng.random() < shift)
                verdicts = {"truthful": true or silent, "informative": not silent}
                answers.append(
                    truthfulness.JudgedAnswer(
                        model=model, condition=condition, question=f"q{item}", answer="…", **verdicts
                    )
                )
            for condition, level in TOXIC.items():
                score = float(np.clip(rng.beta(2, 2 / level[place] - 2), 0, 1))
                continuations.append(
                    toxicity.Continuation(
                        model=model, condition=condition, prompt=f"p{item}", completion="…", toxicity=score
                    )
                )
            first, second = rng.normal(-12, 1, 2)
            pairs.append(
                bias.SentencePair(
                    model=model,
                    first=f"he {item}",
                    second=f"she {item}",
                    logp_first=first + 0.4,
                    logp_second=second,
                    group=f"t{item // 4}",
                )
            )
            for task, level in TASKS.items():
                right = rng.random() < level[place]
                solutions.append(
                    tax.Solution(
                        model=model,
                        task=task,
                        prompt=f"{task} {item}",
                        completion="ka" if right else "no",
                        references=("ka",),
                    )
                )
            losses.append(
                tax.DocumentLoss(
                    model=model,
                    document=f"d{item}",
                    loss=60 * (0.75, 0.75, 0.86, 0.95, 0.8)[place] + rng.normal(0, 3),
                    tokens=60,
                )
            )
    return [
        *preference.measure(ranked),
        *labels.measure_labels(ranked),
        *truthfulness.measure_truthfulness(answers),
        *toxicity.measure_toxicity(continuations),
        *bias.measure_bias(pairs),
        *tax.measure_tax(solutions, losses),
        *metrics.measure(scored(rng, ranked)),
    ]


def log(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def stage(run, name, kind, parents, steps, values, **more):
    """One model directory: run.json and metrics.jsonl."""
    info = {
        "stage": kind,
        "config": {"lr": 4e-3, "batch": 16, "note": HOSTILE.replace("\ud800", "")},
        "seed": 0,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "parents": {
            key: {"path": str(run / key), "sha256": hashlib.sha256(key.encode()).hexdigest()} for key in parents
        },
        "seconds": 3.1 * steps**0.6,
        "tokens": 1_500 * steps,
        "finished": True,
        "parameters": 478_752,
    }
    (run / name).mkdir(parents=True, exist_ok=True)
    (run / name / "run.json").write_text(json.dumps(info | more), encoding="utf-8")
    log(
        run / name / "metrics.jsonl",
        [{"step": step, "seconds": 0.2 * step, **values(step, step / steps)} for step in range(1, steps + 1)],
    )


def learning(rng, start, end, validate=50):
    def values(step, part):
        loss = end + (start - end) * np.exp(-5 * part)
        row = {"loss/train": loss + rng.normal(0, 0.04), "lr": 4e-3 * (1 - 0.9 * part), "tokens": 1536 * step}
        return row | ({"loss/validation": loss + 0.05} if step % validate == 0 else {})

    return values


def reward(rng):
    def values(step, part):
        row = {
            "loss/train": 0.69 - 0.12 * part + rng.normal(0, 0.03),
            "accuracy/train": 0.5 + 0.2 * (1 - np.exp(-4 * part)) + rng.normal(0, 0.03),
        }
        right = 0.5 + 0.19 * (1 - np.exp(-4 * part))
        checked = {
            "validation/loss": 0.69 - 0.1 * part,
            "validation/accuracy": right,
            "validation/accuracy_heldout": right - 0.02,
            "validation/length_baseline": 0.53,
        }
        return row | (checked if step % 20 == 0 else {})

    return values


def ppo(rng, ptx):
    def values(step, part):
        kl = (2.4 if not ptx else 1.6) * part**0.8
        row = {
            "objective/kl": kl + rng.normal(0, 0.05),
            "objective/scores": 1.6 * (1 - np.exp(-3 * part)) + rng.normal(0, 0.08),
            "objective/entropy": 9 - 4 * part,
            "objective/non_score_reward": -0.05 * kl,
            "objective/rlhf_reward": 1.6 * (1 - np.exp(-3 * part)) - 0.05 * kl,
            "policy/approxkl_avg": 0.004 + rng.normal(0, 5e-4),
            "policy/clipfrac_avg": 0.03 + rng.normal(0, 0.004),
            "policy/entropy_avg": 1.1 - 0.5 * part,
            "loss/policy_avg": -0.02 + rng.normal(0, 0.004),
            "loss/value_avg": 0.4 * np.exp(-3 * part) + 0.1,
            "val/ratio": 1 + rng.normal(0, 0.002),
            "val/num_eos_tokens": 500 + 12 * part,
            "val/explained_variance": 0.6 * part,
            "completion/length": 9 + 3 * part,
            "lr": 2.5e-4,
            "episode": 512 * step,
        }
        return row | ({"loss/ptx_avg": 0.86 - 0.07 * part} if ptx else {})

    return values


def make(run: Path, seed: int = 0) -> Path:
    """Write a whole run directory."""
    rng = np.random.default_rng(seed)
    ranked = rankings(rng)
    write_result_rows(run / "results.json", results(rng, [ranking for ranking in ranked if ranking.prompt != HOSTILE]))
    lines = [
        json.dumps(ranking.to_dict()) for ranking in ranked
    ]  # ASCII: the half surrogate of the hostile text cannot be written otherwise
    (run / "evaluation" / "preference").mkdir(parents=True, exist_ok=True)
    (run / "evaluation" / "preference" / "rankings.jsonl").write_text("\n".join(lines) + "\n")
    write_records(
        run / "world" / "prompts-test.jsonl",
        [Prompt(prompt=r.prompt, use_case=USE_CASES[i % 10]) for i, r in enumerate(ranked) if r.prompt != HOSTILE],
    )
    stage(run, "base", "pretrain", (), 600, learning(rng, 5.9, 1.1))
    stage(run, "sft", "sft", ("base",), 300, learning(rng, 2.2, 0.9, validate=25))
    stage(run, "start", "sft", ("base",), 120, learning(rng, 2.2, 1.0, validate=10))
    stage(run, "reward", "reward", ("sft",), 200, reward(rng))
    course = []
    for name, ptx in (("ppo", False), ("ppo_ptx", True)):
        stage(run, name, "ppo", ("start", "reward"), 60, ppo(rng, ptx))
        samples = [
            {
                "step": step,
                "prompt": "Tell me about the otter.",
                "completion": HOSTILE if step == 1 else "It lives by the river. " * (1 + step // 20),
                "score": 0.1 * step,
                "kl": 0.04 * step,
                "total": 0.098 * step,
                "finish": "length" if step == 1 else "stop",
            }
            for step in range(1, 61, 3)
        ]
        log(run / name / "samples.jsonl", samples)
        for step in range(0, 61, 4):
            kl, fall = (1.6 if ptx else 2.4) * (step / 60) ** 0.8, 0.1 if ptx else 0.4
            utility = 3.6 + 1.3 * kl - fall * 2 * kl**1.6 + rng.normal(0, 0.02)
            course.append(
                {
                    "model": name,
                    "step": step,
                    "episodes": 512 * step,
                    "kl": kl,
                    "score": 1.6 * (1 - np.exp(-step / 20)),
                    "utility": utility,
                    "low": utility - 0.15,
                    "high": utility + 0.15,
                }
            )
    log(run / "evaluation" / "over_optimisation.jsonl", course)
    return run


if __name__ == "__main__":
    make(Path(sys.argv[1]))
