"""The paper from start to end. Each step makes one directory; finished directories are skipped.

    instructgpt run --preset demo --out runs/demo                                            the embedded small world
    instructgpt run --config recipes/real-small.yaml --data FOLDER --out runs/real-small     your own files
    instructgpt run --config recipes/chat-model.yaml --base MODEL --data FOLDER --out runs/chat   from a chat model
    instructgpt run --preset demo --rounds 3 --out runs/demo-3                               three rounds of the paper

In the small world, simulated labelers write demonstrations and rank. With your own files, people have done so already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from instructgpt.config import StageConfig
from instructgpt.data.splits import is_heldout
from instructgpt.distributed.launch import ProcessJob, run_processes
from instructgpt.evaluate import world_exam
from instructgpt.evaluate.candidate_sampling import read_candidate_parts, sample_candidate_completions
from instructgpt.evaluate.configs import CandidatesConfig, ExamConfig
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.metrics import preference
from instructgpt.evaluate.reward.metrics import measure
from instructgpt.evaluate.reward.scores import attach_reward_scores, ranks_by_score, score_with_lengths
from instructgpt.evaluate.rounds import (
    SFT,
    RoundFiles,
    measure_costs,
    measure_reward_matrix,
    measure_utility,
    measure_win_rates,
    without_round_rows,
)
from instructgpt.label.simulation.site_labelers import SiteLabelers
from instructgpt.models.policy import context_length, load_tokenizer, pick_device
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.pipeline_baselines import draw_frontier, examine_best_of_n, train_baselines
from instructgpt.pipeline_file_baselines import (
    check_file_baselines,
    draw_file_frontier,
    train_file_baselines,
    write_frontier_prompts,
    write_halves,
)
from instructgpt.pipeline_overoptimization import measure_baseline, measure_overoptimization
from instructgpt.records import (
    Cohort,
    Completion,
    Demonstration,
    Document,
    Labelers,
    Prompt,
    Ranking,
    Record,
    SkippedLines,
    read_all_records,
    read_records,
    write_records,
)
from instructgpt.report.page import write_report
from instructgpt.report.terminal import print_report_tables
from instructgpt.results import ResultRow, merge_result_rows, read_result_rows, with_judge, write_result_rows
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import RunDirectory, console
from instructgpt.run.lineage import named_inputs
from instructgpt.sampling.completions import generate, retokenize_for
from instructgpt.stage_configs import (
    BEST_POLICY,
    JUDGE,
    POLICIES,
    RankingsConfig,
    Round,
    RoundEvaluationConfig,
    build_stage_configs,
    check_rounds_extend,
    find_labeler_noise,
    get_input_files,
    get_world_files,
    has_new_rounds,
)
from instructgpt.train import ppo, pretrain, reward, sft
from instructgpt.world import SimulatedLabelers, World

_BASELINES = {"base": "base", "prompted": "base", "sft": "sft"}
"""Evaluated models besides the policies, by directory; `prompted` is the base with answered prompts before each prompt.
"""
_VALIDATION_PROMPTS = 300
_MAX_HELDOUT_PROMPTS = 200
_REWARD_MODEL_JUDGE = "reward model"
"""Labeler of the rankings on your own files, and condition of their win rates."""


def main(config: RunConfig) -> Path:
    """Run every unfinished step and write the report. Return the run directory."""
    if config.processes > 1:
        torch.set_num_threads(1)  # with small models, two processes of one thread beat one process of two threads
    stages = build_stage_configs(config)
    check_rounds_extend(config)
    run = RunDirectory.open(config)
    if run.is_finished and not has_new_rounds(config):
        console.print(f"already finished: {config.out / 'report.html'}", soft_wrap=True)
    else:
        check_input_files(config, stages)
        run.create()
        rows = build_from_files(config, stages) if config.has_files else build_small_world(config, stages)
        results_path = config.out / "results.json"
        earlier_rows = read_result_rows(results_path) if results_path.exists() else []  # added by `evaluate`
        rows = merge_result_rows(without_round_rows(earlier_rows), rows)
        run.finish(lambda folder: write_result_rows(folder / "results.json", rows))
    print_report_tables(read_result_rows(config.out / "results.json"))
    console.print(f"report: {write_report(config.out)}", soft_wrap=True)
    return config.out


def build_small_world(config: RunConfig, stages: dict[str, Any]) -> list[ResultRow]:
    """Train and evaluate every model of the paper with simulated labelers; the newest round's rows come first."""
    world = World(config.seed)
    files = write_world(config, world, stages["exam"])
    pretrain.main(stages["pretrain"])
    sft.main(stages["start"])
    rows: list[ResultRow] = []
    for round_ in stages["rounds"]:
        write_round_prompts(config, world, round_)
        rank_candidates(config, world, round_, files["validation"])
        if "reward_pretrain" in stages:
            pretrain.main(stages["reward_pretrain"])
        reward.main(round_.reward)
        if config.overoptimization:
            reward_model = load_reward_model(round_.reward.out, pick_device(config.device))
            rows = measure_reward_model(reward_model, read_records(Ranking, round_.heldout_rankings))
            return rows + measure_overoptimization(config, world, round_, stages["start_samples"])
        sft.main(stages["sft"])  # finished after the first round, whose reward model chooses its epoch
        run_processes(config.processes, [(ppo.main, (policy,)) for policy in round_.policies.values()])
        if stages["baselines"]:
            train_baselines(config, world, stages)
        round_rows = evaluate_round(config, world, round_, stages)
        if stages["baselines"]:
            draw_frontier(config, world, round_, stages["baselines"])
            measure_baseline(config, world, round_, stages["baselines"]["best_of_n"])
        rows = rows if round_.is_control else round_rows
    return rows + compare_rounds(config, world, stages["rounds"], stages["exam"])


