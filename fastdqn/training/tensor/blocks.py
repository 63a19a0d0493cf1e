"""Blocks: so many vector steps, then so many updates, again and again, at an exact replay ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor

from fastdqn.training.schedules import ReplayRatio

__all__ = [
    "UNROLLED",
    "UNROLLED_IN_A_GRAPH",
    "Block",
    "BlockTensors",
    "Call",
    "Parts",
    "in_turn",
    "next_block",
    "plan",
]

MAX_STEPS = 16
"""Vector steps of a planned block at most; each is traced, so that they cost compile time."""
MAX_UPDATES = 16
"""Updates of one call at most, for the same reason."""
UNROLLED = 4
"""Vector steps or updates that a planned call repeats; more only cost compile time on the CPU."""
UNROLLED_IN_A_GRAPH = 16
"""The same on CUDA, where one is compiled and recorded so often, and each call waits once."""
DECIMALS = 10**6
"""Largest denominator that a replay ratio given as a decimal number is taken to mean."""
IDLE_STEPS = 16
"""Vector steps without an update between two reads of the log."""


@dataclass(frozen=True, slots=True)
class Block:
    """What one call does: `repeats` times, `num_steps` vector steps and then `num_updates` updates.

    Attributes:
        num_steps: Vector steps, N env steps each.
        num_updates: Updates that follow them.
        repeats: How often.
        uncompiled: It will not come often enough to be worth compiling.
    """

    num_steps: int
    num_updates: int
    repeats: int = 1
    uncompiled: bool = False

    @property
    def total_steps(self) -> int:
        """Vector steps of the whole call."""
        return self.num_steps * self.repeats

    @property
    def total_updates(self) -> int:
        """Updates of the whole call."""
        return self.num_updates * self.repeats

    def pieces(self) -> list[Block]:
        """Split what has more updates than one function should hold into calls that have not."""
        if self.num_updates <= MAX_UPDATES:
            return [self]
        more, first = divmod(self.num_updates, MAX_UPDATES)
        steps = replace(self, num_updates=first, repeats=1)
        return [steps, *[Block(0, MAX_UPDATES, uncompiled=self.uncompiled)] * more] * self.repeats


class BlockTensors(NamedTuple):
    """What the host passes to a block and reads from it: allocated once, filled in place.

    Attributes:
        ends: [S, N] int32 of S vector steps, see `Iteration.record`.
        returns: [S, N] float32, see there.
        uniform: [S, N, 2 + C + R] float32 in [0, 1): two for acting and C for the network, then
            the environments' own.
        random_bits: [U, B + R'] int64 in [0, 2^62) of U updates, see `Update.learn_from`.
    """

    ends: Tensor
    returns: Tensor
    uniform: Tensor
    random_bits: Tensor

    def split(self, repeats: int) -> list[BlockTensors]:
        """Return the views of each of the repeats of a block."""
        each = zip(*(tensor.chunk(repeats) for tensor in self), strict=True)
        return [BlockTensors(*views) for views in each]


Call = Callable[[], object]
"""Does a part of a block on tensors that it knows."""


class Parts(NamedTuple):
    """What makes the calls of a block, each on its views of the block's tensors.

    Attributes:
        act: Returns what chooses actions by uniform numbers [N, 2 + C + R].
        advance: Returns what steps the environments and records it, from these numbers, ends [N],
            returns [N], and the random bits [U, B + R'] of the updates that follow.
        learn: Returns what makes these updates, from whether vector steps went before.
    """

    act: Callable[[Tensor], Call]
    advance: Callable[[Tensor, Tensor, Tensor, Tensor], Call]
    learn: Callable[[Tensor, bool], Call]

    def run_of(self, block: Block, tensors: BlockTensors) -> Callable[[], None]:
        """Return what runs a block: its calls, one after another."""
        calls: list[Call] = []
        for repeat in range(block.repeats):
            first = repeat * block.num_updates
            random_bits = tensors.random_bits[first : first + block.num_updates]
            for row in range(repeat * block.num_steps, (repeat + 1) * block.num_steps):
                uniform = tensors.uniform[row]
                log = tensors.ends[row], tensors.returns[row]
                calls += [self.act(uniform), self.advance(uniform, *log, random_bits)]
            if block.num_updates:
                calls.append(self.learn(random_bits, block.num_steps > 0))
        return in_turn(calls)


def in_turn(calls: Sequence[Call]) -> Callable[[], None]:
    """Return what makes the calls, one after another."""

    def run() -> None:
        for call in calls:
            call()

    return run


def plan(replay_ratio: float, num_envs: int, unrolled: int = UNROLLED) -> Block:
    """Return the block that keeps the ratio exactly and comes again and again.

        replay_ratio * num_envs = p / q    ->    q vector steps, p updates

    If q is larger than 16 it is a single vector step with the whole updates that it owes;
    `next_block` adds the one that is owed now and then.

    Args:
        replay_ratio: Updates per env step, >= 0.
        num_envs: Environments, N.
        unrolled: Vector steps or updates, whichever are more, that one call holds at least.
    """
    owed = Fraction(replay_ratio).limit_denominator(DECIMALS) * num_envs
    steps, updates = owed.denominator, owed.numerator
    if steps > MAX_STEPS:
        return Block(1, int(owed))
    return Block(steps, updates, max(1, unrolled // max(steps, updates)))


def next_block(
    account: ReplayRatio, env_steps: int, num_envs: int, planned: Block, *, until: int
) -> Block:
    """Return what to do next, so that at its end no update is owed and none is too many.

        updates = floor(ratio * (env_steps - start))

    That is the planned block wherever it comes out right. Else, before learning starts, at its
    very first step, near `until`, and where rounding moves the account by one, it is something
    smaller and uncompiled. The caller counts the updates.

    Args:
        account: The updates made so far, and those owed.
        env_steps: Env steps so far.
        num_envs: Environments, N.
        planned: From `plan`.
        until: Env steps at which the run ends; passed by less than one vector step.
    """
    waiting = Block(1, 0, IDLE_STEPS, uncompiled=True)
    for block in (planned, replace(planned, repeats=1, uncompiled=planned.repeats > 1), waiting):
        after = env_steps + block.total_steps * num_envs
        if after <= until and account.due(after) == block.total_updates:
            return block
    due = account.due(env_steps + num_envs)
    often = planned.num_steps == 1 and planned.num_updates + 1 == due and planned.repeats == 1
    return Block(1, due, uncompiled=not often)
