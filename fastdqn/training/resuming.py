"""A training that goes on in the middle: what its loop consists of, and how it is taken up."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

from fastdqn.execution.step import Progress
from fastdqn.foundation.state import PartState
from fastdqn.training.callbacks import Callback
from fastdqn.training.events import BestPolicy
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.nonfinite import NonFiniteReports
from fastdqn.training.saved_state import (
    best_values,
    finite_or_none,
    optional_number,
    read_best,
)
from fastdqn.training.stopwatch import ACTIVITIES, Stopwatch
from fastdqn.training.tensor.rollout import TensorRollout

__all__ = ["Resumable"]

STATUSES = ("running", "completed", "solved", "stopped")
WATCHED = (*ACTIVITIES, "compile", "evaluate")


class Resumable(ABC):
    """State of a `fastdqn.training.trainer.Trainer`, between two of its vector steps.

    A schedule depends on counts alone, and on the total of the training where it falls until the
    end. Where a training goes on with another total, its schedules go on as those of a training
    that had this total from the start: at each count the value is the new schedule's.
    """

    rollout: HostRollout | TensorRollout
    until: int
    started: float
    best: BestPolicy | None
    stop_at_return: float | None
    status: str
    startup_s: float
    peak_sps: float
    returns: deque[float]
    solved_train_s: float | None
    solved_total_s: float | None
    worker_restarts: int
    nonfinite: NonFiniteReports
    watch: Stopwatch
    callback: Callback
    _reported_steps: list[Progress]
    _first_update: tuple[int, float] | None
    _begun_at: int
    _reported: tuple[int, float]
    _seen_restarts: int
    _evaluation_due = False
    """Whether one was stopped that the loop would have played."""
    _rollout_state: PartState | None = None

    @property
    def begun(self) -> bool:
        """Whether the environments are running."""
        return self.startup_s > 0.0

    def state(self) -> PartState:
        """Return the values of the loop; the parts that it drives have states of their own."""
        first = self._first_update
        values: dict[str, Any] = {
            "status": self.status,
            "until": self.until,
            "begun_at": self._begun_at,
            "wall_s": time.perf_counter() - self.started,
            "returns": [finite_or_none(return_) for return_ in self.returns],
            "solved_train_s": self.solved_train_s,
            "solved_total_s": self.solved_total_s,
            "peak_sps": finite_or_none(self.peak_sps),
            "worker_restarts": self.worker_restarts,
            "seconds": dict(self.watch.seconds),
            "reported": _values(self._reported),
            "first_update": None if first is None else _values(first),
            "evaluation_due": self._evaluation_due,
            "best": best_values(self.best),
        }
        return PartState(values).with_parts({"nonfinite": self.nonfinite.state(self.rollout)})

    def restore(self, state: PartState, rollout: PartState | None = None) -> None:
        """Go on from the state of a trainer, once the parts that it drives are restored.

        `until` stays what this trainer was built with, and so do schedules and intervals.

        Args:
            state: From `state`.
            rollout: That of environments on the host, for `resume`; None for tensor environments,
                which are restored already.

        Raises:
            CheckpointError: Names a value that cannot be.
        """
        env_steps = self.rollout.env_steps
        status = state.text("status")
        if status not in STATUSES:
            raise state.refusal("status", f"{status[:20]!r}, none of {', '.join(STATUSES)}")
        begun_at, wall_s = state.whole("begun_at", 0, env_steps), state.number("wall_s")
        returns, restarts = state.numbers("returns", 100), state.whole("worker_restarts")
        solved = [optional_number(state, f"solved_{name}_s") for name in ("train", "total")]
        watched = state.part("seconds")
        seconds = {name: watched.number(name) for name in WATCHED}
        reported = _moment(state.part("reported"))
        updating = state.values.get("first_update") is not None
        first = _moment(state.part("first_update")) if updating else None
        due, best, peak = state.flag("evaluation_due"), read_best(state), state.number("peak_sps")
        self.nonfinite.restore(state.part("nonfinite"))
        self.status = "solved" if status == "solved" and self.stop_at_return else "running"
        self._begun_at, self.returns = begun_at, deque(returns, maxlen=100)
        self.started = time.perf_counter() - wall_s
        self.solved_train_s, self.solved_total_s = solved
        self.worker_restarts, self.peak_sps = restarts, 0.0 if math.isnan(peak) else peak
        self.watch.go_on_from(seconds)
        self._reported, self._first_update = reported, first
        self._evaluation_due, self.best = due, best
        self._rollout_state = rollout

    def resume(self) -> None:
        """Let the environments go on where they were, in place of `begin`."""
        began = time.perf_counter()
        if isinstance(self.rollout, HostRollout):
            self._resume_on_host(self.rollout)
        self._seen_restarts = self.rollout.num_restarts
        self.startup_s = max(time.perf_counter() - began, 1e-9)
        self.watch.go_on_from({})
        self._reported_steps = [step for step in self._steps() if step.ready_after_s is not None]

    def _take_up(self) -> None:
        """Play an evaluation that was stopped; take no step where the end is reached already."""
        if self._evaluation_due and self.status == "running":
            self._evaluate()
        if self.status == "running" and self.rollout.env_steps >= self.until:
            self.status = "completed"

    def _resume_on_host(self, rollout: Any) -> None:
        state = self._rollout_state
        assert state is not None
        for name in ("env_steps", "episodes"):  # of which updates, schedules and numbers follow
            count = getattr(rollout, name)
            state.whole(name, count, count)
        rollout.restore(state)
        if rollout.lost:
            self.callback.on_lost_episodes(rollout.env_steps, rollout.lost)

    @property
    def overall_sps(self) -> float:
        """Env steps per training second of the whole call, before the first update, too."""
        train_s = self.watch.train_s
        return (self.rollout.env_steps - self._begun_at) / train_s if train_s > 0 else math.nan

    @property
    def train_sps(self) -> float:
        """Env steps per training second, from the first update on; NaN before it."""
        if self._first_update is None:
            return math.nan
        env_steps, train_s = self._first_update
        elapsed = self.watch.train_s - train_s
        return (self.rollout.env_steps - env_steps) / elapsed if elapsed > 0 else math.nan

    @abstractmethod
    def _steps(self) -> Sequence[Progress]:
        """Return the steps that may be compiled while the training runs."""

    @abstractmethod
    def _evaluate(self) -> None:
        """Evaluate the policy, which may end the run; a stop leaves it without a result."""


def _values(moment: tuple[int, float]) -> dict[str, float]:
    return {"env_steps": moment[0], "train_s": moment[1]}


def _moment(state: PartState) -> tuple[int, float]:
    return state.whole("env_steps"), state.number("train_s")
