"""Personal data in prompts: e-mail, phone, card, address, national id, bank account.

The paper filters all prompts of the training split (section 3.2). A detector is a pattern for candidates and a check
that rejects look-alikes (dates, versions, order numbers, ISBNs). Numbers with check digits (cards, IBAN, Korean ids)
are nearly certain; phone numbers and addresses are matched by form, so some are missed and some public ones are found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from instructgpt.errors import InputError


@dataclass(frozen=True)
class PIIDetector:
    """One kind of personal data: candidate pattern and validity check."""

    pattern: re.Pattern[str]
    is_valid: Callable[[re.Match[str]], bool]
    hint: str  # a character class that must occur for the pattern to be worth trying


@dataclass(frozen=True)
class PIIMatch:
    kind: str
    start: int
    end: int


def extract_digits(text: str) -> str:
    return "".join(character for character in text if character in "0123456789")


def is_luhn_valid(number: str) -> bool:
    """Return whether the Luhn check holds."""
    doubled = [int(digit) * (1 + position % 2) for position, digit in enumerate(reversed(number))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


# ---------------------------------------------------------------- checks

_FILE_EXTENSIONS = {"png", "jpg", "jpeg", "gif", "svg", "webp", "js", "css", "py"}  # icon@2x.png is a file
_RESERVED_DOMAINS = ("example.com", "example.org", "example.net", ".example", ".test", ".invalid", ".localhost")


def _is_email(match: re.Match[str]) -> bool:
    """Reject file names, git's own address and reserved example domains (RFC 2606)."""
    local, _, domain = match[0].lower().rpartition("@")
    return (
        local != "git" and domain.rpartition(".")[2] not in _FILE_EXTENSIONS and not domain.endswith(_RESERVED_DOMAINS)
    )


def _is_phone(match: re.Match[str]) -> bool:
    """Accept 8 to 15 digits after a plus, or a national form; North America needs a valid area code and exchange."""
    number = extract_digits(match[0])
    if len(set(number)) < 4:  # 000-0000-0000 and the like are placeholders
        return False
    if match[0].startswith("+"):
        return 8 <= len(number) <= 15
    if match["nanp"]:
        national = number.removeprefix("1") if len(number) == 11 else number
        return national[0] in "23456789" and national[3] in "23456789" and national[1:3] != "11"
    return True


_CARD_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"6(?:011|5|4[4-9])"), (16, 19)),
    (re.compile(r"35(?:2[89]|[3-8])"), (16,)),
    (re.compile(r"3(?:0[0-5]|[68])"), (14,)),
    (re.compile(r"62"), (16, 17, 18, 19)),
)
"""Prefixes and lengths of Visa, Mastercard, American Express, Discover, JCB, Diners, UnionPay."""


def _is_card(match: re.Match[str]) -> bool:
    number = extract_digits(match[0])
    return any(prefix.match(number) and len(number) in lengths for prefix, lengths in _CARD_ISSUERS) and is_luhn_valid(
        number
    )


def _is_ssn(match: re.Match[str]) -> bool:
    """Accept area 001-899 except 666, nonzero group and serial,
    and neither of the two numbers known from advertisements.
    """
    area, group, serial = match[0].split("-")
    is_issued_range = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return is_issued_range and match[0] not in ("078-05-1120", "219-09-9999")


def _is_rrn(match: re.Match[str]) -> bool:
    """Accept Korean resident numbers: birth date, century,
    and check digit (absent from numbers issued since October 2020).
    """
    number = extract_digits(match[0])
    century = {"1": 1900, "2": 1900, "5": 1900, "6": 1900, "3": 2000, "4": 2000, "7": 2000, "8": 2000}.get(number[6])
    if century is None:
        return False
    try:
        birth_date = date(century + int(number[:2]), int(number[2:4]), int(number[4:6]))
    except ValueError:
        return False
    if birth_date >= date(2020, 10, 1):
        return True
    total = sum(
        int(digit) * weight for digit, weight in zip(number, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=False)
    )
    base = 13 if number[6] in "5678" else 11  # foreigners' numbers are two higher
    return int(number[12]) == (base - total % 11) % 10


