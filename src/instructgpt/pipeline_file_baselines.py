"""`run --baselines` on your own files: methods beside PPO, and a frontier without a known truth.

The rankings are divided into two halves that share no prompt. Reward model and methods see the first. A second reward
model, the judge, is trained on the second as the first was, and says what the others' answers are worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from instructgpt.data.dedup import get_first_user_turn, normalize_prompt
from instructgpt.data.splits import hash_split, is_heldout
from instructgpt.distributed.launch import run_processes
from instructgpt.errors import InputError
from instructgpt.evaluate.configs import BestOfNConfig
from instructgpt.evaluate.frontier import measure_frontier
from instructgpt.evaluate.frontier_judges import RewardModelJudge
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.reward.metrics import measure
from instructgpt.evaluate.reward.scores import attach_reward_scores, score_with_lengths
from instructgpt.evaluate.rounds import stage_flops
from instructgpt.evaluate.sampled_answers import START
from instructgpt.models.policy import context_length, pick_device
from instructgpt.models.reward_model import load_reward_model
from instructgpt.pipeline_baselines import build_baseline_job, list_frontier_policies
from instructgpt.records import Prompt, Ranking, SkippedLines, read_all_records, read_records, write_records
from instructgpt.results import ResultRow
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import console, read_run_record
from instructgpt.stage_configs import JUDGE, POLICIES, get_input_files, save_policies
from instructgpt.train.configs import RewardConfig

FRONTIER_EVALUATION = "frontier"
"""Evaluation of the rows on proxy and judge in `results.json`."""
_SPLIT_SHARES = {"validation": 0.4, "test": 0.6}
"""Of the prompts that PPO does not train on."""
_MIN_PROMPTS = 2
"""An interval needs two prompts."""
_RETOKENIZATION_MARGIN = 8
"""Tokens left free, as an answer's text may be encoded in more tokens than were sampled."""


# --- before the first stage ----------------------------------------------------------------------------------------


def check_file_baselines(config: RunConfig, reward: RewardConfig) -> None:
    """Check that rankings and prompts are enough for two halves and a frontier.

    Raises:
        InputError: a half or a split is too small, or the run has a reward model of all rankings.
    """
    recorded = (read_run_record(config.out) or {}).get("config", {})
    if config.resume and read_run_record(reward.out) and not recorded.get("baselines"):
        problem = "its reward model was trained on all rankings, and --baselines needs one of half of them"
        raise InputError(f"{config.out}: {problem}; choose another --out")
    validation = {ranking.prompt for ranking in _read_rankings(reward, reward.validation)}
    for name, half in zip(("first", "second"), _split_rankings(config, reward), strict=True):
        prompts = {ranking.prompt for ranking in half if ranking.pairs()}
        heldout = validation or {prompt for prompt in prompts if is_heldout(prompt)}
        training = {r.prompt for r in half if r.pairs() and r.cohort != "heldout"} - heldout
        if min(len(training), len(heldout)) < _MIN_PROMPTS:
            counts = f"{len(training)} to train on, {len(heldout)} to validate on"
            raise InputError(
                f"--baselines: the {name} half of the rankings has too few prompts with a decided pair: {counts}; "
                f"{_MIN_PROMPTS} of each are needed, and a prompt is in one half only: rank more prompts, or leave "
                "--baselines out"
            )
    prompts_by_split = _split_heldout_prompts(_read_prompts(config))
    _check_split_sizes(prompts_by_split, "give --prompts with more")


def _check_split_sizes(prompts: Mapping[str, Sequence[Prompt]], fix: str) -> None:
    if min(map(len, prompts.values())) < _MIN_PROMPTS:
        counts = " and ".join(f"{len(split_prompts)} for {split}" for split, split_prompts in prompts.items())
        raise InputError(
            f"--baselines: of the prompts that PPO does not train on (a tenth, by hash) there are {counts}; "
            f"{_MIN_PROMPTS} of each are needed: {fix}"
        )


# --- data ----------------------------------------------------------------------------------------------------------


def is_in_judge_half(ranking: Ranking) -> bool:
    """Return whether the judge learns from a ranking. The hash is of the first user turn, without case and space."""
    key = normalize_prompt(get_first_user_turn(ranking))
    return hash_split(key, validation=0.0, test=0.5, salt=JUDGE) == "test"


def write_halves(config: RunConfig, reward: RewardConfig) -> None:
    """Write the rankings of the reward model and the methods, and those of the judge."""
    files = get_input_files(config)
    halves = _split_rankings(config, reward)
    for name, half in zip(("proxy_rankings", "judge_rankings"), halves, strict=True):
        write_records(files[name][0], half)
    console.print(
        "[bold]rankings[/] {:,} for the reward model and the methods, {:,} for the judge".format(*map(len, halves))
    )


