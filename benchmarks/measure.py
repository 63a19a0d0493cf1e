"""How things are timed: in turns, so that other load on the machine slows all alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import gymnasium as gym
import torch

from fastdqn.device import synchronize

__all__ = [
    "PROBE_S",
    "Effort",
    "Lap",
    "Round",
    "Timer",
    "bare_timer",
    "interleave",
    "medians",
    "rate_of",
    "repeat",
]

Timer = Callable[[float], float]
"""Runs for so many seconds and returns a rate per second."""
Lap = dict[str, float]
"""Rates by name, timed one after the other."""
Round = list[Lap]
"""The laps of one round; a ratio is taken within each lap, and a round's ratio is their median."""


PROBE_S = 1e-4
"""Seconds in which a timer calls once, if a call takes as long, or a few times."""


@dataclass(frozen=True)
class Effort:
    """How long a comparison takes.

    Attributes:
        rounds: Rounds; the spread of a ratio is that between rounds.
        seconds: Seconds of each thing in a round.
        turns: Laps of a round, in which everything is timed once, in turn.
    """

    rounds: int
    seconds: float
    turns: int = 1

    @property
    def small(self) -> Effort:
        """Laps of a few milliseconds, for what takes microseconds and needs not settle.

        What else a machine does comes in bursts: the shorter a lap, the likelier that both sides
        of a ratio meet the same. With laps of 1 ms the median wanders by 1 % where with laps of
        50 ms it wanders by 8 %, in the same time.
        """
        return Effort(2 * self.rounds, self.seconds / 20, 50)

    @property
    def loops(self) -> Effort:
        """Laps of a tenth of a round, for loops, which need some steps to settle."""
        return Effort(self.rounds, self.seconds, 10)

    @property
    def doubled(self) -> Effort:
        """Twice as many rounds."""
        return Effort(2 * self.rounds, self.seconds, self.turns)


def interleave(timers: Mapping[str, Timer], effort: Effort, message: str) -> list[Round]:
    """Time everything once per lap, every other lap backwards.

    All get laps of the same length, long enough for one call of the slowest: on a crowded machine
    a longer lap is interrupted more often, and would seem slower than it is.

    Args:
        timers: By name, built and warmed up.
        effort: Rounds, laps and seconds.
        message: What is timed, for the line of progress on stderr.
    """
    seconds = max(effort.seconds / effort.turns, *map(_one_call_s, timers.values()))
    rounds = [
        [_lap(timers, seconds, backwards=(number + turn) % 2 == 1) for turn in range(effort.turns)]
        for number in range(effort.rounds)
    ]
    laps = f"{effort.turns} x " if effort.turns > 1 else ""
    sys.stderr.write(f"{message}: {effort.rounds} rounds of {laps}{seconds:.3g} s\n")
    return rounds


def _one_call_s(timer: Timer) -> float:
    """Return the seconds that one call takes, or a little more; the best of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        timer(PROBE_S)
        times.append(time.perf_counter() - start)
    return min(times)


def _lap(timers: Mapping[str, Timer], seconds: float, *, backwards: bool) -> Lap:
    names = list(timers)
    timed = {name: timers[name](seconds) for name in (names[::-1] if backwards else names)}
    return {name: timed[name] for name in names}


def medians(rounds: Sequence[Round]) -> Lap:
    """Return the median rate of each name over all laps."""
    laps = [lap for laps in rounds for lap in laps]
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
