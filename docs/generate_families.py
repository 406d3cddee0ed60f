"""Write docs/reference/families.md and the table that models are loaded by: `make families`.

About 15 minutes on two cores.
Every name of transformers' auto mapping of causal models is built small (tests/support/family_models.py) and put to
the checks of tests/support/family_checks.py, each in a process of its own. A family that fails a check and has no
reason in REFUSED below ends the script with an error: its reason must be found and written down first.

    python docs/generate_families.py            # all families
    python docs/generate_families.py llama mpt  # these alone; the other rows stay
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")

import transformers  # noqa: E402
from support import family_checks as checks  # noqa: E402
from support import family_models as models  # noqa: E402

from instructgpt.models import families  # noqa: E402
from instructgpt.models.families import Family  # noqa: E402
from instructgpt.models.packed_attention import PACKED_ATTENTION  # noqa: E402
from instructgpt.sampling import engine  # noqa: E402

TABLE, PAGE = ROOT / "src/instructgpt/models/families.json", ROOT / "docs/reference/families.md"
TIMEOUT_S, JOBS = 240, 2
_BOTH_WAYS = "later tokens change the logits of earlier ones"
_DRAFTS = "it drafts tokens for a larger model and writes no text alone"
_AUDIO = "it writes codes of sound, not text"
_SAVED_ALONE = "transformers saves its language part alone and has no auto class that loads that"
REFUSED = {
    "blt": "it reads bytes in patches of its own and has no tokenizer",
    "cpmant": _BOTH_WAYS,
    "emu3": _SAVED_ALONE,
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "gemma3n": "its part for images needs the library timm; its language part alone, gemma3n_text, is supported",
    "mllama": _SAVED_ALONE,
    "musicgen": _AUDIO,
    "musicgen_melody": _AUDIO,
    "prophetnet": "it predicts several next tokens at once, and later tokens change the logits of earlier ones",
    "reformer": "its hashed attention depends on the length that texts are padded to",
    "xlm": _BOTH_WAYS,
    "xlnet": _BOTH_WAYS,
}
"""Why a family of the mapping is not accepted."""
CONTEXT_KEYS = {
    "axk2": "index_topk",
    "deepseek_v32": "index_topk",
    "doge": "keep_window_size",
    "glm_moe_dsa": "index_topk",
}
"""The length up to which sparse attention sees all tokens, so that later tokens do not change earlier ones."""


_PAGE_HEAD = """# Model families
<!-- written by docs/generate_families.py (`make families`); do not edit -->
Every causal language model of transformers is exact in every stage, or refused in one line before its weights are read.
This table has a row for each name of transformers' auto mapping of causal models, version {version}: {counts}.
`make test` fails where the mapping has a name that the table lacks.

Each family is built small, with windows, chunks and sparse indexes shorter than the texts, and compared with
transformers' own model, one text at a time: logits and gradients of a batch of very long and very short texts and of
completions that share a prompt; samples of prompts of different lengths, and their log-probabilities; scores of a reward
model; the saved model, loaded by transformers; an update of PPO-ptx. Families with sliding windows are tried with them
and without.

| column | what it says |
|---|---|
| batches | packed: sequences lie end to end, without padding, and a shared prompt is computed once. Layers with a sliding window, a cap or another bias fall back to padded rows, one a sequence |
| sampling | KV cache: rows of all lengths in slots, under CUDA graphs on a GPU. Recomputation: the whole text again for each token; exact, and slow |
| reward model | whether transformers has a sequence classifier of the family with one linear head `score` |

How a model is computed is printed when a stage loads it, and kept in `run.json` under `execution`; `plan` shows it too.
Logits that a family scales or caps after its output layer (Cohere, Granite, Gemma 2) come from its own code.
Rotary embeddings of type `dynamic` and `longrope` depend on the longest text of a batch beyond their original length, so
texts up to that length are used; longer ones are left out and counted.

