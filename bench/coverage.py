"""Do 95 % intervals hold the truth, and do p-values reject as often as they say? Simulations with known truth.

    python bench/coverage.py                        # everything, 200 repetitions: about ten minutes on one core
    python bench/coverage.py share temperature --repetitions 1000
    python bench/coverage.py --rows rows.jsonl --processes 2 --write docs/reference/statistics.md

With --rows, each finished case is kept there; the same command goes on where it was stopped.

Prompts, labelers, tastes, slips and ties are drawn anew each time; intervals and p-values come from the code that
people use. A design is PROMPTS×EACHofLABELERS: 40×3of8 is 40 prompts, each judged by 3 of 8 labelers; "unequal" draws
the labelers' work from a gamma distribution of shape 0.7. "single" and "two" in the table mark rows whose interval says
so itself (`caution`). The Monte Carlo error of a share near 95 % is 1.5 points with 200 repetitions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import coverage_groups
import coverage_numbers as numbers
import coverage_tests as tests
import numpy as np
from coverage_numbers import Case, Line

GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "share": numbers.shares,
    "rating": numbers.ratings,
    "difference": numbers.differences,
    "rankings": numbers.rankings,
    "labels": numbers.labels,
    "strength": numbers.strengths,
    "length": numbers.length_controlled,
    "temperature": numbers.temperatures,
    "labeler": numbers.by_labeler,
    "groups": coverage_groups.groups,
    "p": tests.p_values,
    "holm": tests.family_wise,
    "habits": tests.habits,
    "findings": tests.findings,
}


# --- table -----------------------------------------------------------------------------------------------------------


def format_table(lines: Sequence[Line]) -> str:
    """Return a Markdown table: a row a number and setting, with the mean over designs and its lowest and highest."""
    head = "| number | setting | designs | mean % | lowest % | highest % | what `caution` marks |"
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.name, line.setting), []).append(line)
    return "\n".join([head, "|---|---|---|---|---|---|---|", *(_format_group(*item) for item in groups.items())])


def _format_group(key: tuple[str, str], lines: Sequence[Line]) -> str:
    marked = [line for line in lines if re.search("single|two", line.caution)]
    plain = sorted([line for line in lines if line not in marked] or marked, key=lambda line: line.share)
    hits, count = sum(line.hits for line in plain), sum(line.repetitions - line.missing for line in plain)
    cells = [*key, str(len(plain)), _format_share(hits, count)]
    cells += [
        f"{_format_share(line.hits, line.repetitions - line.missing)} {line.design}"
        for line in plain[:: max(len(plain) - 1, 1)]
    ]
    cells += [""] * (6 - len(cells))
    cells.append("; ".join(f"{line.design}: {100 * line.share:.0f}" for line in marked if line not in plain))
    return f"| {' | '.join(cells)} |"


def _format_share(hits: int, count: int) -> str:
    """Return a percentage with its Monte Carlo error in points."""
    share = hits / max(count, 1)
    error = np.sqrt(max(share * (1 - share), 0.25 / max(count, 1)) / max(count, 1))
    return f"{100 * share:.1f} (±{100 * error:.1f})"


def format_line(line: Line) -> str:
    notes = [line.caution.replace(" labelers", "").replace(" labeler", "")] if line.caution else []
    notes += [f"{100 * line.missing / line.repetitions:.0f} % without"] if line.missing else []
    text = f"{line.design}: {_format_share(line.hits, line.repetitions - line.missing)}"
    return text + (f" [{', '.join(notes)}]" if notes else "")


# --- running ---------------------------------------------------------------------------------------------------------

_cases: dict[str, Case] = {}
"""The cases of this run by key; forked workers read it."""


def collect_cases(groups: Sequence[str]) -> dict[str, Case]:
    return {f"{group} | {case.setting} | {case.design}": case for group in groups for case in GROUPS[group]()}


def run_case(key: str, seed: int, repetitions: int) -> tuple[str, list[Line]]:
    """Simulate one case with a generator of its own, so that no case depends on the others."""
    return key, _cases[key].lines(np.random.default_rng([seed, zlib.crc32(key.encode())]), repetitions)


def read_rows(file: Path | None, seed: int, repetitions: int) -> dict[str, list[Line]]:
    """Return the finished cases of an earlier run with the same seed and repetitions."""
    if file is None or not file.exists():
        return {}
    *complete, partial_line = file.read_text(encoding="utf-8").split("\n")
    if partial_line:  # of a killed run
        file.write_text("".join(f"{line}\n" for line in complete), encoding="utf-8")
    rows = [row for row in map(json.loads, complete) if (row["seed"], row["repetitions"]) == (seed, repetitions)]
    return {row["case"]: [Line(**line) for line in row["lines"]] for row in rows}


def run_cases(options: argparse.Namespace) -> dict[str, list[Line]]:
    """Run all cases that no earlier run finished, and keep each as it ends."""
    results = read_rows(options.rows, options.seed, options.repetitions)
    missing = [key for key in _cases if key not in results]
    work = partial(run_case, seed=options.seed, repetitions=options.repetitions)
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        for key, lines in pool.imap_unordered(work, missing):
            results[key] = lines
            for line in lines:
                print(f"{line.name} | {line.setting} | {format_line(line)}", file=sys.stderr, flush=True)
            if options.rows:
                row = {"case": key, "seed": options.seed, "repetitions": options.repetitions}
                with options.rows.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row | {"lines": [asdict(line) for line in lines]}) + "\n")
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"default: all of {', '.join(GROUPS)}")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--rows", type=Path, help="JSONL file of finished cases: written as they end, read at the start"
    )
    parser.add_argument("--write", type=Path, help="replace the table between the coverage marks of this file")
    options = parser.parse_args(arguments)
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; there are: {', '.join(GROUPS)}")
    _cases.update(collect_cases(options.groups or list(GROUPS)))
    results = run_cases(options)
    table = format_table([line for key in _cases for line in results[key]])
    print(table)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        marked = re.sub(
            r"(<!-- coverage -->\n).*?(<!-- /coverage -->)", lambda m: m[1] + table + "\n" + m[2], text, flags=re.S
        )
        options.write.write_text(marked, encoding="utf-8")


if __name__ == "__main__":
    main()
