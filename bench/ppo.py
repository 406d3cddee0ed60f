"""PPO, ours beside TRL's last PPOTrainer: same models, same prompts, one thread, taking turns.

    python bench/ppo.py               # both sizes; the first time it makes .bench-trl-ppo, the environment of TRL 1.12
    python bench/ppo.py --rounds 5 --size 0.9M --phases

Each side holds the same random policy, reference, reward and value model. First the peer makes an update and hands over
its completions; we compute the mean score, KL and log-probability of these very tokens, which must agree with what it
reported. Then they take turns at whole updates: 64 prompts of 32 to 64 tokens, at most 64 new ones, about 24 on average
because an end-of-text token comes, scored by all models, one epoch of four minibatches. The peer runs at its best: no
gradient checkpointing, everything scored in one batch, nothing saved or shown.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sides import Answer, Side, Work, asked, environment, median, ratio

EPISODES, MINIBATCH, NEW, PAD, EOS = 64, 16, 64, 0, 2
MEAN = 24
SIZES: dict[str, dict[str, int]] = {
    "5.8M": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 688,
        "vocab_size": 4096,
    },
    "0.9M": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 344,
        "vocab_size": 1024,
    },
    "21M": {
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 1376,
        "vocab_size": 4096,
    },
    "40M": {
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "intermediate_size": 1376,
        "vocab_size": 4096,
    },
    "toy": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 128,
    },
}
AGREE = 1e-3
"""What may lie between two means in float32: theirs adds 1e-7 to the temperature, and both add in their own order."""


def make_models(size: str, folder: Path, family: str = "llama") -> None:
    """Save a policy, a reference that differs a little from it, a reward model, and their tokenizer,
    whose words are numbers.
    """
    import torch
    import transformers

    from instructgpt.models.reward_model import ScalarModel, save_reward_model

    torch.manual_seed(0)
    shape = SIZES[size]
    shared: dict[str, Any] = {
        "max_position_embeddings": 256,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": EOS,
    }
    shared |= {"num_key_value_heads": shape["num_attention_heads"], "tie_word_embeddings": True}
    tokenizer = number_words(shape["vocab_size"])
    gpt2 = {"n_positions": 256, **{k: v for k, v in shape.items() if k != "intermediate_size"}, **shared}
    config: Any = transformers.LlamaConfig(**shape, **shared) if family == "llama" else transformers.GPT2Config(**gpt2)
    policy = transformers.AutoModelForCausalLM.from_config(config).eval()
    if family == "llama":
        make_it_end(policy)
    policy.save_pretrained(folder / "policy")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.002 * torch.randn_like(parameter)
    policy.save_pretrained(folder / "reference")
    config.num_labels = 1
    judge = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    save_reward_model(ScalarModel(judge, tokenizer_holder(tokenizer), 0.0), folder / "reward")
    for name in ("policy", "reference"):
        tokenizer.save_pretrained(folder / name)


def number_words(size: int) -> Any:
    """A tokenizer whose words are the numbers of its tokens."""
    import tokenizers
    import transformers

    names = {
        PAD: "<pad>",
        1: "<unk>",
        EOS: "<end>",
    }  # what is special is found inside of words too, so numbers would not do
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({names.get(i, str(i)): i for i in range(size)}, unk_token=names[1])
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": names[PAD], "eos_token": names[EOS]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)


def tokenizer_holder(tokenizer: Any) -> Any:
    """The tokenizer as a renderer."""
    from instructgpt.data.tokenization import PromptTokenizer

    return PromptTokenizer(tokenizer)


def make_it_end(policy: Any) -> None:
    """Set the end-of-text token's embedding so that completions are about 24 of at most 64 tokens long.

    All tokens share a large first number, so the last hidden state's first number is nearly constant; how large it is
    in the embedding of end-of-text alone then sets its chance, which is found by halving.
    """
    import torch

    chance = chance_to_end(MEAN, NEW)
    tokens = torch.randint(3, policy.config.vocab_size, (16, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        weights = policy.get_input_embeddings().weight
        weights[:, 0] = 0.5
        weights[PAD, 0] = -50  # never sampled: the peer would take it for the end
        states = policy.base_model(tokens).last_hidden_state
        logits = policy.get_output_embeddings()(states)
        logits[..., EOS] = float("-inf")
        others = logits.logsumexp(-1)
        low, high = 0.0, 50.0
        for _ in range(40):
            weights[EOS, 0] = (low + high) / 2
            likely = (states @ weights[EOS] - others).sigmoid().mean() > chance
            low, high = (low, (low + high) / 2) if likely else ((low + high) / 2, high)


def chance_to_end(mean: float, longest: int) -> float:
    """The chance to end at each token that makes completions `mean` long when they are cut off at `longest`."""
    low, high = 1e-6, 1.0
    for _ in range(60):
        chance = (low + high) / 2
        low, high = (chance, high) if (1 - (1 - chance) ** longest) / chance > mean else (low, chance)
    return low


def prompts_of(vocabulary: int) -> list[list[int]]:
    """The prompts: 32 to 64 tokens."""
    draw = random.Random(0)
    return [[draw.randrange(3, vocabulary) for _ in range(draw.randint(32, 64))] for _ in range(EPISODES)]


# --- the two sides: an update, or what is said of given completions --------------------------------------------------


def ours(folder: Path) -> Work:
    """An update as the stage makes it, timed part by part."""
    import copy

    import torch

    from instructgpt.data.packing import TokenizedExample, collate
    from instructgpt.models.flops import get_model_shape, ppo_update_flops
    from instructgpt.models.policy import completion_logp, load_policy
    from instructgpt.models.reward_model import load_reward_model, value_model_from_copy
    from instructgpt.plan.hardware import benchmark_machine
    from instructgpt.records import Prompt
    from instructgpt.run.timing import PHASE_TIMER
    from instructgpt.train.configs import PPOConfig
    from instructgpt.train.optim import build_optimizer
    from instructgpt.train.ppo import ppo_step
    from instructgpt.train.reward_functions import Reward
    from instructgpt.train.rollout import PPOModels

    PHASE_TIMER.clock = time.process_time
    device = torch.device("cpu")
    policy, render = load_policy(folder / "policy", device)
    reference, _ = load_policy(folder / "reference", device)
    value, reward = value_model_from_copy(load_reward_model(folder / "reward", device))
    models = PPOModels(policy, reference, value, Reward.from_model(reward, render), copy.deepcopy(policy), render)
    for frozen in (reference, reward.model, models.ema):
        frozen.requires_grad_(False)
    optimizers = {
        "policy": build_optimizer(policy, eps=1e-5),
        "value": build_optimizer(models.value.model, eps=1e-5),
    }
    sizes = {"batch": EPISODES, "minibatch": MINIBATCH, "max_tokens": NEW, "episodes": EPISODES * 1000}
    config = PPOConfig(out=folder, policy=str(folder / "policy"), reward=folder / "reward", prompts=(folder,), **sizes)
    tokens = prompts_of(policy.config.vocab_size)
    prompts = [Prompt(prompt=" ".join(map(str, row))) for row in tokens]
    shapes = [get_model_shape(model) for model in (policy, models.value.model, reward.model)]
    count = 0

    def work(asked: dict[str, Any]) -> Any:
        nonlocal count
        if "rate" in asked:
            return benchmark_machine(device).matmul
        if "completions" in asked:
            examples = [
                TokenizedExample(prompt, completion)
                for prompt, completion in zip(asked["prompts"], asked["completions"], strict=True)
            ]
            batch, lengths = collate(examples), [len(example.completion_ids) for example in examples]
            with torch.no_grad():
                logp, other = (completion_logp(model, batch) for model in (policy, reference))
            a_completion = [[float(part.sum()) for part in numbers.split(lengths)] for numbers in (logp - other, -logp)]
            cut = torch.tensor([example.completion_ids[-1] != EOS for example in examples]).float()
            scores = reward.score(examples) - config.eos_penalty * cut
            return {
                "objective/kl": statistics.mean(a_completion[0]),
                "objective/entropy": statistics.mean(a_completion[1]),
                "objective/scores": float(scores.mean()),
            }
        count += 1
        PHASE_TIMER.clear()
        start = time.process_time()
        rollout, _ = ppo_step(models, optimizers, None, prompts, count, config)
        seconds = time.process_time() - start
        flops = ppo_update_flops(*shapes, rollout.examples)
        length = float(rollout.mask.sum(1).float().mean())
        return {"length": length, "phases": PHASE_TIMER.seconds, "flops": flops, "seconds": seconds}

    return work


def peers(folder: Path) -> Work:
    """An update of PPOTrainer: its own `train` over one batch."""
    import datasets
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "policy")
    causal, scalar = transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification
    policy, reference = (causal.from_pretrained(folder / name) for name in ("policy", "reference"))
    reward, value = (scalar.from_pretrained(folder / "reward") for _ in range(2))
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=EPISODES,
        num_mini_batches=EPISODES // MINIBATCH,
        num_ppo_epochs=1,
        total_episodes=EPISODES,
        local_rollout_forward_batch_size=EPISODES,
        response_length=NEW,
        stop_token_id=EOS,
        missing_eos_penalty=1.0,
        temperature=1.0,
        kl_coef=0.02,
        learning_rate=5e-6,
        gradient_checkpointing=False,
        num_sample_generations=0,
        bf16=False,
        **quiet,
    )
    rows = datasets.Dataset.from_list([{"input_ids": row} for row in prompts_of(policy.config.vocab_size)])
    held: dict[str, Any] = {}
    generate = ppo_trainer.batch_generation

    def noted(*arguments: Any) -> Any:
        held["prompts"], (held["texts"], logits) = arguments[1], generate(*arguments)
        return held["texts"], logits

    ppo_trainer.batch_generation = noted
    trainer = PPOTrainer(config, tokenizer, policy, reference, reward, rows, value, eval_dataset=rows)
    trainer.log = lambda metrics, *_: held.update(metrics=metrics)

    def work(asked: dict[str, Any]) -> Any:
        trainer.train()
        width = held["prompts"].shape[1]
        completions = [row[: row.index(EOS) + 1] if EOS in row else row for row in held["texts"][:, width:].tolist()]
        said: dict[str, Any] = {"length": statistics.mean(map(len, completions))}
        if "tell" in asked:
            prompts = [[token for token in row if token != PAD] for row in held["prompts"].tolist()]
            said |= {"completions": completions, "prompts": prompts, "metrics": held["metrics"]}
        return said

    return work


# --- taking turns ----------------------------------------------------------------------------------------------------


def compare(us: Side, them: Side, size: str, rounds: int) -> tuple[list[Answer], list[str]]:
    """The same numbers of the same completions, then turns. -> our answers; rows of the table."""
    theirs = them.ask({"tell": True}).said
    mine = us.ask({"completions": theirs["completions"], "prompts": theirs["prompts"]}).said
    for name, number in mine.items():
        other = theirs["metrics"][name]
        if not abs(number - other) <= AGREE * max(1, abs(other)):
            sys.exit(f"{size}: {name} of the same completions is {number} to us, {other} to them")
    us.ask({})  # warms up, as theirs has
    turns = [(us.ask({}), them.ask({})) for _ in range(rounds)]
    our_turns, their_turns = ([turn[side] for turn in turns] for side in (0, 1))
    rates = [EPISODES / median(side, which) for which in ("cpu", "wall") for side in (our_turns, their_turns)]
    ratios = [ratio(our_turns, their_turns, which) for which in ("cpu", "wall")]
    lengths = [statistics.mean(answer.said["length"] for answer in side) for side in (our_turns, their_turns)]
    head = f"{size} | {mine['objective/scores']:.4f} / {theirs['metrics']['objective/scores']:.4f}"
    kl = f"{mine['objective/kl']:.4f} / {theirs['metrics']['objective/kl']:.4f}"
    shown = f"{lengths[0]:.1f} / {lengths[1]:.1f} | {rates[0]:.1f} | {rates[1]:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f}"
    return our_turns, [f"| {head} | {kl} | {shown} |"]


def phase_rows(size: str, turns: list[Answer], rate: float) -> list[str]:
    """Our seconds of CPU time phase by phase, the least its FLOPs take at the measured rate, and the share reached;
    medians.
    """
    middle = lambda of: statistics.median(of(turn.said) for turn in turns)  # noqa: E731
    rows = []
    for name in turns[0].said["phases"]:
        took, least = (
            middle(lambda said, name=name: said["phases"][name]),
            middle(lambda said, name=name: said["flops"].get(name, 0.0)) / rate,
        )
        rows.append(f"| {size} | {name} | {took:.3f} | {least:.3f} | {least / took:.0%} |")
    whole, least = middle(lambda said: said["seconds"]), middle(lambda said: sum(said["flops"].values())) / rate
    return [
        *rows,
        f"| {size} | an update, at {rate / 1e9:.0f} GFLOP/s | {whole:.3f} | {least:.3f} | {least / whole:.0%} |",
    ]


def main() -> None:
    """Compare at both sizes, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--size", choices=tuple(SIZES), nargs="*", default=("5.8M", "0.9M"))
    parser.add_argument("--phases", action="store_true", help="also our seconds phase by phase")
    parser.add_argument("--alone", action="store_true", help="only our own side")
    options = asked(parser, {"ours": ours, "theirs": peers})
    columns = (
        "size",
        "score, ours / TRL's",
        "KL",
        "tokens a completion",
        "our episodes/s of CPU time",
        "TRL's",
        "ratio",
        "on the clock",
    )
    if not options.alone:
        print(f"| {' | '.join(columns)} |", flush=True)
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            make_models(size, Path(folder))
            us = Side(sys.executable, __file__, "ours", Path(folder))
            if options.alone:
                turns = [us.ask({}) for _ in range(options.rounds + 1)][1:]
                print(
                    f"{size}: {EPISODES / median(turns):.1f} episodes/s of CPU time, "
                    f"{EPISODES / median(turns, 'wall'):.1f} on the clock"
                )
            else:
                them = Side(environment(".bench-trl-ppo", "trl==1.12.0"), __file__, "theirs", Path(folder))
                turns, rows = compare(us, them, size, options.rounds)
                print(*rows, sep="\n", flush=True)
                them.end()
            if options.phases:
                print(
                    "\n".join(
                        phase_rows(size, turns, statistics.median(us.ask({"rate": True}).said for _ in range(5)))
                    ),
                    flush=True,
                )
            us.end()


if __name__ == "__main__":
    main()
