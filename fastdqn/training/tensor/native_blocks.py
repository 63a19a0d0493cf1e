"""Blocks on the CPU: acting and updating in C, and what lies between them as one function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdqn.algorithms.exploration import NUM_ACTING
from fastdqn.envs.tensor.protocol import PureTensorEnv, TensorEnv
from fastdqn.execution.direct import Direct
from fastdqn.execution.modes import accelerate
from fastdqn.native import NativeActor, NativeUpdate
from fastdqn.training.tensor.block_plan import MAX_UPDATES, Block
from fastdqn.training.tensor.iteration import BlockTensors, Iteration
from fastdqn.training.tensor.torch_blocks import Parts, run_around

__all__ = ["NativeBlocks"]


class _Repeat(NamedTuple):
    """Views of a call's tensors: those of one repeat of its block.

    Attributes:
        steps: By vector step: what acts, given epsilon; uniform numbers for the environments, ends,
            returns.
        random_bits: [U, B] int64.
        learn: Makes the updates on what the last vector step has chosen.
    """

    steps: list[tuple[Callable[[float], None], Tensor, Tensor, Tensor]]
    random_bits: Tensor
    learn: Callable[[], None]


class NativeBlocks:
    """Runs the blocks of an iteration whose network and environments live on the CPU.

    The environments are somebody's own tensor operations; they, the writing of their rows and
    the draw of the batches are one compiled function. Blocks that are rare run it as it is.

    Args:
        iteration: The parts.
        env: The environments; those that are not pure step eagerly between the parts.
        learn: Updates for each row of an index [U, B] into a ring, in C.
        batch_size: Transitions per update, B.
        background: Start at once, and compile what lies between meanwhile.
    """

    def __init__(
        self,
        iteration: Iteration,
        env: TensorEnv,
        learn: NativeUpdate,
        batch_size: int,
        *,
        background: bool = False,
    ) -> None:
        self._iteration, self._env, self._learn = iteration, env, learn
        self._index = torch.zeros((MAX_UPDATES, batch_size), dtype=torch.int64)
        self._actor = NativeActor(iteration.network)
        device = iteration.network.flat.device
        self._between = Direct(self._step, device, background=background)
        self._record = accelerate(iteration.record, "compile", device, background=background)
        self._parts = Parts(
            lambda uniform: self.act(uniform, float(iteration.epsilon)), self._record, self.learn
        )
        self._views: dict[Block, list[_Repeat]] = {}

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling so far."""
        return sum(getattr(step, "compile_s", 0.0) for step in self.compiling)

    @property
    def compiling(self) -> list[Any]:
        """The parts that are compiled."""
        return [self._record, self._between]

    def __call__(self, block: Block, call: BlockTensors, epsilon: float) -> None:
        """Run a block; see `TorchBlocks`."""
        if not isinstance(self._env, PureTensorEnv):
            self._iteration.epsilon.fill_(epsilon)
            run_around(self._env, self._iteration.action, self._parts, block, call)
            return
        step = self._step if block.uncompiled else self._between
        for steps, random_bits, learn in self._views.get(block) or self._view(block, call):
            for act, uniform, ends, returns in steps:
                act(epsilon)
                step(uniform, ends, returns, random_bits)
            if len(random_bits):
                learn() if steps else self.learn(random_bits)

    def act(self, uniform: Tensor, epsilon: float) -> None:
        """Choose an action for what every environment shows; see `Iteration.act`."""
        iteration = self._iteration
        self._actor(iteration.shown, epsilon, uniform, out=iteration.action)

    def learn(self, random_bits: Tensor) -> None:
        """Make one update for each row of `random_bits` [U, B]."""
        ring = self._iteration.ring
        self._learn(ring.ring, ring.draw(random_bits))

    def _step(self, uniform: Tensor, ends: Tensor, returns: Tensor, random_bits: Tensor) -> None:
        """Let the environments step, write their rows, and choose what to learn from."""
        self._iteration.advance(uniform, ends, returns)
        self._index[: len(random_bits)].copy_(self._iteration.ring.draw(random_bits))

    def _view(self, block: Block, call: BlockTensors) -> list[_Repeat]:
        updates, iteration = block.num_updates, self._iteration
        learn = self._learn.bound(iteration.ring.ring, self._index[:updates])
        bound = partial(self._actor.bound, iteration.shown)
        self._views[block] = [
            _Repeat(
                [
                    (
                        bound(uniform[:, :NUM_ACTING], iteration.action),
                        uniform[:, NUM_ACTING:],
                        ends,
                        returns,
                    )
                    for uniform, ends, returns in zip(
                        call.uniform[rows], call.ends[rows], call.returns[rows], strict=True
                    )
                ],
                call.random_bits[repeat * updates : (repeat + 1) * updates],
                learn,
            )
            for repeat in range(block.repeats)
            for rows in [slice(repeat * block.num_steps, (repeat + 1) * block.num_steps)]
        ]
        return self._views[block]
