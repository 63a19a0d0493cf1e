"""Training callbacks: the protocol, one that does nothing, and a list of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastdqn.training.evaluation import Evaluation
from fastdqn.training.events import Episode, Report

__all__ = ["Callback", "CallbackList", "NullCallback"]


class Callback(Protocol):
    """Receives the events of a training."""

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        """Called with the episodes that ended in the last vector step."""

    def on_report(self, report: Report) -> None:
        """Called with a periodic report."""

    def on_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Called with the result of a greedy evaluation."""

    def on_evaluation_progress(self, done: int, episodes: int, steps: int) -> None:
        """Called every few seconds of an evaluation: episodes done, all episodes, env steps."""

    def on_checkpoint(self, trainer: Any) -> None:
        """Called at a checkpoint interval, to save the policy."""

    def on_restart(self, env_steps: int, message: str) -> None:
        """Called when a worker was restarted, with the reason."""

    def on_compiled(self, env_steps: int, message: str) -> None:
        """Called when the updates run compiled from now on, or why they will not."""


class NullCallback:
    """Does nothing."""

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
    """Calls several callbacks in order."""

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
