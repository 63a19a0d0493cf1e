"""Wall time of the loop by activity, and a timer that is due once per period."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

__all__ = ["ACTIVITIES", "Pace", "Stopwatch"]

ACTIVITIES = ("act", "env_wait", "write", "learn", "other")


class Stopwatch:
    """Adds up wall seconds by activity; each lap ends one activity and begins the next.

    Compiling and evaluating are kept apart: they are not training.

    Attributes:
        seconds: Seconds by activity, those of ACTIVITIES and `compile` and `evaluate`.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*ACTIVITIES, "compile", "evaluate"), 0.0)
        self._last = time.perf_counter()

    def lap(self, activity: str) -> None:
        """Add the time since the previous lap to `activity`."""
        now = time.perf_counter()
        self.seconds[activity] += now - self._last
        self._last = now

    def go_on_from(self, seconds: Mapping[str, float]) -> None:
        """Add to the seconds of an earlier stopwatch; the next lap begins now."""
        self.seconds.update(seconds)
        self._last = time.perf_counter()

    def move(self, seconds: float, source: str, to: str) -> None:
        """Move seconds from one activity to another."""
        self.seconds[source] -= seconds
        self.seconds[to] += seconds

    @property
    def train_s(self) -> float:
        """Seconds of training: all activities, without compiling and evaluating."""
        return sum(self.seconds[activity] for activity in ACTIVITIES)

    def shares(self) -> dict[str, float]:
        """Return each activity's fraction of the training time."""
        total = self.train_s or 1.0
        return {activity: self.seconds[activity] / total for activity in ACTIVITIES}


class Pace:
    """Is due at most once per period.

    Args:
        period_s: Seconds between two times at which it is due.
        clock: Returns monotonic seconds; None is `time.monotonic`.
        at_once: Whether the first call of `due` returns True, or only after a period.
    """

    def __init__(
        self, period_s: float, clock: Callable[[], float] | None = None, *, at_once: bool = True
    ) -> None:
        self._period_s, self._clock = period_s, clock or time.monotonic
        self._next_s = self._clock() + (0.0 if at_once else period_s)

    def due(self) -> bool:
        """Return whether a period has passed since the last call that returned True."""
        now_s = self._clock()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._period_s
        return True
