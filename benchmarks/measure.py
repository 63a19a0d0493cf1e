"""How things are timed: in turns, so that what else the machine does falls on all alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import gymnasium as gym
import torch

from fastdqn.device import synchronize

__all__ = ["Effort", "Lap", "Timer", "bare_timer", "interleave", "medians", "rate_of", "repeat"]

Timer = Callable[[float], float]
"""Runs for so many seconds and returns a rate per second."""
Lap = dict[str, float]
"""Rates by name, timed in one round."""


@dataclass(frozen=True)
class Effort:
    """How long a comparison takes.

    Attributes:
        rounds: Rounds in which everything is timed once, in turn.
        seconds: Seconds of each timing.
    """

    rounds: int
    seconds: float

    @property
    def small(self) -> Effort:
        """Many short rounds, for what takes microseconds and needs no second to settle."""
        return Effort(3 * self.rounds, self.seconds / 20)

    @property
    def doubled(self) -> Effort:
        """Twice as many rounds."""
        return Effort(2 * self.rounds, self.seconds)


def interleave(timers: Mapping[str, Timer], effort: Effort, told: str) -> list[Lap]:
    """Time everything once per round, every other round backwards.

    Args:
        timers: By name, built and warmed up.
        effort: Rounds and seconds.
        told: What is timed, for the line of progress on stderr.

    Returns:
        A lap for each round.
    """
    laps = []
    names = list(timers)
    for number in range(effort.rounds):
        order = names if number % 2 == 0 else names[::-1]
        timed = {name: timers[name](effort.seconds) for name in order}
        laps.append({name: timed[name] for name in names})
    sys.stderr.write(f"{told}: {effort.rounds} rounds of {effort.seconds:g} s\n")
    return laps


def medians(laps: list[Lap]) -> Lap:
    """Return the median rate of each name."""
    return {name: statistics.median(lap[name] for lap in laps) for name in laps[0]}


def rate_of(call: Callable[[], object], device: torch.device, counts: int = 1) -> Timer:
    """Return the timer of a call that counts for `counts`; the device has done all of it."""

    def run_for(seconds: float) -> float:
        calls = 0

        def counted() -> None:
            nonlocal calls
            calls += 1
            call()

        synchronize(device)
        start = time.perf_counter()
        repeat(counted, seconds)
        synchronize(device)
        return calls * counts / (time.perf_counter() - start)

    return run_for


def bare_timer(env_id: str, stack: ExitStack) -> Timer:
    """Time one process that steps one environment at random; resets take time, count nothing."""
    env = gym.make(env_id, disable_env_checker=True)
    stack.callback(env.close)
    actions = env.action_space.n  # type: ignore[attr-defined]
    choices = torch.randint(int(actions), (1024,)).tolist()
    env.reset(seed=0)

    def steps() -> None:
        for action in choices[:100]:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return rate_of(steps, torch.device("cpu"), counts=100)


def repeat(call: Callable[[], object], seconds: float) -> float:
    """Call again and again until the time is over; return the seconds that it took."""
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        call()
    return elapsed
