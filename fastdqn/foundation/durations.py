"""Times as they are typed: 90s, 10m, 1h."""

from __future__ import annotations

import re

__all__ = ["seconds_of"]

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float | None:
    """Return the seconds of a time as 90s, 1.5m or 1h; None where it is none, or is 0."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smh])", text, re.ASCII)
    return float(found[1]) * UNITS_S[found[2]] or None if found else None