def build_from_files(config: RunConfig, stages: dict[str, Any]) -> list[ResultRow]:
    """Train every model on your own files, and measure what needs no ground truth."""
    if unused := [name for name in ("sft", "candidates", "exam") if name in config.stages]:
        console.print(f"[bold]run[/] ignoring sections of the small world: {', '.join(unused)}")
    if config.base is None:
        pretrain.main(stages["pretrain"])
    sft.main(stages["start"])
    if config.baselines:
        write_halves(config, stages["reward"])
    reward.main(stages["reward"])
    files = get_input_files(config)
    records = read_all_records(Prompt, files["prompts"], SkippedLines())
    prompts = [Prompt.model_validate(record.prompt_columns()) for record in records]
    write_records(files["ppo"][0], [prompt for prompt in prompts if not is_heldout(prompt.prompt)])
    policies = [name for name in POLICIES if name in stages]
    run_processes(config.processes, [(ppo.main, (stages[name],)) for name in policies])
    methods: dict[str, Any] = {}
    if config.baselines:
        frontier_prompts = write_frontier_prompts(config, stages["baselines"]["best_of_n"])
        methods = train_file_baselines(config, stages["baselines"], frontier_prompts)
        reward.main(stages[JUDGE])
    reward_model = load_reward_model(stages["reward"].out, pick_device(config.device))
    rankings = read_all_records(Ranking, stages["reward"].validation or files["rankings"], SkippedLines())
    if not stages["reward"].validation:
        rankings = [ranking for ranking in rankings if is_heldout(ranking.prompt)]
    rows = measure_reward_model(reward_model, rankings)
    models = {"base": stages["start"].base, "sft": stages["start"].out}
    models |= {name: stages[name].out for name in policies}
    models |= {name: stage.out for name, stage in methods.items() if name != "best_of_n"}
    file = config.out / "evaluation" / "preference" / "rankings.jsonl"
    settings = {"max_tokens": stages[policies[-1]].max_tokens, "seed": config.seed, "device": config.device}
    rows += compare_models_with_reward_model(reward_model, models, prompts, file, **settings)
    if config.baselines:
        rows += draw_file_frontier(config, stages, methods, frontier_prompts, rankings)
    return rows


# --- the small world ---------------------------------------------------------------------------------------------


def write_world(config: RunConfig, world: World, exam: ExamConfig) -> dict[str, Path]:
    """Write corpus, prompts and demonstrations of the small world. Return all its files by name."""
    files = get_world_files(config.out / "world")
    counts = {"validation": _VALIDATION_PROMPTS, "test": exam.prompts}
    if not files["demonstrations"].exists():
        prompt_count = sum(counts.values()) + config.rounds * (config.ranking_prompts + config.ppo_prompts)
        console.print(f"[bold]world[/] writing {config.words:,} words, {prompt_count:,} prompts, seed {config.seed}")
        write_records(files["corpus"], world.documents(config.words, refusals=config.refusals > 0))
        for split, count in counts.items():
            write_records(files[split], world.prompts(split, count))
        labelers = build_labelers(config, world, "training")
        # The last file, so that its presence means that all are complete.
        prompts = world.prompts("sft", config.demonstration_prompts, refusal_share=config.refusals)
        demonstrations = labelers.demonstrate(prompts)
        write_records(files["demonstrations"], demonstrations)
    return files


