"""Who is told how a training goes: one protocol, and nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastdqn.evaluation import Evaluation
from fastdqn.report import Episode, Report

__all__ = ["NullWitness", "Witness"]


class Witness(Protocol):
    """Whoever wants to know how the training goes."""

    def saw_episodes(self, episodes: Sequence[Episode]) -> None:
        """Take the episodes that ended in the last vector step."""

    def saw_report(self, report: Report) -> None:
        """Take a periodic report."""

    def saw_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Take the result of a greedy evaluation."""

    def saw_checkpoint(self, trainer: Any) -> None:
        """Save the policy, at a checkpoint interval."""

    def saw_restart(self, env_steps: int, told: str) -> None:
        """Hear that a worker was restarted, and why."""

    def saw_compiled(self, env_steps: int, told: str) -> None:
        """Hear that the updates run compiled from now on, or that they will not."""


class NullWitness:
    """Sees everything and tells nobody."""

    def saw_episodes(self, episodes: Sequence[Episode]) -> None:
        """Ignore them."""

    def saw_report(self, report: Report) -> None:
        """Ignore it."""

    def saw_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Ignore it."""

    def saw_checkpoint(self, trainer: Any) -> None:
        """Ignore it."""

    def saw_restart(self, env_steps: int, told: str) -> None:
        """Ignore it."""

    def saw_compiled(self, env_steps: int, told: str) -> None:
        """Ignore it."""
