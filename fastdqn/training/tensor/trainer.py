"""The loop over tensor environments: whole blocks of vector steps and updates on the device."""

from __future__ import annotations

from collections.abc import Sequence

from fastdqn.execution.step import Progress
from fastdqn.training.tensor.blocks import UNROLLED, UNROLLED_IN_A_GRAPH, next_block, plan
from fastdqn.training.tensor.rollout import TensorRollout
from fastdqn.training.trainer import Trainer

__all__ = ["TensorTrainer"]


class TensorTrainer(Trainer):
    """Trains in tensor environments; all time but reports and evaluations counts as `learn`.

    The updates are a part of the rollout's blocks; see `Trainer`.
    """

    rollout: TensorRollout

    def __post_init__(self) -> None:
        super().__post_init__()
        unrolled = UNROLLED_IN_A_GRAPH if self.rollout.device.type == "cuda" else UNROLLED
        self._planned = plan(self.ratio.ratio, self.rollout.num_envs, unrolled)

    def vector_step(self) -> None:
        """Run the next block, then check the intervals."""
        rollout, before = self.rollout, self.rollout.env_steps
        block = next_block(self.ratio, before, rollout.num_envs, self._planned, until=self.until)
        self.saving.advance(block.total_steps)
        self.watch.lap("other")
        if block.total_updates and self._first_update is None:
            self._first_update = (before, self.watch.train_s)
        self._anneal(before)
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
