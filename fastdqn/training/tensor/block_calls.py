"""The calls that a block consists of, each on its views of the block's tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdqn.training.tensor.block_plan import Block
from fastdqn.training.tensor.iteration import BlockTensors

__all__ = ["Call", "calls_of", "in_turn", "split"]

Call = Callable[[], object]
"""Does a part of a block on tensors that it knows."""


def calls_of(
    block: Block,
    call: BlockTensors,
    act: Callable[[Tensor], Call],
    advance: Callable[[Tensor, Tensor, Tensor, Tensor], Call],
    learn: Callable[[Tensor, bool], Call],
) -> list[Call]:
    """Return the calls of a block in their order.

    Args:
        block: What to do.
        call: Its tensors.
        act: Returns what chooses actions by uniform numbers [N, 2 + R].
        advance: Returns what steps the environments and records it, given uniform numbers, ends
            [N], returns [N], and the random bits [U, B] of the updates that follow.
        learn: Returns what makes these updates, given whether vector steps went before.
    """
    calls: list[Call] = []
    for repeat in range(block.repeats):
        first = repeat * block.num_updates
        random_bits = call.random_bits[first : first + block.num_updates]
        for row in range(repeat * block.num_steps, (repeat + 1) * block.num_steps):
            uniform = call.uniform[row]
            calls += [
                act(uniform),
                advance(uniform, call.ends[row], call.returns[row], random_bits),
            ]
        if block.num_updates:
            calls.append(learn(random_bits, block.num_steps > 0))
    return calls


def in_turn(calls: Sequence[Call]) -> Callable[[], None]:
    """Return what makes the calls, one after another."""

    def run() -> None:
        for call in calls:
            call()

    return run


def split(tensors: Sequence[Tensor], block: Block, repeats: int) -> list[tuple[Tensor, ...]]:
    """Return the tensors of each of the repeats of a block."""
    steps, updates = block.total_steps, block.total_updates
    parts = [
        torch.split(tensor, length) if length else (tensor,) * repeats
        for tensor, length in zip(tensors, (steps, steps, steps, updates), strict=True)
    ]
    return list(zip(*parts, strict=True))
