"""The base of every training loop: when it ends, and what it does by interval.

`host.trainer` and `tensor.trainer` define a vector step, for workers and for tensor environments.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from fastdqn.errors import NonFiniteError
from fastdqn.execution.compile import waits_for_a_compiler
from fastdqn.execution.step import Progress
from fastdqn.learner.learner import Learner
from fastdqn.training.callbacks import Callback
from fastdqn.training.evaluation import EvaluationStopped, Evaluator
from fastdqn.training.events import BestPolicy, Episode, Evaluation, Report
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.nonfinite import NonFiniteReports
from fastdqn.training.resuming import Resumable
from fastdqn.training.saved_state import restore_selection, selection_state
from fastdqn.training.saving import Saving
from fastdqn.training.schedules import Intervals, ReplayRatio, Schedule, crossed
from fastdqn.training.selection import Selection
from fastdqn.training.stopwatch import Pace, Stopwatch
from fastdqn.training.tensor.rollout import TensorRollout
from fastdqn.training.value_range import ValueRange

__all__ = ["Trainer"]


@dataclass(eq=False, repr=False)
class Trainer(Resumable):
    """Trains until `until` env steps, a reached return, or `stop`.

    Args:
        rollout: Environments to rows.
        learner: Rows to weights.
        ratio: Counts the updates that are due.
        epsilon: Exploration over env steps and episodes.
        learning_rate: Step size over the env steps since this trainer was built; None leaves
            `learner.state.learning_rate` as it is.
        until: Env steps at which the run ends by itself.
        intervals: When to report, save and evaluate.
        callback: Called with reports, episodes, evaluations and checkpoints.
        started: `time.perf_counter()` at the start of the command.
        evaluator: Plays greedy episodes; needed with `stop_at_return`.
        must_evaluate: Whether an exception in an evaluation ends the run.
        best: The best policy of an earlier call, to be beaten; or None.
        stop_at_return: Mean return of a full evaluation that ends the run.
        evaluated_at_end: Whether `evaluate_fully` follows a run that ends by itself. Then the
            interval that ends with it has no evaluation of its own, unless that may be a stop.
        value_range: What returns are compared with at reports.
        on_nonfinite: What is done about numbers that are not finite: `raise`, `skip` or `replace`.
        saving: Copies the training between vector steps, while it is saved.

    Attributes:
        status: `running`, then `completed`, `solved` or `stopped`.
        startup_s: Seconds from `started` to the first vector step.
        returns: Of the last 100 finished episodes.
        solved_train_s: Training seconds until `stop_at_return` was reached, or None.
        solved_total_s: Seconds since `started` until then, or None.
        peak_sps: Most env steps per second of a report.
        worker_restarts: Workers of this run that were restarted.
        nonfinite: What was not finite so far.
        selection: The evaluations so far and the best policy; None without an evaluator.
        watch: Seconds by activity.
    """

    rollout: HostRollout | TensorRollout
    learner: Learner
    _: KW_ONLY
    ratio: ReplayRatio
    epsilon: Schedule
    until: int
    intervals: Intervals
    callback: Callback
    started: float
    evaluator: Evaluator | None = None
    must_evaluate: bool = True
    best: BestPolicy | None = None
    stop_at_return: float | None = None
    evaluated_at_end: bool = False
    value_range: ValueRange = field(default_factory=ValueRange)
    on_nonfinite: str = "raise"
    learning_rate: Schedule | None = None
    saving: Saving = field(default_factory=Saving)

    def __post_init__(self) -> None:
        self.status = "running"
        self.startup_s = self.peak_sps = 0.0
        self.returns: deque[float] = deque(maxlen=100)
        self.solved_train_s: float | None = None
        self.solved_total_s: float | None = None
        self.worker_restarts = self._seen_restarts = 0
        self.nonfinite = NonFiniteReports(self.on_nonfinite)
        self.watch = Stopwatch()
        self._reported_steps: list[Progress] = []  # that are reported as compiled, or not
        self._first_update: tuple[int, float] | None = None
        self._begun_at = self.rollout.env_steps
        self._reported = (self._begun_at, 0.0)
        self._saved = Pace(self.intervals.checkpoint_s, at_once=False)
        self.selection: Selection | None = None
        if self.evaluator is not None:
            self.evaluator.stopped = lambda: self.status == "stopped"
            of_run: Any = {"required": self.must_evaluate, "callback": self.callback}
            self.selection = Selection(self.evaluator, self.best, **of_run)

    # The loop

    def run(self, seeds: Sequence[int] | None) -> str:
        """Reset the environments with these seeds, or resume for None, and train; return status."""
        self.resume() if seeds is None else self.begin(seeds)
        self._take_up()
        try:
            while self.status == "running":
                self.vector_step()
            self.saving.keep(self)
            self._end()
        except NonFiniteError:
            self.nonfinite.report(self.rollout, self.callback)
            raise
        return self.status

    def begin(self, seeds: Sequence[int]) -> None:
        """Reset the environments and start the stopwatch."""
        self.nonfinite.begin(self.learner.state, self.rollout)
        self.rollout.reset(seeds)
        self.startup_s = time.perf_counter() - self.started
        self.watch.go_on_from({})
        self._reported_steps = [step for step in self._steps() if step.ready_after_s is not None]

    def _steps(self) -> Sequence[Progress]:
        """Return the steps that may be compiled while the training runs."""
        return self.learner.compiling

    def stop(self) -> None:
        """End the loop after the current vector step; may be called from a signal handler.

        Raises:
            KeyboardInterrupt: The step waits for a compiler, which may take minutes.
        """
        self.status = "stopped"
        if waits_for_a_compiler():
            raise KeyboardInterrupt

    @abstractmethod
    def vector_step(self) -> None:
        """Do one vector step: act, step, write, learn, check intervals."""

    def _end(self) -> None:
        """Make the last report."""
        if self.rollout.env_steps > self._reported[0]:
            report = self.report()
            self.peak_sps = self.peak_sps or report.sps
            self.callback.on_report(report)
        self.nonfinite.report(self.rollout, self.callback)
        self.value_range.report(self.rollout, self.callback, last=True)

    def _anneal(self, env_steps: int) -> None:
        """Write the step size after so many env steps where every update reads it."""
        if self.learning_rate is not None:
            rate = self.learning_rate(env_steps - self._begun_at, self.rollout.episodes)
            self.learner.state.learning_rate.fill_(rate)

    # By interval

    def _look(self, before: int, now: int) -> None:
        reports = crossed(self.intervals.report, before, now)
        if reports:
            report = self.report()
            self.peak_sps = max(self.peak_sps, report.sps)
            self.callback.on_report(report)
            self._report_compiled()
            self.nonfinite.report(self.rollout, self.callback)
            self.value_range.report(self.rollout, self.callback)
        at_end = now >= self.until and self.evaluated_at_end and self.stop_at_return is None
        self._evaluation_due = crossed(self.intervals.evaluate, before, now) and not at_end
        if self._evaluation_due and self.status == "running":
            self._evaluate()
        if crossed(self.intervals.checkpoint, before, now) or (reports and self._saved.due()):
            self.callback.on_checkpoint(self)
        if now >= self.until and self.status == "running":
            self.status = "completed"

    def _report_restarts(self) -> None:
        rollout = self.rollout
        new = rollout.num_restarts - self._seen_restarts
        self._seen_restarts, self.worker_restarts = rollout.num_restarts, self.worker_restarts + new
        if self.status != "stopped":  # by a signal that may have ended the workers first
            for message in rollout.restarts[-new:]:
                self.callback.on_restart(rollout.env_steps, message)

    def _report_compiled(self) -> None:
        """Report once for each step that it is compiled, or why not."""
        for step in self._steps():
            if step in self._reported_steps:
                continue
            message = step.failure and f"not compiled: {step.failure}"
            if step.ready_after_s is not None and not message:
                message = f"compiled after {step.ready_after_s:.0f} s"
            if message:
                self._reported_steps.append(step)
                self.callback.on_compiled(self.rollout.env_steps, message)

    def _count(self, episodes: list[Episode]) -> None:
        last = self.rollout.episodes
        if crossed(self.intervals.target_episodes, last - len(episodes), last):
            self.learner.sync_target()
        self.returns.extend(episode.return_ for episode in episodes)
        self.callback.on_episodes(episodes)

    def _evaluate(self) -> None:
        """Evaluate the policy, which may end the run; a stop leaves it without a result."""
        if self.selection is None or self._first_update is None:
            return
        self.watch.lap("other")
        before = selection_state(self.selection)
        try:
            self._evaluate_by(self.selection)
            self._evaluation_due = False
        except EvaluationStopped:  # a training that goes on from here plays the same episodes
            restore_selection(self.selection, before)
        self.watch.lap("evaluate")

    def _evaluate_by(self, selection: Selection) -> None:
        now, target_return = self.rollout.env_steps, self.stop_at_return
        played = selection.evaluate(now, now - self._begun_at, target_return)
        if played is None:
            return
        evaluation, reached = played
        if reached and self.status == "running":
            self.status = "solved"
            self.solved_train_s = self.watch.train_s
            self.solved_total_s = time.perf_counter() - self.started
        self.callback.on_evaluation(now, evaluation, reached)

    def evaluate_fully(self) -> None:
        """Play a full evaluation outside the loop, e.g. at its end."""
        if self.selection is None:
            return
        self.watch.lap("other")
        evaluation = self.selection.evaluate_last(self.rollout.env_steps)
        self.watch.lap("evaluate")
        if evaluation is not None:
            self.callback.on_evaluation(self.rollout.env_steps, evaluation, False)

    def report(self) -> Report:
        """Read the metrics from the device and return a report.

        Raises:
            NonFiniteError: An update was skipped as not finite, with `raise`; else a thousand in a
                row.
        """
        self.watch.lap("other")
        env_steps, train_s = self.rollout.env_steps, self.watch.train_s
        sps = (env_steps - self._reported[0]) / max(train_s - self._reported[1], 1e-9)
        self._reported = (env_steps, train_s)
        rate = self.learner.state.learning_rate.item()
        loss, _, q_mean, grad_norm = self.learner.state.metrics.tolist()
        self.nonfinite.look_at(self.learner.state, env_steps)
        return Report(
            env_steps=env_steps,
            total_env_steps=self.until,
            updates=self.ratio.updates,
            episodes=self.rollout.episodes,
            sps=sps,
            return_mean_100=self.return_mean_100,
            epsilon=self.epsilon(env_steps, self.rollout.episodes),
            loss=loss,
            q_mean=q_mean,
            grad_norm=grad_norm,
            wall_s=time.perf_counter() - self.started,
            time_left_s=max(self.until - env_steps, 0) / sps if sps else math.nan,
            time_share=self.watch.shares(),
            learning_rate=float(str(np.float32(rate))),  # with the digits that float32 holds
        )

    @property
    def evaluation(self) -> Evaluation | None:
        """The last full evaluation that might have ended the run or was played at its end."""
        return None if self.selection is None else self.selection.last

    @property
    def best_policy(self) -> BestPolicy | None:
        """The full evaluation of the best policy, that of an earlier call included; or None."""
        return self.best if self.selection is None else self.selection.best

    @property
    def return_mean_100(self) -> float:
        """Mean return of the last 100 finished episodes; NaN before the first."""
        return sum(self.returns) / len(self.returns) if self.returns else math.nan
