"""What prioritized replay and n-step returns add to an update in C, over a ring of a million rows.

Each call writes a vector step, so that new rows get a priority, and makes the updates that are due
then at a replay ratio of 1/4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.guards import Measured, Selection, slower
from benchmarks.measure import Effort, interleave, medians, rate_of
from benchmarks.random_replay import random_replay, random_step
from benchmarks.update_modes import learner_of
from fastdqn.replay import PrioritizedSampler, Sampler, UniformSampler

__all__ = ["BATCH", "HIDDEN", "ROWS", "UPDATES", "ReplayOptionsGroup", "call_of", "compared"]

ROWS = 1_000_000
HIDDEN, BATCH, UPDATES = 64, 64, 4
SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "uniform": lambda: UniformSampler(random_replay(capacity=ROWS), BATCH),
    "by priorities": lambda: PrioritizedSampler(random_replay(capacity=ROWS), BATCH),
    "over 3 steps": lambda: UniformSampler(random_replay(capacity=ROWS, n_step=3), BATCH),
}
GOALS = {"by priorities": 1.35, "over 3 steps": 1.1}
"""Option -> what its update may take, as a multiple of the uniform one over single steps."""


def call_of(sampler: Sampler, **options: Any) -> Callable[[], None]:
    """Return a call that writes a vector step and makes updates in C; options are of `MLP`."""
    learner = learner_of("native", HIDDEN, torch.device("cpu"), **options)
    replay = sampler.buffer
    steps, turn = [random_step() for _ in range(64)], 0

    def call() -> None:
        nonlocal turn
        turn += 1
        replay.write(*steps[turn % len(steps)])
        learner.learn(sampler, UPDATES)

    for _ in range(1_000):  # so that priorities differ
        call()
    return call


def compared(
    title: str,
    effort: Effort,
    calls: Mapping[str, Callable[[], None]],
    goals: Mapping[str, float | None],
    name_of: Callable[[str], str],
) -> Measured:
    """Time calls that make `UPDATES` updates each, beside the first of them.

    Args:
        title: What differs between them.
        effort: How long to measure.
        calls: By name.
        goals: Name -> what an update may take, as a multiple of one of the first call.
        name_of: From the name of a call to that of its ratio.
    """
    device = torch.device("cpu")
    timers = {name: rate_of(call, device, UPDATES) for name, call in calls.items()}
    rounds = interleave(timers, effort.small, title)
    base = next(iter(calls))
    guards = [slower(name_of(name), rounds, name, base, goal) for name, goal in goals.items()]
    rates = medians(rounds)
    rows = [f"| {name} | {1e6 / rate:,.1f} |" for name, rate in rates.items()]
    table = "\n".join(["| update in C | us |", "|---|---|", *rows])
    text = f"### {title.capitalize()}, a ring of {ROWS:,} transitions, batch {BATCH}\n\n{table}"
    return Measured(title, text, guards, {"rates": rates})


@dataclass(frozen=True)
class ReplayOptionsGroup:
    """Updates in C on the CPU."""

    def ratios(self) -> list[str]:
        """Return the names of the ratios that it may measure here."""
        return list(map(_name, GOALS))

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time what the selected ratios need."""
        options = [option for option in GOALS if selection.takes(_name(option))]
        calls = {name: call_of(SAMPLERS[name]()) for name in ("uniform", *options)}
        goals = {option: GOALS[option] for option in options}
        return compared("replay options", effort, calls, goals, _name)


def _name(option: str) -> str:
    return f"update {option} / uniform, native {HIDDEN}-{HIDDEN} b{BATCH}"
