"""Sums of many numbers, from which rows are drawn in proportion to their numbers.

    leaves      [n1 F]       the numbers; F children a node, n1 nodes of leaves
    levels[0]   [n1 F / 16]  of chunks of 16 leaves
    levels[1]   [n2 F]       of nodes of leaves; n2 nodes above them
    levels[2]   [n2 F / 16]  of chunks of these
    levels[3]   [F]          of the nodes above

A level holds sums and largest values. They are taken anew from what lies below whenever that
changes, never added to, so that no rounding gathers. A draw chooses a child three times, whatever
the size, since F grows with the cube root; chunks make writing cheap, and drawing in C. All shapes
are static, nothing waits for the device or branches on a value, and numbers are float32 and int64
alone, since MPS has no float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdqn.foundation.copying import Whole
from fastdqn.foundation.search import largest_that

__all__ = ["BITS_PER_LEVEL", "SumTree", "tree_bytes"]

BITS_PER_LEVEL = 20
"""Random bits that choose a child: each level has bits of its own, of the 62 of a number."""
CHUNK = 16
"""Neighbours whose sum is kept."""
STRIDE = 64
"""The fan-out is a multiple of it."""
FLOAT_BYTES = 4


class SumTree(Whole):
    """S numbers of at least 0, their sums and largest values.

    Args:
        size: Numbers, S.
        device: Where they live.

    Attributes:
        fan_out: Children of a node, F.
        leaves: [n1 * F] float32, the numbers; 0 behind the first S.
        levels: Four of [2, n] float32: sums, and largest values.
        widths: Of each level, how many numbers below it a sum of it has.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.fan_out = fan_out = _fan_out(size)
        leaves, counts = _counts(size, fan_out)
        self.leaves = torch.zeros(leaves, device=device)
        self.levels = [self.leaves.new_zeros(2, count) for count in counts]
        self.widths = CHUNK, fan_out // CHUNK, CHUNK, fan_out // CHUNK

    def written(self) -> tuple[Tensor, ...]:
        """Return all tensors."""
        return self.leaves, *self.levels

    def draw(self, random_bits: Tensor) -> Tensor:
        """Return a row for each number, in proportion to the leaves; one whose leaf is 0 never.

        The chance of each child within its node is rounded to multiples of 2^-20, where a smaller
        one becomes 0 or 2^-20.

        Args:
            random_bits: [B] int64 in [0, 2^62).

        Returns:
            [B] int64. Where all leaves are 0 it means nothing.
        """
        below = self.levels[1][0].view(-1, self.fan_out), self.leaves.view(-1, self.fan_out)
        node = _chosen(self.levels[3][:1], _uniform(random_bits, 2))
        for level, children in zip((1, 0), below, strict=True):
            child = _chosen(children.index_select(0, node), _uniform(random_bits, level))
            node = node * self.fan_out + child
        return node

    def set(self, rows: Tensor, values: Tensor) -> None:
        """Write leaves; the largest of the values counts where a row comes more than once.

        Args:
            rows: [B] int64.
            values: [B] float32, at least 0.
        """
        self.leaves.scatter_reduce_(0, rows, values, "amax", include_self=False)
        self._refresh(rows)

    def fill(self, places: Tensor, value: Tensor) -> None:
        """Write one value into leaves that are neighbours.

        Args:
            places: [N] int64, ascending by one.
            value: Scalar float32 on the device.
        """
        self.leaves.index_copy_(0, places, value.expand(len(places)))
        self._refresh(torch.cat((places[::CHUNK], places[-1:])))

    def most(self) -> Tensor:
        """Return the largest leaf, a scalar float32 on the device."""
        return self.levels[3][1].amax()

    def total(self) -> Tensor:
        """Return the sum of all leaves, a scalar float32 on the device."""
        return self.levels[3][0].sum()

    def _refresh(self, places: Tensor) -> None:
        """Take anew the sums and largest values above some leaves."""
        below = self.leaves.unsqueeze(0)
        for level, width in zip(self.levels, self.widths, strict=True):
            places = places // width
            numbers = below.view(len(below), -1, width).index_select(1, places)
            sums, largest = numbers[0].sum(1), numbers[-1].amax(1)
            level.index_copy_(1, places, torch.stack((sums, largest)))
            below = level


def tree_bytes(size: int) -> int:
    """Return the bytes of the tensors of a SumTree of so many numbers."""
    leaves, counts = _counts(size, _fan_out(size))
    return FLOAT_BYTES * (leaves + 2 * sum(counts))


def _counts(size: int, fan_out: int) -> tuple[int, tuple[int, ...]]:
    """Return the leaves, and the numbers of each level above them."""
    nodes = -(-size // fan_out)
    above = -(-nodes // fan_out)
    chunks = nodes * fan_out // CHUNK, above * fan_out // CHUNK
    return nodes * fan_out, (chunks[0], above * fan_out, chunks[1], fan_out)


def _fan_out(size: int) -> int:
    """Return the smallest multiple of STRIDE whose cube is at least `size`."""
    return (largest_that(lambda count: (count * STRIDE) ** 3 < size, size) + 1) * STRIDE


def _uniform(random_bits: Tensor, level: int) -> Tensor:
    """Return the numbers in [0, 1) of a level: its own bits."""
    bits = (random_bits >> level * BITS_PER_LEVEL) & (2**BITS_PER_LEVEL - 1)
    uniform: Tensor = bits.float() * 2.0**-BITS_PER_LEVEL
    return uniform


def _chosen(values: Tensor, uniform: Tensor) -> Tensor:
    """Return the first child whose running sum passes the uniform share of the whole, [B] int64.

    A child of 0 has no running sum, so that it is not chosen whatever order a scan adds in.
    """
    reached = torch.where(values > 0, values.cumsum(1), 0.0)
    bound = uniform * reached.amax(1)
    child: Tensor = (reached > bound.unsqueeze(1)).int().argmax(1)
    return child