def _split_rankings(config: RunConfig, reward: RewardConfig) -> tuple[list[Ranking], list[Ranking]]:
    rankings = _read_rankings(reward, get_input_files(config)["rankings"])
    halves: tuple[list[Ranking], list[Ranking]] = ([], [])
    for ranking in rankings:
        halves[is_in_judge_half(ranking)].append(ranking)
    return halves


def _read_rankings(reward: RewardConfig, files: Sequence[Any]) -> list[Ranking]:
    return read_all_records(Ranking, files, SkippedLines(reward.skip_bad))


def _read_prompts(config: RunConfig) -> list[Prompt]:
    records = read_all_records(Prompt, get_input_files(config)["prompts"], SkippedLines(True))
    return [Prompt.model_validate(record.prompt_columns()) for record in records]


def _split_heldout_prompts(prompts: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """Return different prompts that PPO does not train on, by split."""
    distinct = {normalize_prompt(prompt.prompt): prompt for prompt in prompts if is_heldout(prompt.prompt)}
    splits: dict[str, list[Prompt]] = {split: [] for split in _SPLIT_SHARES}
    for key, prompt in distinct.items():
        splits[hash_split(key, **_SPLIT_SHARES, salt=FRONTIER_EVALUATION)].append(prompt)
    return splits


def write_frontier_prompts(config: RunConfig, best_of_n: BestOfNConfig) -> dict[str, list[Prompt]]:
    """Write the prompts of both splits that leave room for an answer, and return them.

    Raises:
        InputError: too few do.
    """
    start = EvaluatedModel.load(START, best_of_n.policy, pick_device(config.device))
    limit = context_length(start.lm) - best_of_n.max_tokens - _RETOKENIZATION_MARGIN
    counts = {"validation": best_of_n.validation_prompts, "test": best_of_n.prompts}
    prompts = {
        split: [prompt for prompt in heldout if len(start.tokenizer.encode_prompt(prompt)) <= limit][: counts[split]]
        for split, heldout in _split_heldout_prompts(_read_prompts(config)).items()
    }
    _check_split_sizes(prompts, f"give shorter --prompts, of at most {limit} tokens")
    for split, split_prompts in prompts.items():
        write_records(get_input_files(config)[split][0], split_prompts)
    return prompts


# --- training and measuring ----------------------------------------------------------------------------------------


def train_file_baselines(
    config: RunConfig, methods: Mapping[str, Any], prompts: Mapping[str, Sequence[Prompt]]
) -> dict[str, Any]:
    """Train every method, and sample the start for best of n; finished ones are skipped. Return their stages."""
    dpo = methods["dpo"]
    rankings = read_records(Ranking, get_input_files(config)["proxy_rankings"][0])
    ranked = {r.prompt for r in rankings if r.pairs() and not is_heldout(r.prompt)}
    methods = {**methods, "dpo": save_policies(dpo, dpo.epochs * len(ranked) // dpo.batch)}
    run_processes(config.processes, [build_baseline_job(stage, prompts) for stage in methods.values()])
    return methods


def draw_file_frontier(
    config: RunConfig,
    stages: Mapping[str, Any],
    methods: Mapping[str, Any],
    prompts: Mapping[str, Sequence[Prompt]],
    heldout_rankings: Sequence[Ranking],
) -> list[ResultRow]:
    """Measure all points of the frontier, unless they are there. Return how well proxy and judge predict people.

    Args:
        heldout_rankings: rankings that neither of the two reward models was trained on.
    """
    folder, reward = config.out / "evaluation", stages["reward"].out
    out, device = folder / "frontier.jsonl", pick_device(config.device)
    judge = load_reward_model(stages[JUDGE].out, device)
    if not (out.exists() and config.resume):
        policies = list_frontier_policies({name: stages[name] for name in POLICIES if name in stages}, reward, methods)
        frontier_judge, flops = RewardModelJudge(judge), stage_flops(reward)
        measure_frontier(
            methods["best_of_n"], frontier_judge, prompts, policies, flops, out, rankings=folder / "frontier"
        )
    models = {"reward": load_reward_model(reward, device), JUDGE: judge}
    pooled = [ranking.model_copy(update={"cohort": None}) for ranking in heldout_rankings]
    rows: list[ResultRow] = []
    for name, model in models.items():
        measured = measure(attach_reward_scores(pooled, partial(score_with_lengths, model))[0], name)
        accuracy = [row for row in measured if (row.metric, row.condition) == ("pair_accuracy", "")]
        rows += [replace(row, evaluation=FRONTIER_EVALUATION) for row in accuracy]
    return rows
