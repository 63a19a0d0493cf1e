"""Blocks: so many vector steps, then so many updates, again and again, at an exact replay ratio."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from fastdqn.training.schedules import ReplayRatio

__all__ = ["MAX_UPDATES", "UNROLLED", "UNROLLED_IN_A_GRAPH", "Block", "next_block", "plan"]

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
