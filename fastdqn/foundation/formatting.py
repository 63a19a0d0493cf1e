"""Numbers for people: returns by their magnitude, other figures, spans of time."""

from __future__ import annotations

import math

__all__ = [
    "format_bytes",
    "format_duration",
    "format_figure",
    "format_return",
    "format_spread",
    "format_threshold",
]

PLACES_BELOW = ((1.0, 3), (10.0, 2), (10_000.0, 1), (1e12, 0))
"""(magnitude, places): a number below the magnitude is shown with so many places."""
NEGLIGIBLE = 1e-9
"""Fraction of the number beside it below which a number is only rounding error."""
UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def format_return(value: float, *, beside: float = 0.0, signed: bool = False) -> str:
    """Write a return with significant digits by its magnitude: 0.955, 9.37, 246.4, 12,346.

    Three digits or more; one place once there are two digits before the point, none from 10,000 on.

    Args:
        value: The number; NaN and the infinities are unknown.
        beside: A number of the same unit that is shown with it, such as a deviation beside its
            mean: a value within its rounding error is written as zero.
        signed: Write a plus before numbers that are not negative.

    Returns:
        The text; ``-`` for an unknown number. A zero has no minus.
    """
    if not math.isfinite(value):
        return "-"
    if value == 0.0 or (math.isfinite(beside) and abs(value) <= NEGLIGIBLE * abs(beside)):
        return "+0.0" if signed else "0.0"
    return f"{value:{'+' if signed else ''}{_format_of(abs(value))}}"


def _format_of(magnitude: float) -> str:
    """Return the format of a magnitude after rounding."""
    if round(magnitude, 3) < 0.1:
        return "#.3g"
    for below, places in PLACES_BELOW:
        if round(magnitude, places) < below:
            return f",.{places}f"
    return ".4g"


def format_spread(spread: float, mean: float) -> str:
    """Write a deviation beside its mean: 52.3 beside 246.4, 9.8 beside 310.4, 0.123 beside 0.955.

    It has no more places than the mean, unless fewer than two of its digits were left.

    Args:
        spread: At least 0; NaN and the infinities are unknown.
        mean: The mean that is shown with it.
    """
    own = format_return(spread, beside=mean)
    mean_text = format_return(mean, beside=spread)
    if own in {"-", "0.0"} or "-" in own or "e" in mean_text or mean_text == "-":
        return own
    places, most = (len(text.partition(".")[2]) for text in (mean_text, own))
    for_two_digits = 1 - math.floor(math.log10(spread))
    return f"{spread:,.{min(max(places, for_two_digits), most)}f}"


def format_threshold(value: float) -> str:
    """Write a return that a person has chosen with all of its digits: 200, 0.955."""
    return f"{value + 0.0:,.10g}"


def format_figure(value: float, places: int = 1) -> str:
    """Write a number with commas and fixed places; a figure not known yet is ``-``.

    Args:
        value: The figure; NaN and the infinities are unknown.
        places: Digits after the point. A value too small for them gets three digits instead.
    """
    if not math.isfinite(value):
        return "-"
    lost = places > 1 and 0.0 < abs(value) < 10.0 ** (1 - places)
    return f"{value:.3g}" if lost else f"{round(value, places) + 0.0:,.{places}f}"


def format_duration(seconds: float) -> str:
    """Write a span of time as a clock would: 0:12, 1:02:03, 2d 03:04:05.

    Args:
        seconds: At least 0; rounded to whole seconds. NaN and infinity are unknown spans.

    Returns:
        The text; ``-`` for an unknown span.
    """
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def format_bytes(count: int) -> str:
    """Write bytes with one place: 512 B, 1.5 MiB, 12.3 TiB."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, len(UNITS))
    if round(count / 1024**power, 1) >= 1024:  # 1,024.0 MiB is 1.0 GiB
        power = min(power + 1, len(UNITS))
    return f"{count / 1024**power:,.1f} {UNITS[power - 1]}"
