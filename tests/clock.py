"""A clock that the test moves."""

from __future__ import annotations

__all__ = ["Clock"]


class Clock:
    """Stands in for a clock of `time`; shows the time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
