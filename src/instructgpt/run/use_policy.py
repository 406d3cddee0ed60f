"""What an owner allows a model to be used for, by the use case that an API key carries (InstructGPT, section 5.5).

policy:
  unlisted: allowed                  # use cases that are not listed, and requests without one
  use_cases:
    support: allowed
    hiring letters: needs a person   # keys of this use case are refused until a person approved them
    medical diagnosis: allowed       # high-stakes domains are refused unless they are listed
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from instructgpt.errors import InputError

UseDecision = Literal["allowed", "refused", "needs a person"]
_DECISIONS: tuple[UseDecision, ...] = get_args(UseDecision)

HIGH_STAKES_DOMAINS: Mapping[str, str] = MappingProxyType(
    {
        "medical diagnosis": r"medical|medicine|diagnos\w*|clinical|symptoms?",
        "credit": r"credit|loans?|lending|mortgages?",
        "employment": r"hiring|recruit\w*|employment|job applica\w*",
        "housing": r"housing|tenants?|rental applica\w*",
        "law enforcement": r"law enforcement|polic(?:e|ing)|predictive policing|surveillance",
        "political advertising": r"politic\w*|elections?|campaign ads?",
        "protected characteristics": r"protected characteristics?|ethnicity|racial \w+|sexual orientation",
    }
)
"""The paper's high-stakes domains, each with the words of a use case that belongs to it."""

_START, _END = "<!-- use policy -->", "<!-- end of use policy -->"


def normalize_use_case(name: str) -> str:
    """Return a use case as it is compared: lower case, words separated by one space."""
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " ")))


def find_high_stakes_domain(use_case: str) -> str | None:
    """Return the high-stakes domain that a use case names, or None."""
    name = normalize_use_case(use_case)
    for domain, pattern in HIGH_STAKES_DOMAINS.items():
        if re.search(rf"\b(?:{pattern})\b", name):
            return domain
    return None


@dataclass(frozen=True, slots=True)
class UsePolicy:
    """Decisions by use case. `use_cases` has normalized names."""

    unlisted: UseDecision = "allowed"
    use_cases: Mapping[str, UseDecision] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def from_yaml(cls, section: Any, source: str) -> UsePolicy:
        """Read the section `policy` of a YAML file. Raises InputError for anything that is no policy."""
        if section is None:
            return cls()
        if not isinstance(section, dict):
            raise InputError(f"{source}: policy: expected 'unlisted' and 'use_cases'")
        if strange := [name for name in section if name not in ("unlisted", "use_cases")]:
            raise InputError(f"{source}: policy: unknown '{strange[0]}'; expected 'unlisted' and 'use_cases'")
        rows = section.get("use_cases") or {}
        if not isinstance(rows, dict):
            raise InputError(f"{source}: policy: use_cases: expected lines 'use case: {' | '.join(_DECISIONS)}'")
        use_cases: dict[str, UseDecision] = {}
        for name, decision in rows.items():
            key = normalize_use_case(str(name))
            if not key or key in use_cases:
                problem = "is listed twice" if key else "has no letters"
                raise InputError(f"{source}: policy: the use case '{name}' {problem}")
            use_cases[key] = _parse_decision(decision, f"{source}: policy: {name}")
        unlisted = _parse_decision(section.get("unlisted", "allowed"), f"{source}: policy: unlisted")
        return cls(unlisted, MappingProxyType(use_cases))

    def decide(self, use_case: str) -> UseDecision:
        """Return the decision for a key's use case. A high-stakes domain is refused unless it is listed."""
        name = normalize_use_case(use_case)
        if name in self.use_cases:
            return self.use_cases[name]
        domain = find_high_stakes_domain(name)
        if domain is not None:
            return self.use_cases.get(domain, "refused")
        return self.unlisted

    def describe(self) -> dict[str, Any]:
        """Return the policy as JSON: use cases by decision, high-stakes domains included."""
        decisions = {**{domain: self.decide(domain) for domain in HIGH_STAKES_DOMAINS}, **self.use_cases}
        groups: dict[str, Any] = {
            decision: [name for name, x in decisions.items() if x == decision] for decision in _DECISIONS
        }
        return {**groups, "unlisted": self.unlisted}

    def format_markdown(self) -> str:
        """Return the policy as a section of a model card."""
        description = self.describe()
        lines = [
            _START,
            "## Use policy",
            "",
            "| use case | |",
            "|---|---|",
            *(f"| {name} | {decision} |" for decision in _DECISIONS for name in description[decision]),
            f"| any other | {self.unlisted} |",
            "",
            "Medical diagnosis, credit, employment, housing, law enforcement, political advertising and classifying",
            "people by protected characteristics are refused unless the owner of the model allows them. Filters reduce",
            "misuse; they do not prevent it.",
            _END,
        ]
        return "\n".join(lines)


def replace_use_policy(card: str, policy: UsePolicy) -> str:
    """Return a model card with this policy in place of the one that it has, or after its text."""
    section = policy.format_markdown()
    start, end = card.find(_START), card.find(_END)
    if 0 <= start < end:
        return card[:start] + section + card[end + len(_END) :]
    return card.rstrip("\n") + "\n\n" + section + "\n"


def _parse_decision(value: Any, place: str) -> UseDecision:
    for decision in _DECISIONS:
        if value == decision:
            return decision
    raise InputError(f"{place}: '{value}': expected {', '.join(_DECISIONS)}")
