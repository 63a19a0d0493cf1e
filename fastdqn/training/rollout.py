"""The interface of rollouts that a trainer needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Rollout"]


class Rollout(Protocol):
    """Steps environments and counts their env steps and episodes."""

    @property
    def env_steps(self) -> int:
        """Real transitions so far."""

    @property
    def episodes(self) -> int:
        """Finished episodes so far."""

    @property
    def num_envs(self) -> int:
        """Environments, N."""

    @property
    def num_workers(self) -> int:
        """Processes or threads that step them; 0 is none beside this one."""

    @property
    def num_restarts(self) -> int:
        """Workers that were restarted so far."""

    @property
    def restarts(self) -> Sequence[str]:
        """Why workers were restarted, the newest last."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere."""
