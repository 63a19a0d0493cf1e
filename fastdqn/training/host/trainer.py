"""The loop over worker processes: act, learn while they step, collect, write, report."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from fastdqn.replay import Sampler
from fastdqn.training.host.rollout import HostRollout
from fastdqn.training.trainer import Trainer

__all__ = ["HostTrainer"]


@dataclass(eq=False, repr=False)
class HostTrainer(Trainer):
    """Trains on the transitions of workers, or of another source on the host; see `Trainer`.

    Args:
        sampler: Chooses the batches.
    """

    rollout: HostRollout
    _: KW_ONLY
    sampler: Sampler

    def vector_step(self) -> None:
        """Act, learn while the workers step, collect, write, check intervals."""
        rollout, lap = self.rollout, self.watch.lap
        before = rollout.env_steps
        self.saving.advance()
        lap("other")
        rollout.send(self.epsilon(before, rollout.episodes))
        lap("act")
        self._learn()
        lap("learn")
        rollout.collect()
        lap("env_wait")
        episodes = rollout.write()
        lap("write")
        if episodes:
            self._count(episodes)
        if rollout.num_restarts > self._seen_restarts:
            self._report_restarts()
        self._look(before, rollout.env_steps)

    def _learn(self) -> None:
        """Do the updates that are due after the env steps so far."""
        due = self.ratio.due(self.rollout.env_steps)
        if not due or (self.on_nonfinite == "skip" and self.rollout.has_nothing):
            return
        if self._first_update is None:
            self._first_update = (self.rollout.env_steps, self.watch.train_s)
        self._anneal(self.rollout.env_steps)
        compiled = self.learner.compile_s
        self.learner.learn(self.sampler, due)
        self.ratio.pay(due)
        if self.learner.compile_s > compiled:
            self.watch.lap("learn")
            self.watch.move(self.learner.compile_s - compiled, "learn", "compile")

    def _end(self) -> None:
        if self.status == "completed":
            self._learn()
            self.watch.lap("learn")
        super()._end()
