"""A heuristic guess of a prompt's use case, one of the paper's ten (Table 1).

It looks for keywords at the beginning, for attached text, and for conversation turns, in English only, and answers
"other" otherwise. Use it to inspect or balance data, never as a reported label. It only fills missing tags;
`use_case_by` marks them.
"""

from __future__ import annotations

import re

_USE_CASE_PHRASES: tuple[tuple[str, str], ...] = (
    ("chat", r"act as / pretend to be / pretend you / pretend that you / you are an?"),
    ("summarization", r"summari[sz]e / summary / tl;?dr / in (?:a|one) (?:sentence|nutshell) / condense"),
    (
        "rewrite",
        r"""rewrite / rephrase / paraphrase / reword / translate / translation / proofread / simplify / modify / replace
        / (?:correct|fix|edit) the / (?:change|convert|turn) (?:the|this|it|a) / make (?:it|this) (?:more|less|sound)""",
    ),
    (
        "classification",
        r"""classify / classification / categori[sz]e / sentiment / positive or negative / true or false / yes or no / or not
        / spam / (?:predict|determine|detect|decide|tell|tell me|verify|check) (?:whether|if) / which (?:category|class|topic|label)""",
    ),
    (
        "extract",
        r"extract / pull out / (?:list|find) all / identify (?:the|all) / which (?:names|words|entities) / named "
        r"entit(?:y|ies)",
    ),
    (
        "brainstorming",
        r"""brainstorm / ideas? / suggest(?:ions)? / tips / come up with / (?:make )?a list of
        / list (?:some|possible|ways) / (?:give|name|list|identify) (?:me )?(?:\d+|some|a few|two|three|four|five|ten)""",
    ),
    (
        "generation",
        r"""write / compose / generate / create / draft / design / develop / construct / produce / provide / plan / invent
        / imagine / make up / tell (?:me )?a / add a / story / poem / essay / continue / (?:finish|complete) the""",
    ),
)
"""Keywords by use case, most reliable first; `generation` is last because "write" introduces nearly everything."""


def _compile_phrases(phrases: str) -> re.Pattern[str]:
    alternatives = "|".join(" ".join(word.split()) for word in phrases.split(" / "))
    return re.compile(rf"\b(?:{alternatives})\b", re.IGNORECASE)


_USE_CASE_PATTERNS = tuple((use_case, _compile_phrases(words)) for use_case, words in _USE_CASE_PHRASES)
_TRANSCRIPT_PATTERN = re.compile(
    r"^(?:human|user|me|you)\s*:.*^(?:assistant|ai|bot|friend)\s*:", re.IGNORECASE | re.MULTILINE | re.DOTALL
)
_QUESTION_PATTERN = re.compile(
    r"\?|^(?:what|who|whom|whose|when|where|why|how|which|is|are|was|were|do|does|did|can|could|should|would|will"
    r"|explain|describe|define)\b",
    re.IGNORECASE,
)
_PASSAGE_PATTERN = re.compile(
    r"\b(?:passage|context|paragraph|article|according to|based on|text)\s*:|\b(?:given|following) "
    r"(?:passage|text|article)",
    re.I,
)

_MAX_SCANNED_CHARACTERS = 400
"""Characters scanned at either end of a prompt; the middle is material."""


def guess_use_case(prompt: str, turns: int = 1) -> str:
    """Guess the use case of a prompt.

    Args:
        turns: user and assistant turns; a conversation is chat.
    """
    if turns > 1 or _TRANSCRIPT_PATTERN.search(prompt):
        return "chat"
    scanned_text = (
        prompt
        if len(prompt) <= 2 * _MAX_SCANNED_CHARACTERS
        else f"{prompt[:_MAX_SCANNED_CHARACTERS]}\n{prompt[-_MAX_SCANNED_CHARACTERS:]}"
    )
    is_question, has_passage = (
        bool(_QUESTION_PATTERN.search(scanned_text)),
        bool(_PASSAGE_PATTERN.search(scanned_text)) or len(prompt) > 2 * _MAX_SCANNED_CHARACTERS,
    )
    for use_case, pattern in _USE_CASE_PATTERNS:
        if pattern.search(scanned_text) and not (use_case == "generation" and is_question and has_passage):
            return use_case
    if is_question:
        return "closed_qa" if has_passage else "open_qa"
    return "other"
