"""The tensors of a ring in chunks of whole rows, which are copied one by one between vector steps.

The chunks of the rows come first, those of the final observations after them. Of each name, the
tensors of all chunks in turn are the tensor of the ring:

    chunk      0           1           ...  K - 1     |  K              ...
    rows       0 .. R-1    R .. 2R-1   ...  .. T - 1  |  final observations, frames and masks only

What a vector step may change follows from two counters, those of the rows and of the final
observations. With G groups, before row r is written:

    rows r - G, ..., r - 1      a cut lets them point to final observations; row r ends what
                                continues row r - G
    rows r, ..., r + G          their transitions, and what the groups show
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdqn.errors import CheckpointError
from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing

if TYPE_CHECKING:
    from fastdqn.replay.storage import Ring

__all__ = ["CHUNK_BYTES", "RingChunks"]

CHUNK_BYTES = 16 * 2**20
"""Of a chunk, at most; but a chunk has a row at least."""
BEHIND_THE_ROWS = ("frames", "masks")
"""Tensors that final observations have."""
ROUND = 2**32
"""Versions of a chunk while the row at the write head is the same."""


class RingChunks:
    """The tensors of a ring in chunks; see `fastdqn.foundation.state.Chunked`.

    Versions follow from the counters of the ring, so those of one `RingChunks` mean nothing for
    another one, nor after the counters were set back.

    Args:
        replay: The ring.
        limits: Integers in these tensors, by name, must be at least 0 and lie below the limit,
            e.g. the actions. Only `refuse` reads it.
        chunk_bytes: Of a chunk, at most.
    """

    def __init__(
        self,
        replay: ReplayBuffer | FunctionalRing,
        *,
        limits: Mapping[str, int] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._replay, ring = replay, replay.ring
        self._groups = replay.num_groups if isinstance(replay, ReplayBuffer) else 1
        self._rows, self._slots = replay.num_rows, len(ring.action)
        self._row_size = self._slots // self._rows
        self._finals = len(ring.frames) - self._slots
        self._limits = {**(limits or {}), "next_index": len(ring.frames)}
        behind = sum(_bytes_of(cells[:1]) for cells in _behind(ring).values())
        every = sum(_bytes_of(cells[:1]) for cells in ring.cells().values()) * self._row_size
        self._rows_each = max(chunk_bytes // every, 1)
        self._finals_each = max(chunk_bytes // max(behind, 1), 1)
        self._row_chunks = -(-self._rows // self._rows_each)
        self.num_chunks = self._row_chunks - (-self._finals // self._finals_each)
        self._asked = 0  # versions of chunks that may change

    def chunk(self, number: int) -> dict[str, Tensor]:
        """Return views of the tensors of a chunk, by the names of the ring."""
        here = self._place(number)
        cells = self._replay.ring.cells()
        names = cells if number < self._row_chunks else _behind(self._replay.ring)
        return {name: cells[name][here] for name in names}

    def version(self, number: int) -> int:
        """Return a number that grows whenever a chunk changes; 0 as long as it never did."""
        row, final = self._counts()
        if number >= self._row_chunks:
            return max(_newest(final - 1, *self._span(number), self._finals) + 1, 0)
        if number in self.next_written(1):
            self._asked += 1
            return row * ROUND + self._asked
        newest = _newest(row + self._groups, *self._span(number), self._rows)
        return 0 if newest < 0 else (newest + self._groups + 1) * ROUND

    def next_written(self, vector_steps: int) -> set[int]:
        """Return the chunks that may change until so many rows were written."""
        (row, final), groups = self._counts(), self._groups
        first = max(row - groups, 0)
        rows = _touched(first, row + groups + vector_steps, self._rows, self._rows_each)
        stored = final + (groups + vector_steps) * self._row_size
        finals = _touched(final, stored, self._finals, self._finals_each)
        return rows | {self._row_chunks + number for number in finals}

    def refuse(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Refuse tensors of other names, shapes, dtypes, or with integers out of range.

        Raises:
            CheckpointError: Names the tensor.
        """
        own, what = self.chunk(number), f"chunk {number} of the replay ring"
        if own.keys() != tensors.keys():
            raise CheckpointError(f"{what} holds {sorted(tensors)}, not {sorted(own)}")
        for name, here in own.items():
            there = tensors[name]
            if there.shape != here.shape or there.dtype != here.dtype:
                was, must = (f"{list(each.shape)} {each.dtype}" for each in (there, here))
                raise CheckpointError(f"{what}: its {name} is {was}, not {must}")
            limit = self._limits.get(name)
            if limit is not None and not _within(there, limit):
                raise CheckpointError(f"{what}: its {name} holds a number outside [0, {limit})")

    def load(self, number: int, tensors: Mapping[str, Tensor] | None) -> None:
        """Copy a chunk in; None is what was allocated."""
        for name, cells in self.chunk(number).items():
            if tensors is not None:
                cells.copy_(tensors[name])
            elif name == "next_index":
                first = self._place(number).start + self._replay.ring.stride
                torch.arange(first, first + len(cells), out=cells)
                cells.remainder_(self._slots)
            else:
                cells.fill_(name == "masks")

    def _counts(self) -> tuple[int, int]:
        """Return the rows and the final observations written so far."""
        replay = self._replay
        if isinstance(replay, FunctionalRing):
            return replay.counts()
        return replay._row, replay._rows.finals.used

    def _span(self, number: int) -> tuple[int, int]:
        """Return the rows of a chunk, or its final observations, from and to before."""
        each, most = self._rows_each, self._rows
        if number >= self._row_chunks:
            number, each, most = number - self._row_chunks, self._finals_each, self._finals
        return number * each, min((number + 1) * each, most)

    def _place(self, number: int) -> slice:
        first, stop = self._span(number)
        if number >= self._row_chunks:
            return slice(self._slots + first, self._slots + stop)
        return slice(first * self._row_size, stop * self._row_size)


def _behind(ring: Ring) -> dict[str, Tensor]:
    return {name: cells for name, cells in ring.cells().items() if name in BEHIND_THE_ROWS}


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _newest(last: int, first: int, stop: int, size: int) -> int:
    """Return the largest number up to `last` whose place in a circle lies in [first, stop).

    It is negative where there is none from 0 on.
    """
    place = last % size
    if first <= place < stop:
        return last
    return last - place + stop - 1 - (size if place < first else 0)


def _touched(first: int, stop: int, size: int, each: int) -> set[int]:
    """Return the chunks, of so many places each, of the places `first` to before `stop`."""
    if stop - first >= size:
        return set(range(-(-size // each)))
    start, end = first % size, (stop - 1) % size
    if start <= end:
        return set(range(start // each, end // each + 1))
    return {*range(start // each, -(-size // each)), *range(end // each + 1)}


def _within(numbers: Tensor, limit: int) -> bool:
    least, most = torch.aminmax(numbers)
    return int(least) >= 0 and int(most) < limit
