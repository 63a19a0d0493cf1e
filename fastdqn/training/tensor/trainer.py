"""The loop over tensor environments: whole blocks of vector steps and updates on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from fastdqn.execution.step import Progress
from fastdqn.learner.learner import Learner
from fastdqn.training.tensor.blocks import UNROLLED, UNROLLED_IN_A_GRAPH, next_block, plan
from fastdqn.training.tensor.rollout import TensorRollout
from fastdqn.training.trainer import Trainer, TrainerSettings

__all__ = ["TensorTrainer"]


class TensorTrainer(Trainer):
    """Trains in tensor environments; all time but reports and evaluations counts as `learn`.

    Args:
        rollout: Environments, ring and updates, as one function.
        learner: Its pure step is a part of that function.
        settings: Of every loop; see `TrainerSettings`.
    """

    rollout: TensorRollout

    def __init__(
        self, rollout: TensorRollout, learner: Learner, **settings: Unpack[TrainerSettings]
    ) -> None:
        super().__init__(rollout, learner, **settings)
        unrolled = UNROLLED_IN_A_GRAPH if rollout.device.type == "cuda" else UNROLLED
        self._planned = plan(self.ratio.ratio, rollout.num_envs, unrolled)

    def vector_step(self) -> None:
        """Run the next block, then check the intervals."""
        rollout, before = self.rollout, self.rollout.env_steps
        block = next_block(self.ratio, before, rollout.num_envs, self._planned, until=self.until)
        self.watch.lap("other")
        if block.total_updates and self._first_update is None:
            self._first_update = (before, self.watch.train_s)
        compiled = rollout.compile_s
        episodes = rollout.advance(block, self.epsilon(before, rollout.episodes))
        self.ratio.pay(block.total_updates)
        self.watch.lap("learn")
        self.watch.move(rollout.compile_s - compiled, "learn", "compile")
        if episodes:
            self._count(episodes)
        self._look(before, rollout.env_steps)

    def _steps(self) -> Sequence[Progress]:
        return self.rollout.compiling

    def _finish(self) -> None:
        """Do nothing: a block ends with its updates."""
