"""How many worker processes step the environments, and how many the caller's own process does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastdqn.device import available_cores
from fastdqn.envs.workers.system_limits import may_be_parent

__all__ = ["Allocation", "allocation_beside_learner", "choose_allocation", "timed_in_turns"]

WAKE_UP_S = 60e-6
"""What waking the workers and being woken costs per vector step, in a quiet moment."""
SIGNALS_S = 20e-6
"""The same where all processes stay awake and the caller only steps, with a margin:
15 us won for eight CartPoles and for two landers, too, on two quiet cores."""
HANDLING_S = 60e-6
"""What the trainer's own part of a vector step costs: choosing actions, writing rows."""
COLD = 1.3
"""Learning takes so many times what it takes in a trial: environments have emptied the caches."""
SPIN_S = 500e-6
"""A few vector steps of quick environments: longer waits are worth a sleep."""
TURNS, ENOUGH_S = 9, 0.1
"""In which stepping and learning are timed before a training: so many, or three and so long."""
CLEARLY = 0.9
"""Workers must need less than this part of the time that one process needs."""


@dataclass(frozen=True)
class Allocation:
    """How the environments are dealt out.

    Attributes:
        processes: Worker processes.
        caller_envs: Environments of each group that the caller's process steps, the last ones.
    """

    processes: int
    caller_envs: int = 0

    @property
    def spin_s(self) -> float:
        """Seconds for which a waiting process may stay awake: 0 with more workers than cores.

        It offers its core to others meanwhile, so the caller needs no core of its own.
        """
        return SPIN_S if self.processes <= available_cores() else 0.0


def choose_allocation(asked: int | None, num_envs: int, step_s: float | None) -> Allocation:
    """Choose how to step the environments of a caller that does nothing else during a step.

    Unless a number of workers is asked for, the caller steps a share, which saves waking one
    process, or steps all where it may start no process. Slow environments go to workers only,
    since a step in the caller cannot be interrupted.

    Args:
        asked: Worker processes; 0 is none, None lets this function choose.
        num_envs: Environments that step together.
        step_s: Measured seconds of one step; None where environments are slow or unknown.
    """
    if asked is not None:
        return Allocation(min(asked, num_envs), 0 if asked else num_envs)
    if not may_be_parent():
        return Allocation(0, num_envs)
    shares = min(available_cores(), num_envs)
    if step_s is None:
        return Allocation(shares)
    alone_s = num_envs * step_s
    together_s = -(-num_envs // shares) * step_s + SIGNALS_S
    if shares == 1 or together_s >= CLEARLY * alone_s:
        return Allocation(0, num_envs)
    return Allocation(shares - 1, num_envs // shares)


def allocation_beside_learner(
    num_envs: int, step_s: float | None, learn_s: float, *, num_groups: int = 1
) -> Allocation:
    """Choose how to step the environments of a caller that learns while the workers step.

    One core is the caller's. Whatever learning leaves of it goes to environments: as many as
    let the caller end together with the workers.

        vector step = max(learn + caller_envs * step, wake-up + envs per worker * step)

    While groups take turns, workers never wait to be woken, nor for what the caller does between
    two steps, which counts as the caller's work then.

    Args:
        num_envs: Environments that step together.
        step_s: Measured seconds of one step; None where they are slow, or are not to be stepped
            in the caller's process.
        learn_s: Seconds of learning per vector step, by itself.
        num_groups: Groups of so many environments that take turns.
    """
    ahead = num_groups > 1
    wake_up_s, busy_s = (0.0, COLD * learn_s + HANDLING_S) if ahead else (WAKE_UP_S, COLD * learn_s)
    workers = available_cores() - 1
    if not workers or not may_be_parent():
        return Allocation(0, num_envs)
    if step_s is None:
        return Allocation(min(workers, num_envs))

    def vector_step_s(caller_envs: int) -> float:
        own_s = busy_s + caller_envs * step_s
        if caller_envs == num_envs:
            return own_s
        return max(own_s, wake_up_s + -(-(num_envs - caller_envs) // workers) * step_s)

    caller_envs = min(range(num_envs + 1), key=vector_step_s)
    return Allocation(min(workers, num_envs - caller_envs), caller_envs)


def timed_in_turns(
    stepping: Callable[[], float | None], learning: Callable[[], float]
) -> tuple[float | None, float]:
    """Time an env step and the learning of a vector step so that they can be compared.

    Shares depend only on their ratio. Other load on the machine may slow one and not the other,
    so they are timed in turns and the median ratio counts.

    Args:
        stepping: Times a step; seconds, or None where environments are slow.
        learning: Times the learning; seconds.

    Returns:
        Seconds of a step, the fewest of all turns, or None; and of learning at that speed.
    """
    turns: list[tuple[float, float]] = []
    until = time.perf_counter() + ENOUGH_S
    while len(turns) < 3 or (len(turns) < TURNS and time.perf_counter() < until):
        step_s = stepping()
        if step_s is None:
            return None, 0.0  # not as quick as it seemed
        turns.append((step_s, learning()))
    step_s = min(step_s for step_s, _ in turns)
    return step_s, statistics.median(learn_s / step_s for step_s, learn_s in turns) * step_s
