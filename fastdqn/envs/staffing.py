"""Who steps the environments: worker processes, the caller's own process, or both."""

from __future__ import annotations

from dataclasses import dataclass

from fastdqn.device import available_cores

__all__ = ["Staff", "choose_staff"]

WAKE_UP_S = 60e-6
"""What waking the workers and being woken costs per vector step, in a quiet moment."""
CLEARLY = 0.8
"""Workers must need less than this part of the time that one process needs."""


@dataclass(frozen=True)
class Staff:
    """How the environments are dealt out.

    Attributes:
        processes: Worker processes.
        caller: Whether the caller's process takes a share as well.
    """

    processes: int
    caller: bool

    @property
    def shares(self) -> int:
        """Parts of about the same number of environments."""
        return self.processes + self.caller


def choose_staff(asked: int | None, num_envs: int, step_s: float | None) -> Staff:
    """Choose who steps the environments.

    Whoever calls `step` has nothing else to do until it returns: where nobody asks for a number
    of workers, the caller takes a share, which spares a process to wake. Slow environments go to
    workers alone, since nothing can interrupt the caller's own.

    Args:
        asked: Worker processes that the caller wants, 0 is none; None is a choice.
        num_envs: Environments that step together.
        step_s: Measured seconds of one step; None where environments are slow or unknown.
    """
    if asked is not None:
        return Staff(min(asked, num_envs), caller=asked == 0)
    shares = min(available_cores(), num_envs)
    if step_s is None:
        return Staff(shares, caller=False)
    alone_s = num_envs * step_s
    together_s = -(-num_envs // shares) * step_s + WAKE_UP_S
    return Staff(shares - 1 if together_s < CLEARLY * alone_s else 0, caller=True)