def write_round_prompts(config: RunConfig, world: World, round_: Round) -> None:
    """Write the prompts of a round, unless they are there: its own, or for the control those of all later rounds."""
    counts = {"reward": config.ranking_prompts, "ppo": config.ppo_prompts}
    for split, file in (("reward", round_.prompts), ("ppo", round_.ppo_prompts)):
        if file.exists():
            continue
        indices = range(1, config.rounds) if round_.is_control else (round_.index,)
        draw = partial(world.prompts, split, counts[split], refusal_share=config.refusals)
        prompts = [prompt for index in indices for prompt in draw(index)]
        write_records(file, prompts)
        if round_.index and not round_.is_control:
            earlier = [prompt for index in range(round_.index) for prompt in draw(index)]
            new_texts = {prompt.prompt for prompt in prompts} - {prompt.prompt for prompt in earlier}
            texts = f"{len(new_texts):,} texts that no round before it had"
            console.print(f"[bold]{round_.name}[/] {len(prompts):,} prompts for {split}, with {texts}")


def rank_candidates(config: RunConfig, world: World, round_: Round, validation: Path) -> None:
    """Let the training cohort rank completions of reward prompts, and both cohorts those of validation prompts."""
    prompt_files = {"candidates": round_.prompts} | ({} if round_.is_control else {"heldout_candidates": validation})
    if not round_.name:
        if not round_.heldout_rankings.exists():
            candidates = sample_candidates(config, round_.candidates, prompt_files)
            write_rankings(config, world, round_, candidates)
        return
    sampling, folder = round_.candidates, round_.candidates.out
    models = {
        name: Path(model) for name in ("policy", "previous", "start", "base") if (model := getattr(sampling, name))
    }

    def write_candidates() -> dict[str, Any]:
        sampled = sample_candidates(config, sampling, prompt_files)
        for name, lists in sampled.items():
            write_records(folder / f"{name}.jsonl", (completion for group in lists for completion in group))
            for part in folder.glob(f"{name}-*-of-*.jsonl"):
                part.unlink()
        return {name: sum(map(len, lists)) for name, lists in sampled.items()}

    run_data_stage(sampling, models | named_inputs(prompts=prompt_files.values()), write_candidates)
    files = {name: folder / f"{name}.jsonl" for name in prompt_files}
    common = {name: getattr(config, name) for name in ("device", "resume", "labelers", "through_site")}
    ranking = RankingsConfig(out=round_.rankings.parent, seed=round_.seed, **common)

    def rank() -> dict[str, Any]:
        return write_rankings(
            config, world, round_, {name: read_candidate_parts(folder, file.name) for name, file in files.items()}
        )

    run_data_stage(ranking, named_inputs(candidates=files.values()), rank)


def run_data_stage(
    stage: StageConfig,
    parents: Mapping[str, Path | str],
    work: Callable[[], dict[str, Any]],
    save: Callable[[Path], None] = lambda _: None,
) -> None:
    """Do the work of a stage that trains nothing, in a directory with lineage, unless it is finished."""
    run = RunDirectory.open(stage, parents)
    if not run.is_finished:
        run.create()
        summary = work()
        run.finish(save, **summary)


def sample_candidates(
    config: RunConfig, sampling: CandidatesConfig, prompt_files: Mapping[str, Path]
) -> dict[str, list[list[Completion]]]:
    """Sample completions to rank, one list per ranking task, for each file of prompts."""
    folder, jobs = sampling.out, list[ProcessJob]()
    for name, prompts in prompt_files.items():
        strays = sampling.strays and name == "candidates"  # accuracy is measured on the models' own completions only
        for part in range(config.processes):
            out = folder / f"{name}-{part}-of-{config.processes}.jsonl"
            update = {"out": out, "prompts": prompts, "part": part, "parts": config.processes, "strays": strays}
            jobs.append((sample_candidate_completions, (sampling.model_copy(update=update), config.seed)))
    run_processes(config.processes, jobs)
    return {name: read_candidate_parts(folder, f"{name}-*-of-{config.processes}.jsonl") for name in prompt_files}