| family | batches | sampling | reward model | notes |
|---|---|---|---|---|"""


def measure(name: str) -> dict[str, Any]:
    """Find the fastest exact way of computing a family. -> its row, and `model_type` as its saved models have it."""
    with tempfile.TemporaryDirectory() as folder:
        saved = checks.save_small_model(name, Path(folder) / "model")
        model_type = json.loads((saved / "config.json").read_text())["model_type"]
        row = Family(decoder_only=name in models.ENCODERS, context_key=CONTEXT_KEYS.get(name))
        table = families.load_table()

        def passes(trial: Family, check: Any) -> bool:
            table[model_type] = trial
            engine._CACHE_PROBES.clear()
            try:
                check()
            except AssertionError:
                return False
            return True

        variants = [saved, *checks.save_window_variants(name, Path(folder))]
        packed = _changed(row, packed=True)
        is_packed = passes(packed, lambda: [checks.check_batches(variant) for variant in variants])
        used = is_packed and any(checks.uses(variant, PACKED_ATTENTION) for variant in variants)
        row = _changed(row, packed=used)
        if not used:
            table[model_type] = row
            for variant in variants:
                checks.check_batches(variant)
        cached = _changed(row, cache=True)
        if passes(cached, lambda: [checks.check_sampling(variant) for variant in variants]):
            row = cached if any(checks.uses_cache(variant) for variant in variants) else row
        table[model_type] = row
        for variant in variants:
            checks.check_sampling(variant)
        checks.check_saving(saved, Path(folder) / "saved")
        reward = checks.check_scores(saved, Path(folder) / "reward")
        row = table[model_type] = _changed(row, reward=reward)
        checks.check_ppo(saved, Path(folder) / "reward" if reward else checks.save_reward(folder), Path(folder) / "ppo")
        return {"model_type": model_type, **asdict(row)}


def _changed(row: Family, **values: Any) -> Family:
    return Family(**(asdict(row) | values))


def measure_in_process(name: str) -> dict[str, Any]:
    """Measure a family in a process of its own. -> its row, or what went wrong."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        # of processor time, so that a busy machine fails no family; SIGPROF ends the process
        signal.setitimer(signal.ITIMER_PROF, TIMEOUT_S)
        log = os.open(os.devnull, os.O_WRONLY)
        os.dup2(log, 1)
        try:
            result = measure(name)
        except BaseException as error:  # whatever a family raises is its row of the log
            place = traceback.extract_tb(error.__traceback__)[-1]
            result = {
                "failed": f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"
            }
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        content = stream.read()
    os.waitpid(child, 0)
    return dict(json.loads(content)) if content else {"failed": f"no result within {TIMEOUT_S} s of processor time"}


def format_page(rows: dict[str, dict[str, Any]]) -> str:
    """Return docs/reference/families.md: how to read it, and a row a family."""
    kept = {name: Family(**row) for name, row in rows.items()}
    exact = {name: family for name, family in kept.items() if family.refused is None}
    counts = [
        f"{len(exact)} of {len(kept)} families are exact",
        f"{sum(family.packed for family in exact.values())} in packed batches",
        f"{sum(family.cache for family in exact.values())} sampled with a KV cache",
        f"{sum(family.reward for family in exact.values())} also as reward models",
    ]
    lines = [_PAGE_HEAD.format(version=transformers.__version__, counts=", ".join(counts))]
    for name, family in kept.items():
        if family.refused is not None:
            lines.append(f"| `{name}` | refused | | | {family.refused} |")
            continue
        notes = ["`is_decoder: true` only"] if family.decoder_only else []
        notes += [f"texts of up to `{family.context_key}` tokens"] if family.context_key else []
        batches, sampling = "packed" if family.packed else "padded", "KV cache" if family.cache else "recomputation"
        reward = "yes" if family.reward else "no"
        lines.append(f"| `{name}` | {batches} | {sampling} | {reward} | {'; '.join(notes)} |")
    return "\n".join(lines) + "\n"


def measure_all(names: list[str], jobs: int) -> dict[str, dict[str, Any]]:
    """Measure families in several processes. -> the result of each."""
    readers = []
    for job in range(jobs):
        reader, writer = os.pipe()
        if os.fork() == 0:
            with os.fdopen(writer, "w") as stream:
                for name in names[job::jobs]:
                    result = measure_in_process(name)
                    print(f"{name}: {result}", flush=True)
                    stream.write(json.dumps([name, result]) + "\n")
            os._exit(0)
        os.close(writer)
        readers.append(reader)
    results = {}
    for reader in readers:
        with os.fdopen(reader) as stream:
            results |= dict(json.loads(line) for line in stream)
    return results


def main(names: list[str]) -> None:
    """Measure families, write the table and the page."""
    old = json.loads(TABLE.read_text(encoding="utf-8"))["families"]
    names = names or models.families()
    rows = old if len(names) < len(models.families()) else {}
    rows |= {name: {"refused": REFUSED[name]} for name in names if name in REFUSED}
    results = measure_all([name for name in names if name not in REFUSED], JOBS)
    failed = sorted(name for name, result in results.items() if "failed" in result)
    defaults = asdict(Family())
    for name, result in results.items():
        if name not in failed:
            model_type = result.pop("model_type")
            row = {key: value for key, value in result.items() if value != defaults[key]}
            rows[name] = rows[model_type] = row
    rows = dict(sorted(rows.items()))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    head = f'{{"transformers": "{transformers.__version__}", "families": {{\n'
    TABLE.write_text(head + lines + "\n}}\n", encoding="utf-8")
    PAGE.write_text(format_page(rows), encoding="utf-8")
    if failed:
        sys.exit(f"no row for {len(failed)} families: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
