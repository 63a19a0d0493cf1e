"""Schedules of exploration and learning rate, intervals, and the account of the replay ratio.

A schedule is a function of env steps and finished episodes, never of loop iterations, so that it
is the same for one environment and for a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fastdqn.errors import UsageError

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Intervals",
    "Linear",
    "Multiplicative",
    "ReplayRatio",
    "Schedule",
    "crossed",
    "exploration_schedule",
    "learning_rate_schedule",
]


@dataclass(frozen=True)
class Intervals:
    """Intervals of reports, checkpoints and evaluations; env steps, if nothing else is said.

    Attributes:
        report: Between reports.
        checkpoint: Between checkpoints.
        evaluate: Between evaluations; 0 is never.
        target_episodes: Finished episodes between hard copies of the target; 0 is never.
        checkpoint_s: Seconds between checkpoints, too; looked at with each report.
    """

    report: int
    checkpoint: int
    evaluate: int = 0
    target_episodes: int = 0
    checkpoint_s: float = math.inf


class Schedule(Protocol):
    """A value that depends on the env steps and episodes of the run."""

    def __call__(self, env_steps: int, episodes: int) -> float:
        """Return the value after `env_steps` transitions and `episodes` episodes."""


@dataclass(frozen=True)
class Constant:
    """A constant; 0 is greedy from the start.

    Args:
        value: The value.
    """

    value: float

    def __call__(self, env_steps: int, episodes: int) -> float:  # noqa: ARG002
        """Return the value; both counts are ignored."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` to `end`, then `end`.

    Args:
        start: Value at step 0.
        end: Value from `duration` on.
        duration: Length of the slope, env steps, > 0.

    Source:
        Mnih et al. (2015), Human-level control through deep reinforcement learning,
        Nature 518, extended data table 1.
    """

    start: float
    end: float
    duration: int

    def __post_init__(self) -> None:
        _refuse_unless_positive("duration", self.duration)

    def __call__(self, env_steps: int, episodes: int) -> float:  # noqa: ARG002
        """Return the value at `env_steps`; `episodes` is ignored."""
        fraction = min(max(env_steps / self.duration, 0.0), 1.0)
        return self.start + (self.end - self.start) * fraction


@dataclass(frozen=True)
class Cosine:
    """Half a cosine wave from `start` to `end`, then `end`.

        value = end + (start - end) (1 + cos(pi env_steps / duration)) / 2

    Args:
        start: Value at step 0.
        end: Value from `duration` on.
        duration: Length of the slope, env steps, > 0.

    Source:
        Loshchilov, Hutter (2017), SGDR: Stochastic gradient descent with warm restarts,
        arXiv:1608.03983, equation 5, without restarts.
    """

    start: float
    end: float
    duration: int

    def __post_init__(self) -> None:
        _refuse_unless_positive("duration", self.duration)

    def __call__(self, env_steps: int, episodes: int) -> float:  # noqa: ARG002
        """Return the value at `env_steps`; `episodes` is ignored."""
        fraction = min(max(env_steps / self.duration, 0.0), 1.0)
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * fraction)) / 2.0


@dataclass(frozen=True)
class Exponential:
    """An exponential decay towards `end`.

        value = end + (start - end) exp(-env_steps / decay)

    Args:
        start: Value at step 0.
        end: Value approached, never crossed.
        decay: Env steps after which 63 % of the difference is gone, > 0.
    """

    start: float
    end: float
    decay: float

    def __post_init__(self) -> None:
        _refuse_unless_positive("decay", self.decay)

    def __call__(self, env_steps: int, episodes: int) -> float:  # noqa: ARG002
        """Return the value at `env_steps`; `episodes` is ignored."""
        return self.end + (self.start - self.end) * math.exp(-max(env_steps, 0) / self.decay)


@dataclass(frozen=True)
class Multiplicative:
    """A factor per finished episode, down to `end`.

        value = max(end, start * factor ** episodes)

    Args:
        start: Value before the first episode ends.
        end: Floor.
        factor: Multiplier per episode, in (0, 1].
    """

    start: float
    end: float
    factor: float

    def __post_init__(self) -> None:
        if not 0.0 < self.factor <= 1.0:
            raise UsageError(f"factor {self.factor}", "it must lie in (0, 1]", "Try 0.995.")

    def __call__(self, env_steps: int, episodes: int) -> float:  # noqa: ARG002
        """Return the value after `episodes`; `env_steps` is ignored."""
        return max(self.end, self.start * self.factor**episodes)


def exploration_schedule(
    name: str, start: float, end: float, decay_steps: int, decay_factor: float
) -> Schedule:
    """Return the schedule of exploration that `--epsilon-schedule` names.

    Args:
        name: `exponential`, `linear`, `multiplicative` or `constant`.
        start: Value at first.
        end: Value in the end; a constant has none.
        decay_steps: Env steps: time constant of the exponential, length of the linear one.
        decay_factor: Factor per episode of the multiplicative one.
    """
    schedules: dict[str, Callable[[], Schedule]] = {
        "exponential": lambda: Exponential(start, end, decay_steps),
        "linear": lambda: Linear(start, end, decay_steps),
        "multiplicative": lambda: Multiplicative(start, end, decay_factor),
        "constant": lambda: Constant(start),
    }
    return schedules[name]()


def learning_rate_schedule(name: str, start: float, end: float, duration: int) -> Schedule | None:
    """Return the schedule of the step size that `--lr-schedule` names; None leaves it as it is.

    Args:
        name: `constant`, `linear` or `cosine`.
        start: Value at step 0.
        end: Value from `duration` on; a constant has none.
        duration: Env steps of the training.
    """
    if name == "constant":
        return None
    schedules: dict[str, Callable[[], Schedule]] = {
        "linear": lambda: Linear(start, end, duration),
        "cosine": lambda: Cosine(start, end, duration),
    }
    return schedules[name]()


class ReplayRatio:
    """Counts how many updates are due, so that updates per env step stay exact.

        due = floor(ratio * (env_steps - start)) - (updates - earlier)

    The result depends on these counts only: not on the number of environments, the batch size or
    the number of calls. Env steps before `start` make no update due, so there is no burst.

    Args:
        ratio: Updates per env step, >= 0.
        start: Env steps before the first update is due.

    Attributes:
        updates: Optimizer steps so far, those of an earlier training that this one continues
            included.
        earlier: Those of the earlier training; its env steps make no update due.

    Raises:
        UsageError: The ratio is negative or not finite.
    """

    def __init__(self, ratio: float, start: int = 0) -> None:
        if not (math.isfinite(ratio) and ratio >= 0):
            raise UsageError(f"replay ratio {ratio}", "it must be finite and >= 0", "Try 0.25.")
        self.ratio = ratio
        self.start = start
        self.updates = self.earlier = 0

    def go_on_from(self, env_steps: int, updates: int) -> None:
        """Continue after a training of so many env steps and updates, with no update due."""
        self.start += env_steps
        self.updates = self.earlier = updates

    def due(self, env_steps: int) -> int:
        """Return the updates due after `env_steps`; never negative."""
        return max(
            0, math.floor(self.ratio * (env_steps - self.start)) - (self.updates - self.earlier)
        )

    def pay(self, updates: int) -> None:
        """Record `updates` optimizer steps as done."""
        self.updates += updates


def crossed(interval: int, before: int, now: int) -> bool:
    """Return whether a multiple of `interval` lies in (before, now]; never for interval 0."""
    return interval > 0 and now // interval > before // interval


def _refuse_unless_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{name} {value}", "it must be positive", "Pass a number of env steps.")