def write_rankings(
    config: RunConfig, world: World, round_: Round, candidates: Mapping[str, Sequence[Sequence[Completion]]]
) -> dict[str, Any]:
    """Have labelers rank the candidates, and write the rankings. Return their numbers."""
    labelers = partial(build_labelers, config, world, seed=round_.seed, round_name=round_.name)
    counts: dict[str, Any] = {
        "rankings": write_records(round_.rankings, labelers("training").rank(candidates["candidates"]))
    }
    if heldout_candidates := candidates.get("heldout_candidates"):
        rankings = labelers("training", purpose="evaluation").rank(heldout_candidates)
        rankings += labelers("heldout").rank(heldout_candidates)
        counts["heldout_rankings"] = write_records(round_.heldout_rankings, rankings)
    return counts


def build_labelers(
    config: RunConfig,
    world: World,
    cohort: Cohort,
    purpose: Literal["training", "evaluation"] = "training",
    *,
    seed: int | None = None,
    round_name: str = "",
) -> Labelers:
    """Return simulated labelers that answer directly, or over a labelers' site with --through-site.

    On the site the same people work in every round; `seed` is that of labelers who answer directly.
    """
    if config.through_site:
        return SiteLabelers(config.out / "site", world, cohort, config.labelers, config.seed, purpose, round_name)
    seed = config.seed if seed is None else seed
    noise = find_labeler_noise(config)
    return SimulatedLabelers(world, cohort, per_prompt=config.labelers, seed=seed, noise=noise)


def evaluate_round(config: RunConfig, world: World, round_: Round, stages: Mapping[str, Any]) -> list[ResultRow]:
    """Grade the exams of a round's policies beside the baselines, and measure its reward model."""
    exam = stages["exam"]
    if not round_.name:
        return measure_round(config, world, round_, exam, stages["baselines"])
    common = {name: getattr(config, name) for name in ("seed", "device", "resume")}
    stage = RoundEvaluationConfig(out=round_.folder / "evaluation", exam=exam, **common)
    parents: dict[str, Path | str] = {name: config.out / folder for name, folder in _BASELINES.items()}
    parents |= {name: policy.out for name, policy in round_.policies.items()} | {"reward": round_.reward.out}
    parents |= named_inputs(rankings=[round_.heldout_rankings])
    rows: list[ResultRow] = []

    def measure_all() -> dict[str, Any]:
        rows.extend(measure_round(config, world, round_, exam))
        return {"rows": len(rows)}

    run_data_stage(stage, parents, measure_all, lambda folder: write_result_rows(folder / "results.json", rows))
    return read_result_rows(stage.out / "results.json")


def measure_round(
    config: RunConfig, world: World, round_: Round, exam: ExamConfig, methods: Mapping[str, Any] | None = None
) -> list[ResultRow]:
    """Grade every model's exam, and measure the reward model on held-out rankings and against true utility.

    `methods` are the stages of --baselines, whose models take the exam, too.
    """
    methods = methods or {}
    folder = round_.folder / "evaluation"
    models = {name: config.out / directory for name, directory in _BASELINES.items()}
    models |= {name: policy.out for name, policy in round_.policies.items()}
    models |= {name: stage.out for name, stage in methods.items()}
    answers = {
        name: (config.out if name in _BASELINES else round_.folder) / "evaluation" / f"{name}.jsonl" for name in models
    }
    jobs: list[ProcessJob] = [
        (examine_model, (name, model, answers[name], config.seed, exam, config.device))
        for name, model in models.items()
        if name != "best_of_n"
    ]
    if "best_of_n" in methods:
        jobs.insert(0, (examine_best_of_n, (methods["best_of_n"], answers["best_of_n"], config.seed, exam)))
    run_processes(config.processes, jobs)
    rows = world_exam.grade_exams(answers, folder / "preference" / "rankings.jsonl", world, exam, config.seed)
    reward_model = load_reward_model(round_.reward.out, pick_device(config.device))
    rows += measure_reward_model(reward_model, read_records(Ranking, round_.heldout_rankings))
    points = [
        point
        for name, policy in round_.policies.items()
        for point in world_exam.compute_overoptimization_curve(name, policy.out, world, policy.batch)
    ]
    write_records(folder / "over_optimisation.jsonl", points)
    return rows


