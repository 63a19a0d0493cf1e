"""How many worker processes step the environments."""

from __future__ import annotations

from fastdqn.device import available_cores

__all__ = ["choose_workers"]

WAKE_UP_S = 60e-6
"""What waking the workers and being woken costs per vector step, in a quiet moment."""
CLEARLY = 0.8
"""Workers must need less than this part of the time that one process needs."""


def choose_workers(asked: int | None, num_envs: int, step_s: float | None) -> int:
    """Return the number of worker processes; 0 is to step in the caller's own process.

    Args:
        asked: What the caller wants, or None for a choice.
        num_envs: Environments that step together.
        step_s: Measured seconds of one step; None where environments are slow or unknown.
    """
    if asked is not None:
        return min(asked, num_envs)
    workers = min(available_cores(), num_envs)
    if step_s is None:
        return workers
    alone_s = num_envs * step_s
    together_s = -(-num_envs // workers) * step_s + WAKE_UP_S
    return workers if together_s < CLEARLY * alone_s else 0
