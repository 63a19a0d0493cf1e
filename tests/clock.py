"""A clock that the test moves."""

from __future__ import annotations

__all__ = ["Clock"]


class Clock:
    """Stands in for a clock of `time`; shows what it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
