"""The sum tree in C, for the CPU: what takes PyTorch a dozen operators is one call."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import Whole
from fastdqn.replay.sum_tree import SumTree
from fastdqn.toolchain.cc import loaded

__all__ = ["SOURCE", "CTree", "TreeAddresses", "c_tree_of"]

SOURCE = Path(__file__).with_name("sum_tree.c")
LEVELS, MAX_FAN_OUT = 4, 1_024
"""As in sum_tree.h."""


class TreeAddresses(ctypes.Structure):
    """`Tree` of sum_tree.h, field by field."""

    _fields_ = (
        ("leaves", ctypes.c_void_p),
        *((name, ctypes.c_void_p * LEVELS) for name in ("sums", "largest")),
        *((name, ctypes.c_void_p) for name in ("draws", "anneal")),
        ("fan_out", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("alpha", "eps", "beta_start", "beta_end")),
    )


class CTree(Whole):
    """Draws from a tree on the CPU and writes into it; see `PrioritizedSampler` for the numbers.

    Args:
        tree: Read and written.
        draws: Scalar int64, batches so far; counted on by each draw.
        anneal: Scalar int64, batches over which beta moves.
        numbers: `alpha`, `eps`, `beta_start` and `beta_end`.

    Attributes:
        address: What the C takes.

    Raises:
        UsageError: There is no C compiler, or it fails.
    """

    def __init__(self, tree: SumTree, draws: Tensor, anneal: Tensor, **numbers: float) -> None:
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}
        self._library, self._alive = _library(), (tree, draws, anneal)
        places = {"leaves": tree.leaves, "draws": draws, "anneal": anneal}
        addresses = {name: tensor.data_ptr() for name, tensor in places.items()}
        self._addresses = TreeAddresses(fan_out=tree.fan_out, **addresses, **numbers)
        for number, level in enumerate(tree.levels):
            self._addresses.sums[number] = level[0].data_ptr()
            self._addresses.largest[number] = level[1].data_ptr()
        self.address = ctypes.addressof(self._addresses)

    def draw(self, random_bits: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows [B] int64 and weights [B] float32 for B numbers int64, contiguous.

        Where no leaf is above 0 the rows are -1.
        The next call with as many overwrites them.
        """
        count = random_bits.numel()
        rows, weights = self._memory(count)
        parts = random_bits.data_ptr(), count, rows.data_ptr(), weights.data_ptr()
        self._library.fastdqn_tree_draw(self.address, *parts)
        return rows, weights

    def feed(self, rows: Tensor, priority: Tensor) -> None:
        """Write the priorities [B] float32 of rows [B] int64 that lie in the tree; contiguous."""
        parts = rows.data_ptr(), priority.data_ptr(), len(rows)
        self._library.fastdqn_tree_feed(self.address, *parts)

    def feed_known(self, numbers: Tensor, priority: Tensor, ring: tuple[int, int, int]) -> bool:
        """Write priorities by number, see `ValidTransitions.number_of`; stale ones are ignored.

        Args:
            numbers: [B] int64, contiguous.
            priority: [B] float32, contiguous.
            ring: Its newest row, its rows T and their size M.

        Returns:
            Whether all priorities are finite; otherwise none was written.
        """
        rows, kept = self._memory(len(numbers))
        parts = numbers.data_ptr(), priority.data_ptr(), len(numbers), *ring
        written = self._library.fastdqn_tree_feed_known(
            self.address, *parts, rows.data_ptr(), kept.data_ptr()
        )
        return bool(written >= 0)

    def _memory(self, count: int) -> tuple[Tensor, Tensor]:
        """Return memory for [count] rows and numbers, the same at each call."""
        if count not in self._drawn:
            self._drawn[count] = torch.empty(count, dtype=torch.int64), torch.empty(count)
        return self._drawn[count]

    def most(self) -> float:
        """Return the largest leaf."""
        largest: float = self._library.fastdqn_tree_most(self.address)
        return largest

    def fill(self, first: int, count: int, value: float) -> None:
        """Write a value into `count` leaves from `first` on."""
        self._library.fastdqn_tree_fill(self.address, first, count, value)


def c_tree_of(tree: SumTree, draws: Tensor, anneal: Tensor, **numbers: float) -> CTree | None:
    """Return the tree in C; None on another device, without a C compiler, or if it is too large."""
    if not draws.is_cpu or tree.fan_out > MAX_FAN_OUT:
        return None
    with contextlib.suppress(UsageError, OSError, subprocess.SubprocessError):
        return CTree(tree, draws, anneal, **numbers)
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    """Load the C; compile it first where this machine has not got it.

    Raises:
        UsageError: There is no C compiler, or it fails.
    """
    library = loaded(SOURCE)
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    for name, result, arguments in (
        ("draw", None, [pointer, pointer, number, pointer, pointer]),
        ("feed", None, [pointer, pointer, pointer, number]),
        ("feed_known", number, [pointer, pointer, pointer, *[number] * 4, pointer, pointer]),
        ("most", real, [pointer]),
        ("fill", None, [pointer, number, number, real]),
    ):
        function = getattr(library, f"fastdqn_tree_{name}")
        function.restype, function.argtypes = result, arguments
    return library
