"""What a loop needs of whatever moves environments on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Rollout"]


class Rollout(Protocol):
    """Whatever moves environments on and counts what they do: a rollout."""

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
        """What befell them, the newest last."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Start new episodes everywhere."""
