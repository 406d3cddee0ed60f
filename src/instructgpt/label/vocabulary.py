"""Names and limits that the commands, the site and its files share."""

from __future__ import annotations

from typing import Literal

TaskKind = Literal["rank", "demonstrate", "write", "review"]
TASK_KINDS: tuple[TaskKind, ...] = ("rank", "demonstrate", "write", "review")
"""Rank: rate and rank completions. Demonstrate: write a completion. Write: write a prompt. Review: describe one."""
ExportFileName = Literal["rankings", "demonstrations", "prompts", "comparisons", "pairs", "ratings", "reviews"]
ExportFormat = Literal["jsonl", "parquet", "datasets"]
ExportUse = Literal["training", "evaluation"]
LabelImportFormat = Literal["auto", "instructgpt", "label-studio", "argilla"]
SecondFactorPolicy = Literal["optional", "owners", "team"]
"""Who must set up a second factor: nobody, owners, or owners and researchers."""
FailureKind = Literal["false_premise", "hedging", "harm", "constraints"]
FAILURE_KINDS: tuple[FailureKind, ...] = ("false_premise", "hedging", "harm", "constraints")
"""What red-team prompts should bring about: a false premise accepted, hedging, help with harm, a constraint missed
(paper, 4.3 and 5.3).
"""
MAX_COMPLETIONS = 9  # of a task, lettered A to I; the paper uses K = 4 to 9 (3.5)
MAX_RATING = 7
MAX_RATING_POINTS = 20
"""Of a rating scale that a batch sets; the database checks it."""
UNLIMITED_OVERLAP = 1_000_000
"""Overlap of gold and screening tasks, which every labeler gets once; progress does not count them."""
SMTP_PASSWORD_VARIABLE = "INSTRUCTGPT_SMTP_PASSWORD"
OPENID_SECRET_VARIABLE = "INSTRUCTGPT_OPENID_SECRET"
"""Environment variables of secrets, which stand in no command line."""
