"""A functional ring some of whose rows hold fewer transitions: those that were skipped are no ones.

Beside the ring lies a circular list of the transitions that may be drawn, oldest first, as
`ValidTransitions` is for the host: here on the device, with static shapes, so that a write stays a
pure function. Draws are uniform over the list.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdqn.foundation.copying import snapshot
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.sizes import SkippingSizes

__all__ = ["SkippingRing"]


class SkippingRing(FunctionalRing):
    """A `FunctionalRing` in which each row says which of its steps are transitions.

    A step that is none stays in its place with a reward of NaN, is never drawn, and no sum of n
    rewards passes through it. Where all that the ring holds was skipped, draws find such a step,
    so that the update is not finite and changes nothing.

    Args:
        See `FunctionalRing`.

    Attributes:
        real: [N] bool, which steps of the last row are transitions.
        order: [T * N + 1] int64, the list, and a place that is never read.
        row_counts: [T] int64, transitions of each row in the list.
        entered: Scalar int64, transitions that ever entered it.
        left: Scalar int64, those that have left it.
    """

    sizes = SkippingSizes

    def __init__(self, *sizes: Any, **named: Any) -> None:
        super().__init__(*sizes, **named)
        device, slots = self.row.device, len(self.ring.action)
        self.real = torch.ones(self.num_envs, dtype=torch.bool, device=device)
        self.order = torch.arange(slots + 1, device=device)
        self.row_counts = torch.zeros(self.num_rows, dtype=torch.int64, device=device)
        self.entered = torch.zeros((), dtype=torch.int64, device=device)
        self.left = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def listed(self) -> dict[str, Tensor]:
        """The tensors beside those of the ring, by name."""
        names = ("real", "order", "row_counts", "entered", "left")
        return {name: getattr(self, name) for name in names}

    def write_some(self, real: Tensor, step: tuple[Tensor, ...]) -> None:
        """Append one vector step of which some are no transitions, in place.

        Args:
            real: [N] bool, which are.
            step: Arguments of `write`.
        """
        action, reward, *rest = step
        slots, here = len(self.ring.action), self._slots(self.row)
        self.write(action, reward.masked_fill(~real, math.nan), *rest)
        if self.num_rows > 2:
            before = self._slots(self.row - 2)
            self.ring.continues[before] = self.ring.continues[before] & real
        number = self.entered + real.long().cumsum(0) - 1
        self.order[torch.where(real, number % slots, slots)] = here
        written = ((self.row - 1) % self.num_rows).view(1)
        oldest = (self.row % self.num_rows).view(1)
        self.left.add_(self.row_counts.index_select(0, oldest).sum())
        self.row_counts.index_fill_(0, oldest, 0)
        self.row_counts.index_copy_(0, written, real.sum().view(1))
        self.entered.add_(real.sum())
        self.real.copy_(real)

    def span(self) -> tuple[Tensor, Tensor]:
        """Return the number of the oldest transition of the list, and how many there are.

        At least one, so that draws have a remainder: see `nth`.
        """
        return self.left.clone(), (self.entered - self.left).clamp(min=1)

    def nth(self, n: Tensor, first: Tensor) -> Tensor:
        """Return the flat index of the n-th transition from number `first` on.

        Where there is none, that of a step of the last row, which was skipped.
        """
        listed = self.order[(first + n) % len(self.ring.action)]
        return torch.where(self.entered > self.left, listed, self._slots(self.row - 1)[0])

    def drawable(self) -> Tensor:
        """Return which flat transitions may be drawn, [T * N] bool. Waits for the device."""
        return super().drawable() & bool(self.entered > self.left)

    def snapshot(self, num_rows: int) -> Callable[[], None]:
        """Copy what the next `num_rows` writes change, the whole list among it."""
        restore_rows, restore_list = super().snapshot(num_rows), snapshot([*self.listed.values()])

        def restore() -> None:
            restore_rows()
            restore_list()

        return restore