def compare_rounds(config: RunConfig, world: World, rounds: Sequence[Round], exam: ExamConfig) -> list[ResultRow]:
    """Measure what each round gained, on the same test prompts and before the same labelers."""
    if len(rounds) == 1:
        return []
    files = [
        RoundFiles(
            name=round_.name,
            reward=round_.reward.out,
            policy=round_.policies[BEST_POLICY].out,
            answers=round_.folder / "evaluation" / f"{BEST_POLICY}.jsonl",
            candidates=round_.candidates.out / "candidates.jsonl",
            rankings=round_.rankings,
            heldout_rankings=round_.heldout_rankings,
            is_control=round_.is_control,
        )
        for round_ in rounds
    ]
    sources = {SFT: config.out / "evaluation" / "sft.jsonl"} | {
        outcome.policy_name: outcome.answers for outcome in files
    }
    answers = {name: world_exam.read_ranked_answers(file, name) for name, file in sources.items()}
    rankings = world_exam.rank_answers(answers, world, exam, config.seed)
    write_records(config.out / "evaluation" / "rounds" / "rankings.jsonl", rankings)
    use_cases = world_exam.read_use_cases(world, exam)
    rows = measure_win_rates(files, rankings, use_cases) + measure_utility(files, answers, world, use_cases)
    rows += measure_costs(files, load_tokenizer(config.out / "start"), rows)
    return measure_reward_matrix(files, pick_device(config.device)) + rows


def examine_model(model: str, folder: Path, out: Path, seed: int, exam: ExamConfig, device: str) -> None:
    if not out.exists():
        world_exam.run_exam(model, folder, out, World(seed), exam, seed, device, primed=model == "prompted")
        console.print(f"[bold]evaluation[/] {model} has finished its exam")


# --- your own files ----------------------------------------------------------------------------------------------


def check_input_files(config: RunConfig, stages: dict[str, Any]) -> None:
    """Read your own files once before the first stage, so that a bad line does not fail hours later.

    Raises:
        InputError: a file is missing, or a line is bad and its stage has no --skip-bad.
    """
    if not config.has_files:
        return
    files = get_input_files(config)
    readers: dict[str, tuple[type[Record], str]] = {
        "corpus": (Document, "pretrain"),
        "demonstrations": (Demonstration, "start"),
        "rankings": (Ranking, "reward"),
        "prompts": (Prompt, "ppo_ptx" if "ppo_ptx" in stages else "ppo"),
    }
    # the template of a model from outside may refuse a conversation
    check: Callable[[Any], None] | None = load_tokenizer(config.base).check_prompt if config.base is not None else None
    for name, (record_class, stage) in readers.items():
        skipped = SkippedLines(getattr(stages.get(stage), "skip_bad", False))
        read_all_records(record_class, files[name], skipped, None if record_class is Document else check)
    if config.baselines:
        check_file_baselines(config, stages["reward"])


def measure_reward_model(reward_model: ScalarModel, rankings: Sequence[Ranking]) -> list[ResultRow]:
    """Measure accuracy by cohort and source, length baseline and agreement. Skip completions that are too long."""
    return measure(attach_reward_scores(rankings, partial(score_with_lengths, reward_model))[0])


def compare_models_with_reward_model(
    reward_model: ScalarModel,
    models: Mapping[str, Path | str],
    prompts: Sequence[Prompt],
    out: Path,
    *,
    max_tokens: int,
    seed: int,
    device: str,
) -> list[ResultRow]:
    """Rank one completion per model and held-out prompt by score. Return win rates against `sft`.

    PPO was trained against this very judge, so its win rate shows that PPO did its work, not that people would agree.
    """
    texts: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    finish: dict[str, list[Literal["stop", "length"]]] = {}
    heldout: list[Prompt] = []
    for name, folder in models.items():
        model = EvaluatedModel.load(name, folder, pick_device(device))
        if not heldout:  # chosen by the first model, so that all models get the same prompts
            limit = context_length(model.lm) - max_tokens
            candidates = (prompt for prompt in prompts if is_heldout(prompt.prompt))
            fitting = [prompt for prompt in candidates if len(model.tokenizer.encode_prompt(prompt)) <= limit]
            heldout = fitting[:_MAX_HELDOUT_PROMPTS]
        completions = generate(model.lm, model.tokenizer, heldout, max_tokens=max_tokens, seed=seed)
        texts[name] = [completion.text for completion in completions]
        finish[name] = ["stop" if completion.finished else "length" for completion in completions]
        scores[name] = reward_model.score(retokenize_for(reward_model.tokenizer, model.tokenizer, completions)).tolist()
    rankings = [
        Ranking(
            **prompt.prompt_columns(),
            completions=tuple(texts[name][index] for name in models),
            ranks=ranks_by_score([scores[name][index] for name in models]),
            labeler=_REWARD_MODEL_JUDGE,
            models=tuple(models),
            finish=tuple(finish[name][index] for name in models),
        )
        for index, prompt in enumerate(heldout)
    ]
    write_records(out, rankings)
    return with_judge(preference.measure(rankings, judge=_REWARD_MODEL_JUDGE), _REWARD_MODEL_JUDGE) if rankings else []
