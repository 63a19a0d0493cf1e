"""What is told how a training goes: one protocol, one that ignores it, and several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastdqn.training.evaluation import Evaluation
from fastdqn.training.events import Episode, Report

__all__ = ["NullWitness", "Witness", "WitnessGroup"]


class Witness(Protocol):
    """Whoever wants to know how the training goes."""

    def saw_episodes(self, episodes: Sequence[Episode]) -> None:
        """Take the episodes that ended in the last vector step."""

    def saw_report(self, report: Report) -> None:
        """Take a periodic report."""

    def saw_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Take the result of a greedy evaluation."""

    def saw_evaluating(self, done: int, episodes: int, steps: int) -> None:
        """Hear, every few seconds, how far an evaluation has come: episodes, env steps played."""

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

    def saw_evaluating(self, done: int, episodes: int, steps: int) -> None:
        """Ignore it."""

    def saw_checkpoint(self, trainer: Any) -> None:
        """Ignore it."""

    def saw_restart(self, env_steps: int, told: str) -> None:
        """Ignore it."""

    def saw_compiled(self, env_steps: int, told: str) -> None:
        """Ignore it."""


class WitnessGroup:
    """Tells everything to several witnesses, in the order given."""

    def __init__(self, *members: Witness) -> None:
        self.members = members

    def saw_episodes(self, episodes: Sequence[Episode]) -> None:
        """Pass them on."""
        for member in self.members:
            member.saw_episodes(episodes)

    def saw_report(self, report: Report) -> None:
        """Pass it on."""
        for member in self.members:
            member.saw_report(report)

    def saw_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Pass it on."""
        for member in self.members:
            member.saw_evaluation(env_steps, evaluation, reached)

    def saw_evaluating(self, done: int, episodes: int, steps: int) -> None:
        """Pass it on."""
        for member in self.members:
            member.saw_evaluating(done, episodes, steps)

    def saw_checkpoint(self, trainer: Any) -> None:
        """Pass it on."""
        for member in self.members:
            member.saw_checkpoint(trainer)

    def saw_restart(self, env_steps: int, told: str) -> None:
        """Pass it on."""
        for member in self.members:
            member.saw_restart(env_steps, told)

    def saw_compiled(self, env_steps: int, told: str) -> None:
        """Pass it on."""
        for member in self.members:
            member.saw_compiled(env_steps, told)
