"""Blocks on a card: its own kernels act and learn, and what lies between them may be compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastdqn.algorithms.exploration import NUM_ACTING
from fastdqn.execution.compiled import CompiledInside
from fastdqn.execution.meanwhile import Need
from fastdqn.native import CudaActor, CudaUpdate
from fastdqn.training.tensor.block_plan import Block
from fastdqn.training.tensor.iteration import BlockTensors, Iteration

__all__ = ["NativeGraph"]


class NativeGraph:
    """A block as the card's own kernels run it, around environments as they are or compiled.

    Args:
        iteration: The parts.
        learn: Makes updates from a ring and indices.
        device: Where everything lives.
    """

    def __init__(self, iteration: Iteration, learn: CudaUpdate, device: torch.device) -> None:
        self._iteration, self._learn = iteration, learn
        self._act = CudaActor(iteration.network, learn.make)
        self._draw = CompiledInside(self._drawn, device)
        self._advance = CompiledInside(iteration.advance, device)
        self._index: dict[torch.Size, Tensor] = {}

    def plain(self, block: Block, *tensors: Tensor) -> None:
        """Do a block; the environments step as they are."""
        self._run(self._iteration.advance, self._drawn, block, BlockTensors(*tensors))

    def compiled(self, block: Block, *tensors: Tensor) -> None:
        """Do a block; what the environments do is compiled first where that is new."""
        self._run(self._advance, self._draw, block, BlockTensors(*tensors))

    def needs(self, block: Block, *tensors: Tensor) -> list[Need]:
        """Return what `compiled` needs for such a block, see `Meanwhile`."""
        call = BlockTensors(*tensors)
        found: list[Need] = []
        if block.num_steps:
            found.append((self._advance, self._steps_of(call, 0)))
        if block.num_updates:
            random_bits = call.random_bits[: block.num_updates]
            found.append((self._draw, (self._place(random_bits), random_bits)))
        return found

    def _run(
        self,
        advance: Callable[[Tensor, Tensor, Tensor], None],
        draw: Callable[[Tensor, Tensor], None],
        block: Block,
        call: BlockTensors,
    ) -> None:
        iteration = self._iteration
        for repeat in range(block.repeats):
            for row in range(repeat * block.num_steps, (repeat + 1) * block.num_steps):
                given = iteration.shown, iteration.epsilon, call.uniform[row]
                self._act(*given, None, iteration.action)
                advance(*self._steps_of(call, row))
            if block.num_updates:
                first = repeat * block.num_updates
                random_bits = call.random_bits[first : first + block.num_updates]
                index = self._place(random_bits)
                draw(index, random_bits)
                self._learn(iteration.ring.ring, index)

    @staticmethod
    def _steps_of(call: BlockTensors, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `Iteration.advance` is given for a vector step."""
        return call.uniform[row, :, NUM_ACTING:], call.ends[row], call.returns[row]

    def _place(self, random_bits: Tensor) -> Tensor:
        """Return where the rows that `random_bits` choose are written."""
        index = self._index.get(random_bits.shape)
        if index is None:
            index = self._index[random_bits.shape] = torch.zeros_like(random_bits)
        return index

    def _drawn(self, index: Tensor, random_bits: Tensor) -> None:
        index.copy_(self._iteration.ring.draw(random_bits))