_NINO_UNUSED = ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")

_IBAN_LENGTHS = {
    "AD": 24,
    "AE": 23,
    "AL": 28,
    "AT": 20,
    "AZ": 28,
    "BA": 20,
    "BE": 16,
    "BG": 22,
    "BH": 22,
    "BR": 29,
    "BY": 28,
    "CH": 21,
    "CR": 22,
    "CY": 28,
    "CZ": 24,
    "DE": 22,
    "DK": 18,
    "DO": 28,
    "EE": 20,
    "EG": 29,
    "ES": 24,
    "FI": 18,
    "FO": 18,
    "FR": 27,
    "GB": 22,
    "GE": 22,
    "GI": 23,
    "GL": 18,
    "GR": 27,
    "GT": 28,
    "HR": 21,
    "HU": 28,
    "IE": 22,
    "IL": 23,
    "IS": 26,
    "IT": 27,
    "JO": 30,
    "KW": 30,
    "KZ": 20,
    "LB": 28,
    "LI": 21,
    "LT": 20,
    "LU": 20,
    "LV": 21,
    "MC": 27,
    "MD": 24,
    "ME": 22,
    "MK": 19,
    "MR": 27,
    "MT": 31,
    "MU": 30,
    "NL": 18,
    "NO": 15,
    "PK": 24,
    "PL": 28,
    "PS": 29,
    "PT": 25,
    "QA": 29,
    "RO": 24,
    "RS": 22,
    "SA": 24,
    "SE": 24,
    "SI": 19,
    "SK": 24,
    "SM": 27,
    "TN": 24,
    "TR": 26,
    "UA": 29,
    "VG": 24,
    "XK": 20,
}


