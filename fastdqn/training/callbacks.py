"""What is told how a training goes: one protocol, one that ignores it, and several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastdqn.training.evaluation import Evaluation
from fastdqn.training.events import Episode, Report

__all__ = ["Callback", "CallbackList", "NullCallback"]


class Callback(Protocol):
    """Whoever wants to know how the training goes."""

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        """Take the episodes that ended in the last vector step."""

    def on_report(self, report: Report) -> None:
        """Take a periodic report."""

    def on_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Take the result of a greedy evaluation."""

    def on_evaluation_progress(self, done: int, episodes: int, steps: int) -> None:
        """Hear, every few seconds, how far an evaluation has come: episodes, env steps played."""

    def on_checkpoint(self, trainer: Any) -> None:
        """Save the policy, at a checkpoint interval."""

    def on_restart(self, env_steps: int, message: str) -> None:
        """Hear that a worker was restarted, and why."""

    def on_compiled(self, env_steps: int, message: str) -> None:
        """Hear that the updates run compiled from now on, or that they will not."""


class NullCallback:
    """Sees everything and tells nobody."""

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        """Ignore them."""

    def on_report(self, report: Report) -> None:
        """Ignore it."""

    def on_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Ignore it."""

    def on_evaluation_progress(self, done: int, episodes: int, steps: int) -> None:
        """Ignore it."""

    def on_checkpoint(self, trainer: Any) -> None:
        """Ignore it."""

    def on_restart(self, env_steps: int, message: str) -> None:
        """Ignore it."""

    def on_compiled(self, env_steps: int, message: str) -> None:
        """Ignore it."""


class CallbackList:
    """Tells everything to several witnesses, in the order given."""

    def __init__(self, *members: Callback) -> None:
        self.members = members

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        """Pass them on."""
        for member in self.members:
            member.on_episodes(episodes)

    def on_report(self, report: Report) -> None:
        """Pass it on."""
        for member in self.members:
            member.on_report(report)

    def on_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Pass it on."""
        for member in self.members:
            member.on_evaluation(env_steps, evaluation, reached)

    def on_evaluation_progress(self, done: int, episodes: int, steps: int) -> None:
        """Pass it on."""
        for member in self.members:
            member.on_evaluation_progress(done, episodes, steps)

    def on_checkpoint(self, trainer: Any) -> None:
        """Pass it on."""
        for member in self.members:
            member.on_checkpoint(trainer)

    def on_restart(self, env_steps: int, message: str) -> None:
        """Pass it on."""
        for member in self.members:
            member.on_restart(env_steps, message)

    def on_compiled(self, env_steps: int, message: str) -> None:
        """Pass it on."""
        for member in self.members:
            member.on_compiled(env_steps, message)
