"""Training callbacks: the base class, and a list of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fastdqn.errors import UsageError
from fastdqn.training.events import Episode, Evaluation, Report

__all__ = ["Callback", "CallbackList", "refuse_callback"]


class Callback:
    """Receives the events of a training and ignores them; subclasses override some methods."""

    def on_episodes(self, episodes: Sequence[Episode]) -> None:
        """Called with the episodes that ended in the last vector step."""

    def on_report(self, report: Report) -> None:
        """Called with a periodic report."""

    def on_evaluation(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Called with the result of a greedy evaluation, before the training goes on.

        Args:
            env_steps: Env steps of the run; the policy is that of this moment.
            evaluation: Returns and lengths: of a screening of 5 or 20 episodes, or of a full
                evaluation, if one followed. Its `best` says that this policy is the best so far.
            reached: Whether the mean of a full evaluation reached `stop_at_return`.
        """

    def on_no_evaluations(self, reason: str) -> None:
        """Called once if there are no evaluations, or no more of them, that were not asked for.

        Args:
            reason: Why fresh environments cannot be built, or what they raised.
        """

    def on_evaluation_progress(self, done: int, episodes: int, steps: int) -> None:
        """Called every few seconds of an evaluation: episodes done, all episodes, env steps."""

    def on_checkpoint(self, trainer: Any) -> None:
        """Called when a checkpoint is due; a run makes it by itself. `trainer.rollout` counts."""

    def on_restart(self, env_steps: int, message: str) -> None:
        """Called when a worker was restarted, with the reason."""

    def on_lost_episodes(self, env_steps: int, lost: Mapping[int, str]) -> None:
        """Called when a resumed training could not take up all open episodes.

        Args:
            env_steps: Env steps of the run.
            lost: Environments that begin new episodes, and why.
        """

    def on_returns_beyond(self, env_steps: int, message: str) -> None:
        """Called when a return is the first one outside of what the objective can represent."""

    def on_nonfinite(self, env_steps: int, message: str) -> None:
        """Called after a report if numbers that are not finite were skipped or replaced before it.

        Args:
            env_steps: Env steps of the run.
            message: How many steps of environments and updates, and what the first of them was.
        """

    def on_compiled(self, env_steps: int, message: str) -> None:
        """Called when the updates run compiled from now on, or why they will not."""


EVENTS = [name for name in vars(Callback) if name.startswith("on_")]


class CallbackList(Callback):
    """Calls several callbacks in order."""

    def __init__(self, *callbacks: Callback) -> None:
        for event in EVENTS:
            setattr(self, event, partial(self._call, [getattr(each, event) for each in callbacks]))

    @staticmethod
    def _call(methods: Sequence[Callable[..., None]], *arguments: object) -> None:
        for method in methods:
            method(*arguments)


def refuse_callback(callback: object) -> None:
    """Refuse what is no Callback, or has a method that no training would call.

    Raises:
        UsageError: Names the class or the method, and the methods that there are.
    """
    known = ", ".join(EVENTS)
    if isinstance(callback, type) and issubclass(callback, Callback):
        name = callback.__name__
        raise UsageError(f"callback {name}", "it is a class, not an object", f"Pass {name}().")
    if not isinstance(callback, Callback):
        raise UsageError(
            f"callback of {type(callback)}",
            "it is no fastdqn.training.callbacks.Callback",
            f"Derive its class from that one, with methods named among {known}.",
        )
    odd = {name for name in dir(callback) if name.startswith("on_")}.difference(EVENTS)
    for name in sorted(odd):
        if callable(getattr(callback, name)):
            raise UsageError(
                f"callback {type(callback).__name__} with a method {name}",
                "a training calls no such method",
                f"Name it one of {known}, or let its name begin otherwise.",
            )
