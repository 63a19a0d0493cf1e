"""The loop: act, learn while the workers step, collect, write, look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from torch import Tensor

from fastdqn.learner import Learner
from fastdqn.loop import Loop, LoopSettings
from fastdqn.rollout import Rollout

__all__ = ["Trainer"]


class Trainer(Loop):
    """Trains on what workers, or whoever else steps environments, bring through the host.

    Args:
        rollout: Environments to rows.
        learner: Rows to weights.
        draw: Chooses the batches: `replay.draw` or `replay.newest`.
        batch_size: Transitions per update, B.
        settings: Of every loop; see `LoopSettings`.
    """

    rollout: Rollout

    def __init__(
        self,
        rollout: Rollout,
        learner: Learner,
        *,
        draw: Callable[[int, int], Tensor],
        batch_size: int,
        **settings: Unpack[LoopSettings],
    ) -> None:
        super().__init__(rollout, learner, **settings)
        self.replay, self.draw, self.batch_size = rollout.replay, draw, batch_size

    def vector_step(self) -> None:
        """Act, learn while the workers step, collect, write, look."""
        rollout, lap = self.rollout, self.watch.lap
        before = rollout.env_steps
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
        if rollout.num_restarts > self.worker_restarts:
            self._tell_restarts()
        self._look(before, rollout.env_steps)

    def _learn(self) -> None:
        """Do the updates that are owed for the env steps written so far."""
        due = self.ratio.due(self.rollout.env_steps)
        if not due:
            return
        if self._first_update is None:
            self._first_update = (self.rollout.env_steps, self.watch.train_s)
        compiled = self.learner.compile_s
        self.learner.learn(self.replay, self.draw(due, self.batch_size))
        self.ratio.pay(due)
        if self.learner.compile_s > compiled:
            self.watch.lap("learn")
            self.watch.move(self.learner.compile_s - compiled, "learn", "compile")

    def _finish(self) -> None:
        self._learn()
        self.watch.lap("learn")