def _is_iban(match: re.Match[str]) -> bool:
    """Accept IBANs with their country's length and remainder 1 modulo 97 (ISO 13616)."""
    account = match[0].replace(" ", "")
    if len(account) != _IBAN_LENGTHS.get(account[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97 == 1


def _accept_any(match: re.Match[str]) -> bool:  # noqa: ARG001  the shape says it all
    return True


# ---------------------------------------------------------------- the detectors

_LEFT_BOUNDARY, _RIGHT_BOUNDARY = (
    r"(?<![\w.,/+\-])",
    r"(?![\w\-]|[.,/]\d)",
)  # not a piece of a longer number, path or word

_PHONE = rf"""{_LEFT_BOUNDARY}(?:
      \+[1-9](?:[ .\-]?\(?\d{{1,4}}\)?){{2,6}}                                  # +44 20 7946 0958
    | (?P<nanp>(?:1[ .\-])?(?:\(\d{{3}}\)[ ]?|\d{{3}}[\-. ])\d{{3}}[\-. ]\d{{4}})  # (212) 736-5000
    | 01[016789][\- .]\d{{3,4}}[\- .]\d{{4}} | 0(?:2|[3-6]\d)-\d{{3,4}}-\d{{4}}   # 010-2345-6789, 02-345-6789
    | 07\d{{3}}[ ]\d{{3}}[ ]?\d{{3}} | 0(?:20[ ]\d{{4}}|1\d{{2}}[ ]\d{{3}}|1\d{{3}}[ ]\d{{2,3}})[ ]\d{{3,4}}  # 07700 900 123, 020 7946 0958
    | 0[1-9](?:[ .]\d\d){{4}}                                                  # 01 42 68 53 00
    ){_RIGHT_BOUNDARY}"""

_STREET = (
    r"(?:Street|St\.?|Avenue|Ave\.?|Road|Rd\.?|Boulevard|Blvd\.?|Lane|Ln\.?|Drive|Dr\.?|Court|Ct\.?|Place|Square|Terrace|Parkway|Pkwy\.?|"
    r"Highway|Hwy\.?|Crescent|Close)"
)
_ADDRESS = rf"""(?<![\w.,/\-$£€#])(?:
      \d{{1,5}}[A-Za-z]?[ ](?:[NSEW]\.?[ ]|North[ ]|South[ ]|East[ ]|West[ ])?
      (?:(?!Mount[ ])[A-Z][a-z'’]+[ ]|\d{{1,3}}(?:st|nd|rd|th)[ ]){{1,3}}{_STREET}(?!\w)
    | P\.?[ ]?O\.?[ ]Box[ ]\d{{1,6}}
    | [A-ZÄÖÜ][a-zäöüß\-]{{2,}}(?:straße|strasse|str\.|gasse|allee)[ ]\d{{1,4}}[a-z]?(?!\w)
    | \d{{1,4}}(?:[ ](?:bis|ter))?,?[ ](?:rue|avenue|boulevard|chemin|impasse)
      [ ](?:de[ ]|du[ ]|des[ ]|la[ ]|l['’]|d['’]){{0,2}}[A-ZÉÈ][\wé\-]+
    | [가-힣]+(?:시|도|군|구)[ ](?:[가-힣0-9]+[ ])?[가-힣0-9]+(?:로|길)[ ]?\d{{1,4}}(?:-\d{{1,4}})?(?!\d|[ ]?(?:년|월|일|명|개|회))
    )"""

PII_DETECTORS: dict[str, PIIDetector] = {
    "email": PIIDetector(
        re.compile(r"(?<![\w.+%\-/])[\w.+%\-]{1,64}@(?:[\w\-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w\-]|\.\w)"),
        _is_email,
        "@",
    ),
    "phone": PIIDetector(re.compile(_PHONE, re.VERBOSE), _is_phone, "0-9"),
    "card": PIIDetector(re.compile(rf"{_LEFT_BOUNDARY}\d(?:[ \-]?\d){{12,18}}{_RIGHT_BOUNDARY}"), _is_card, "0-9"),
    "address": PIIDetector(re.compile(_ADDRESS, re.VERBOSE), _accept_any, "0-9"),
    "ssn": PIIDetector(re.compile(rf"{_LEFT_BOUNDARY}\d{{3}}-\d{{2}}-\d{{4}}{_RIGHT_BOUNDARY}"), _is_ssn, "0-9"),
    "rrn": PIIDetector(re.compile(rf"{_LEFT_BOUNDARY}\d{{6}}-?[1-8]\d{{6}}{_RIGHT_BOUNDARY}"), _is_rrn, "0-9"),
    "nino": PIIDetector(
        re.compile(r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D](?!\w)"),
        lambda match: match[0][:2] not in _NINO_UNUSED,
        "0-9",
    ),
    "iban": PIIDetector(
        re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"), _is_iban, "0-9"
    ),
}
"""Detectors by name; `ssn`, `rrn` and `nino` are national ids of the USA, Korea and the United Kingdom."""

_HINT_PATTERNS = {detector.hint: re.compile(f"[{detector.hint}]") for detector in PII_DETECTORS.values()}


def parse_detector_names(names: str) -> tuple[str, ...]:
    """Parse a comma-separated list of detectors. Raises InputError for an unknown one."""
    detector_names = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in detector_names:
        if name not in PII_DETECTORS:
            raise InputError(f"--detectors {name}: there is no such detector; there are: {', '.join(PII_DETECTORS)}")
    return detector_names


def find_pii(text: str, kinds: Sequence[str] = tuple(PII_DETECTORS)) -> Iterator[PIIMatch]:
    """Yield all personal data of these kinds, kind by kind."""
    present_hints = {hint for hint, pattern in _HINT_PATTERNS.items() if pattern.search(text)}
    for kind in kinds:
        detector = PII_DETECTORS[kind]
        if detector.hint in present_hints:
            for match in detector.pattern.finditer(text):
                if detector.is_valid(match):
                    yield PIIMatch(kind, match.start(), match.end())


def pii_drop_reason(text: str, kinds: Sequence[str] = tuple(PII_DETECTORS)) -> str | None:
    """Return the drop reason for the first personal data found, or None."""
    match = next(find_pii(text, kinds), None)
    return None if match is None else f"personal data: {match.kind}"
