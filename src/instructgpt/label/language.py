"""Guess the language of a text from its letters and its most frequent words.

The guess only serves filters; a record that states its language is not guessed.
"""

from __future__ import annotations

import re
from collections import Counter

_MAX_CHARACTERS, _MIN_WORDS = 4_000, 2
_SCRIPTS: dict[str, str] = {
    "ko": r"[\uac00-\ud7af\u1100-\u11ff\u3130-\u318f]",
    "ja": r"[\u3040-\u30ff]",
    "zh": r"[\u3400-\u4dbf\u4e00-\u9fff]",
    "ru": r"[\u0400-\u04ff]",
    "el": r"[\u0370-\u03ff]",
    "he": r"[\u0590-\u05ff]",
    "ar": r"[\u0600-\u06ff]",
    "hi": r"[\u0900-\u097f]",
    "bn": r"[\u0980-\u09ff]",
    "ta": r"[\u0b80-\u0bff]",
    "th": r"[\u0e00-\u0e7f]",
    "ka": r"[\u10a0-\u10ff]",
    "hy": r"[\u0530-\u058f]",
    "latin": r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]",
}
"""Blocks of the Unicode Standard, by the ISO 639-1 code of the most common language that uses them."""
_SCRIPT_PATTERNS = {code: re.compile(block) for code, block in _SCRIPTS.items()}
_CHARACTERS_PER_WORD = {"ko": 2, "ja": 2, "zh": 2}  # a letter of these weighs as much as several Latin ones
_FUNCTION_WORDS = {
    "en": "the of and to a in is that for it with as on be are this by you from or what how your an i do please write",
    "de": "der die das und ist nicht ein eine zu den von mit sich auf für im dem des wie was ich es sie kann bitte",
    "fr": "le la les de des et est un une dans que qui pour pas sur au du ce vous je il elle avec comment quel quelle",
    "es": "el la los las de y que en un una es por con para del se no su como qué cuál lo al está puedes escribe",
    "pt": "o a os as de e que em um uma é por com para do da se não no na como qual você está escreva mais",
    "it": "il lo la gli le di e che in un una è per con non del della si come qual sono mi questo scrivi più",
    "nl": "de het een en van is in dat op te zijn voor met niet aan er die hoe wat ik je schrijf naar",
    "pl": "i w na z do nie to że się jest jak dla co o po napisz czy jako od przez",
    "tr": "ve bir bu için ile de da ne nasıl mi mı olarak çok en var yaz gibi daha",
    "vi": "và của là có cho một các được trong không những với như này hãy bạn người viết",
    "id": "yang dan di untuk dengan ini itu dari pada adalah apa bagaimana tidak dalam ke sebuah tulis",
    "sv": "och att det som en är på för med av den inte jag hur vad till ett om skriv",
}
_LANGUAGES_BY_WORD: dict[str, list[str]] = {}
for _code, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_BY_WORD.setdefault(_word, []).append(_code)
_WORD_PATTERN = re.compile(r"[^\W\d_]+")


def guess_language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's most likely language; None for code, numbers and too short texts."""
    sample = text[:_MAX_CHARACTERS]
    counts = {
        code: len(pattern.findall(sample)) * _CHARACTERS_PER_WORD.get(code, 1)
        for code, pattern in _SCRIPT_PATTERNS.items()
    }
    if counts["ja"] and counts["zh"]:  # Japanese mixes both scripts
        counts["ja"], counts["zh"] = counts["ja"] + counts["zh"], 0
    script = max(counts, key=lambda code: counts[code])
    if not counts[script]:
        return None
    return _guess_latin(sample) if script == "latin" else script


def _guess_latin(text: str) -> str | None:
    """Return the language of most function words; a word of several languages counts for each of them."""
    scores: Counter[str] = Counter()
    for word in _WORD_PATTERN.findall(text.casefold()):
        for code in _LANGUAGES_BY_WORD.get(word, ()):
            scores[code] += 1
    if not scores:
        return None
    ((code, score), *rest) = scores.most_common(2)
    is_tied = bool(rest) and rest[0][1] == score
    return None if score < _MIN_WORDS or is_tied else code
