"""A guess at what a prompt asks for, one of the paper's ten use cases (Table 1).

People tag prompts well; this does not. It looks for words at the beginning, for a text that came with the question, and for turns of a
conversation, in English only, and says "other" where it sees nothing. Use it to see roughly what a file holds and to balance sets,
never as a label to report. It only fills tags that are missing, and `use_case_by` says so in each record it touched.
"""

from __future__ import annotations

import re

_CLUES: tuple[tuple[str, str], ...] = (
    ("chat", r"^(?:human|user|me|q|you)\s*:.*^(?:assistant|ai|bot|friend|a)\s*:|\b(?:act as|pretend (?:to be|you)|you are (?:a|an) )"),
    ("summarization", r"\b(?:summari[sz]e|summary|tl;?dr|in (?:a|one) (?:sentence|nutshell)|condense)\b"),
    ("rewrite", r"\b(?:rewrite|rephrase|paraphrase|translate|translation|proofread|correct the|fix the|edit the|convert the|reword|simplify"
                r"|modify|replace|(?:change|convert|turn) (?:the|this|it|a)|make (?:it|this) (?:more|less|sound))\b"),
    ("classification", r"\b(?:classify|classification|categori[sz]e|sentiment|positive or negative|true or false|yes or no|or not\b|spam|(?:predict|determine|detect|decide|tell|tell me|verify|check|classify) (?:whether|if)"
                       r"|which (?:category|class|topic|label)|is (?:it|this) (?:a|an|the)\b.*\bor\b)"),
    ("extract", r"\b(?:extract|list all|find all|identify (?:the|all)|pull out|which (?:names|words|entities)|named entit)"),
    ("brainstorming", r"\b(?:brainstorm|ideas?|suggest(?:ions)?|list (?:of )?(?:some|five|ten|three|\d+|ways|possible)|come up with"
                      r"|(?:make a|a) list of|(?:give|name|list|identify) (?:me )?(?:\d+|some|a few|three|five|ten)|tips)\b"),
    ("generation", r"\b(?:write|compose|generate|create|draft|design|develop|construct|produce|provide|plan|invent|imagine|make up|tell (?:me )?a|add a|story|poem|essay|continue|finish the|complete the)\b"),
)  # fmt: skip
"""What gives a use case away, the surer signs first. `generation` is last: nearly everything can be asked for with "write"."""

_PATTERNS = tuple((use_case, re.compile(clue, re.IGNORECASE | re.MULTILINE | re.DOTALL)) for use_case, clue in _CLUES)
_QUESTION = re.compile(
    r"\?|^(?:what|who|whom|whose|when|where|why|how|which|is|are|was|were|do|does|did|can|could|should|would|will|explain|describe|define)\b",
    re.IGNORECASE,
)
_GIVEN = re.compile(
    r"\b(?:passage|context|paragraph|article|according to|based on|text)\s*:|\b(?:given|following) (?:passage|text|article)", re.I
)

LOOKED_AT = 400
"""Characters at either end of a prompt in which the task is looked for: what lies between is material."""


def guess_use_case(prompt: str, turns: int = 1) -> str:
    """The likely use case of a prompt, by a heuristic.

    Args:
        prompt: what was asked.
        turns: user and assistant turns in it; a conversation is chat.
    """
    if turns > 1:
        return "chat"
    task = prompt if len(prompt) <= 2 * LOOKED_AT else f"{prompt[:LOOKED_AT]}\n{prompt[-LOOKED_AT:]}"
    asks, given = bool(_QUESTION.search(task)), bool(_GIVEN.search(task)) or len(prompt) > 2 * LOOKED_AT
    for use_case, pattern in _PATTERNS:
        if pattern.search(task) and not (use_case == "generation" and asks and given):
            return use_case
    if asks:
        return "closed_qa" if given else "open_qa"
    return "other"
