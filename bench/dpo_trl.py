"""DPO's loss and its gradient beside TRL's, on the same model, reference and pairs.

pip install --no-deps trl==1.16.0 accelerate datasets
python bench/dpo_trl.py [--pairs 64] [--beta 0.1]

Both sides read the same tokens: ours packs completions of a prompt, TRL pads pairs. Printed are both losses and the
largest difference of a gradient's element, relative to the largest element.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from typing import Any

import torch
import transformers

from instructgpt.baselines.dpo import add_reference_logps, dpo_backward
from instructgpt.data.packing import TokenizedExample
from instructgpt.data.rankings import LabelerRanks, RankedPrompt
from instructgpt.train.configs import DPOConfig


def build_models() -> tuple[Any, Any]:
    """Return a policy and the reference that it has left."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=300, n_positions=64, n_embd=64, n_layer=3, n_head=4)
    reference = transformers.GPT2LMHeadModel(config).eval()
    policy = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return policy, reference


def build_pairs(count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Return prompts with a chosen and a rejected completion, as tokens."""
    rng = random.Random(0)

    def tokens(least: int, most: int) -> list[int]:
        return [rng.randrange(1, 300) for _ in range(rng.randint(least, most))]

    return [(tokens(2, 20), tokens(1, 20), tokens(1, 20)) for _ in range(count)]


def compute_ours(policy: Any, reference: Any, pairs: Any, beta: float) -> float:
    """Return this package's loss; gradients are left in the policy."""
    prompts = [
        RankedPrompt(
            [TokenizedExample(prompt, completion) for completion in (rejected, chosen)],
            (LabelerRanks((2, 1), None, "training"),),
            "",
        )
        for prompt, chosen, rejected in pairs
    ]
    prompts = add_reference_logps(reference, prompts)
    return dpo_backward(policy, prompts, DPOConfig(policy="", data=(), out="", beta=beta))[0]


def compute_trl(policy: Any, reference: Any, pairs: Any, beta: float) -> float:
    """Return TRL's loss; gradients are left in the policy."""
    import datasets
    import trl
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    tokenizer = _build_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        options = {"output_dir": folder, "beta": beta, "report_to": "none", "use_cpu": True, "bf16": False}
        trainer = trl.DPOTrainer(
            policy,
            ref_model=reference,
            args=trl.DPOConfig(**options, disable_dropout=True, gradient_checkpointing=False),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        examples = [
            {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected} for prompt, chosen, rejected in pairs
        ]
        inputs = DataCollatorForPreference(pad_token_id=0)(examples)
        loss = trainer.compute_loss(policy, inputs)
        loss.backward()
    return float(loss.detach())


def _build_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = WordLevel({"<eos>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<eos>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="<eos>", pad_token="<eos>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--beta", type=float, default=0.1)
    arguments = parser.parse_args()
    pairs = build_pairs(arguments.pairs)
    results = {}
    for name, compute in (("instructgpt", compute_ours), ("trl", compute_trl)):
        policy, reference = build_models()
        loss = compute(policy, reference, pairs, arguments.beta)
        results[name] = loss, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        print(f"{name}: loss {loss:.8f}, gradient norm {results[name][1].norm():.6f}")
    ours, theirs = results["instructgpt"][1], results["trl"][1]
    print(f"largest difference of gradients: {float((ours - theirs).abs().max() / theirs.abs().max()):.2e}, relative")


if __name__ == "__main__":
    main()
