"""Numbers, percents, durations, dates and intervals as text, for the report, plans and the labelers' site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

NO_VALUE = "–"
_SI_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


class _Estimate(Protocol):
    """A value with the ends of its interval, as `statistics.intervals.Estimate`."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


# --- numbers ---------------------------------------------------------------------------------------------------------


def percent(value: float | None, digits: int = 1) -> str:
    """Format 0.726 as `72.6 %`, -0.05 as `−5.0 %`."""
    return NO_VALUE if value is None or math.isnan(value) else f"{decimal(100 * value, digits)} %"


def decimal(value: float | None, digits: int = 2) -> str:
    """Format -1234.5 as `−1 234.50`."""
    if value is None or math.isnan(value):
        return NO_VALUE
    return f"{value:z,.{digits}f}".replace(",", " ").replace("-", "−")


def format_p_value(p: float | None) -> str:
    return NO_VALUE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def format_short_number(value: float) -> str:
    """Format with about three digits."""
    magnitude = abs(value)
    if magnitude >= 100_000 or (0 < magnitude < 0.001):
        return f"{value:.2g}"
    if magnitude >= 100:
        return f"{value:,.0f}"
    digits = 1 if magnitude >= 10 else 2 if magnitude >= 0.1 else 3
    return f"{value:.{digits}f}"


def format_large_count(count: float | None) -> str:
    """Format 478,752 as `479 thousand` and 1,300,000 as `1.3 million`."""
    if count is None or not math.isfinite(count):
        return NO_VALUE
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if abs(count) >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:.0f}"


def format_si(number: float, unit: str = "") -> str:
    """Format with three digits and an SI prefix: `1.3 GB`."""
    step = 0
    while abs(number) >= 999.5 and step < len(_SI_PREFIXES) - 1:
        number /= 1000
        step += 1
    return f"{number:.3g} {_SI_PREFIXES[step]}{unit}".strip()


# --- intervals -------------------------------------------------------------------------------------------------------


def percent_interval(estimate: _Estimate | None) -> str:
    """Format a share as `72.6 % [71.1, 74.1]`."""
    if estimate is None or estimate.value is None:
        return NO_VALUE
    if estimate.low is None or estimate.high is None:
        return percent(estimate.value)
    return f"{percent(estimate.value)} [{decimal(100 * estimate.low, 1)}, {decimal(100 * estimate.high, 1)}]"


def decimal_interval(estimate: _Estimate | None, digits: int = 2) -> str:
    """Format a number as `4.21 [4.02, 4.40]`, a bound without a number as `≥ 4.02` or `≤ 4.40`."""
    if estimate is None:
        return NO_VALUE
    if estimate.value is None:
        bounds = [(sign, end) for sign, end in (("≥", estimate.low), ("≤", estimate.high)) if end is not None]
        return " ".join(f"{sign} {decimal(end, digits)}" for sign, end in bounds) or NO_VALUE
    if estimate.low is None or estimate.high is None:
        return decimal(estimate.value, digits)
    return f"{decimal(estimate.value, digits)} [{decimal(estimate.low, digits)}, {decimal(estimate.high, digits)}]"


# --- durations and dates ---------------------------------------------------------------------------------------------


def format_seconds(seconds: float) -> str:
    """Format a duration in one unit, from ms to days, with three digits."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def format_training_time(seconds: float) -> str:
    """Format a duration as `75 s`, `13 min` or `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def hours(ms: float) -> str:
    """Format milliseconds as hours and minutes: `3:20`."""
    minutes = round(ms / 60_000)
    return f"{minutes // 60}:{minutes % 60:02}"


def date(ms: int | float | None) -> str:
    """Format milliseconds since the epoch as a day, UTC."""
    return NO_VALUE if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


def date_time(ms: int | float | None) -> str:
    """Format milliseconds since the epoch as a minute, UTC."""
    return NO_VALUE if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


# --- text ------------------------------------------------------------------------------------------------------------


def escape_control_chars(text: str) -> str:
    """Replace control characters by their Unicode pictures, and lone surrogates by question marks."""
    pictures = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
    return text.encode("utf-8", "replace").decode("utf-8").translate(pictures)


def format_left_out(left_out: Mapping[str, int], context: int) -> str:
    """Return what was left out of a stage's data and why, for the error that nothing remains."""
    counts = ", ".join(f"{name}: {count}" for name, count in left_out.items() if count)
    return f"left out, with a context of {context} tokens: {counts or 'nothing'}"
