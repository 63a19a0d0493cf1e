"""Which transitions of the ring may be drawn, and whose last observations lie behind it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.foundation.copying import copied
from fastdqn.foundation.state import PartState
from fastdqn.replay.saved_list import read_listed
from fastdqn.replay.storage import queued

__all__ = ["FinalObservations", "Places", "ValidTransitions"]

Places = range | Tensor
"""Flat transitions: neighbours, or [N] int64 on the device."""


class ValidTransitions:
    """The flat transitions that may be drawn, oldest first.

    While every row is whole the list stays as it began, 0, 1, 2, ..., and nothing is written. Rows
    in which some environments only reset enter with fewer transitions; once the
    last of those has left the draw, the list is put back in order.

    Args:
        num_rows: Rows of the ring, T.
        row_size: Transitions of a row, M.
        device: Where the list lives.

    Attributes:
        window: [2] int64 on the device: `first` and how many there are, as `publish` left it.
        published: What `window` holds, or soon will.
    """

    def __init__(self, num_rows: int, row_size: int, device: torch.device) -> None:
        self.num_rows, self.row_size = num_rows, row_size
        self._list = torch.arange(num_rows * row_size, device=device)
        self._columns = torch.arange(row_size, device=device)
        self._in_order = True
        self._newest_partial = -1  # the last row that did not enter whole
        self._oldest = 0  # the oldest row whose transitions may be drawn
        self._first = 0  # transitions that have left the list
        self._last = 0  # transitions that ever entered it
        self._counts = [0] * num_rows  # transitions in the list by row
        self._rows = 0  # rows that ever entered it
        self.window, self.published = torch.tensor([0, 1], device=device), (0, 1)
        self._on_host = _on_host(self.window)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the list and the window."""
        twin = copied(self, memo, anew=("_on_host",))
        twin._on_host = _on_host(twin.window)
        return twin

    def __len__(self) -> int:
        """Return the transitions that can be drawn now."""
        return self._last - self._first

    def append(self, row: int, real: npt.NDArray[np.bool_] | None) -> None:
        """Let the transitions of the next row be drawn.

        Args:
            row: Rows written before it.
            real: [M] False where there is no transition, in some; None is True everywhere.
        """
        columns, count = self._columns, self.row_size
        if real is not None:
            new = np.flatnonzero(real)
            columns, count = queued(new, columns.device), len(new)
            self._in_order, self._newest_partial = False, row
        elif not self._in_order and self._oldest > self._newest_partial:
            self._put_in_order(row)
        if not self._in_order:
            self._enter(columns + row % self.num_rows * self.row_size)
        self._counts[row % self.num_rows] = count
        self._last += count
        self._rows = row + 1

    def state(self) -> PartState:
        """Return the list and its counts; the list itself only while it is not in order."""
        values = {
            "in_order": self._in_order,
            "newest_partial": self._newest_partial,
            "oldest": self._oldest,
            "first": self._first,
            "last": self._last,
            "rows": self._rows,
            "published": list(self.published),
        }
        listed = {} if self._in_order else {"list": self._list}
        return PartState(values, {"counts": torch.tensor(self._counts), **listed})

    def restore(self, state: PartState) -> None:
        """Go on from a state of the same sizes, in place.

        Raises:
            CheckpointError: Names what is none, or what does not add up.
        """
        read = read_listed(state, self.num_rows, self.row_size, self._list)
        if read.listed is None:
            torch.arange(len(self._list), out=self._list)
        else:
            self._list.copy_(read.listed)
        self._in_order, self._newest_partial = read.listed is None, read.newest_partial
        self._oldest, self._rows, self._counts = read.oldest, read.rows, read.counts
        self._first, self._last = read.first, read.first + read.count
        self.published = read.published
        self.window.copy_(torch.tensor(read.published))

    def _enter(self, new: Tensor) -> None:
        head = self._last % len(self._list)
        tail = min(len(new), len(self._list) - head)
        self._list[head : head + tail] = new[:tail]
        self._list[: len(new) - tail] = new[tail:]

    def _put_in_order(self, row: int) -> None:
        """Return to the initial list: all rows that may be drawn, up to `row`, are whole."""
        torch.arange(len(self._list), out=self._list)
        self._first, self._last = self._oldest * self.row_size, row * self.row_size
        self._in_order = True

    def forget(self, row: int) -> None:
        """Take `row` and all rows before it out of the draw."""
        while self._oldest <= row:
            self._first += self._counts[self._oldest % self.num_rows]
            self._oldest += 1

    def publish(self, first: int, count: int) -> None:
        """Write what changed into `window`; queued, not waited for."""
        for place, (old, new) in enumerate(zip(self.published, (first, count), strict=True)):
            if old != new:
                if self._on_host is None:
                    self.window[place].fill_(new)
                else:
                    self._on_host[place] = new
        self.published = (first, count)

    @property
    def mark(self) -> tuple[int, int]:
        """Return the oldest row that may be drawn, and the rows so far; see `changes`."""
        return self._oldest, self._rows

    def changes(self, mark: tuple[int, int]) -> tuple[list[Places], list[Places]]:
        """Return which flat transitions have left the list since a mark, and which have entered.

        Those that left come as whole rows, in which some may never have been in the list; those
        that entered and left again come as the former only.
        """
        oldest, rows = mark
        left = self._places_of(max(oldest, self._oldest - self.num_rows), self._oldest)
        new = range(max(rows, self._oldest), self._rows)
        count = sum(self._counts[row % self.num_rows] for row in new)
        if count == len(new) * self.row_size:
            return left, self._places_of(new.start, new.stop)
        numbers = torch.arange(self._last - count, self._last, device=self._list.device)
        return left, [self._list[numbers % len(self._list)]]

    def number_of(self, places: Tensor) -> Tensor:
        """Return the numbers of the transitions that lie at flat places [B] int64 now.

        A number belongs to one transition for ever: rows written before it times M, and its column.
        """
        row, column = places // self.row_size, places % self.row_size
        newest = self._rows - 1
        return (newest - (newest - row) % self.num_rows) * self.row_size + column

    def places_of(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the flat places [B] int64 of numbers, and whether each still lies there."""
        places = numbers % len(self._list)
        return places, self.number_of(places) == numbers

    def _places_of(self, row: int, stop: int) -> list[Places]:
        """Return the flat transitions of the rows from `row` to before `stop`."""
        places: list[Places] = []
        while row < stop:
            here = row % self.num_rows
            count = min(stop - row, self.num_rows - here)
            places.append(range(here * self.row_size, (here + count) * self.row_size))
            row += count
        return places

    @property
    def first(self) -> int:
        """Return how many transitions have left the list: the number of its oldest one."""
        return self._first

    @property
    def order(self) -> Tensor:
        """Return the list itself, [T * M] int64, a circle; never replaced."""
        return self._list

    def nth(self, n: Tensor, first: Tensor | None = None) -> Tensor:
        """Return the flat index of the n-th oldest transition for each of `n`.

        Args:
            n: Int64, any shape.
            first: Scalar int64 on the device that holds `first`, for graphs and compiled steps,
                which must read it anew each time; None reads it now.
        """
        if first is not None:
            return self._list.take((n + first).remainder_(len(self._list)))
        places = (n + self._first).remainder_(len(self._list))
        return places if self._in_order else self._list[places]


class FinalObservations:
    """Which row each of F places serves, and which rows point there.

    Args:
        size: Places, F.
        num_rows: Rows of the ring, T.
    """

    def __init__(self, size: int, num_rows: int) -> None:
        self._size, self._num_rows = size, num_rows
        self._used = 0  # places so far
        self._served = np.full(size, -1, np.int64)  # row that a place serves
        self._points_away = [False] * num_rows

    def state(self) -> PartState:
        """Return which rows the places serve, and which rows point to some."""
        served, away = torch.from_numpy(self._served), torch.tensor(self._points_away)
        return PartState({"used": self._used}, {"served": served, "points_away": away})

    def restore(self, state: PartState, rows: int) -> None:
        """Go on from a state of the same sizes, of a ring into which so many rows were written.

        Raises:
            CheckpointError: Names what is none.
        """
        used = state.whole("used")
        served = state.tensor("served", torch.from_numpy(self._served)).cpu()
        away = state.tensor("points_away", torch.tensor(self._points_away)).cpu()
        if len(served) and not -1 <= int(served.min()) <= int(served.max()) < max(rows, 1):
            raise state.refusal("served", f"not in [-1, {rows}) throughout")
        self._used, self._served[:] = used, served.numpy()
        self._points_away = [bool(flag) for flag in away.tolist()]

    def allocate(self, row: int, count: int) -> tuple[npt.NDArray[np.int64], int]:
        """Take the oldest places for last observations of a row.

        Returns:
            [count] places, counted from 0, and the newest row that they served until now, which
            can no longer be drawn, nor can the rows before it; -1 is none.
        """
        places = (self._used + np.arange(count)) % self._size
        lost = int(self._served[places].max(initial=-1))
        self._served[places] = row
        self._points_away[row % self._num_rows] = count > 0
        self._used += count
        return places, lost

    @property
    def used(self) -> int:
        """Return how many places were ever taken; place p is the p % F-th."""
        return self._used

    def take_back(self, row: int) -> bool:
        """Return whether an older row at this place of the ring points to final observations."""
        place = row % self._num_rows
        away, self._points_away[place] = self._points_away[place], False
        return away


def _on_host(window: Tensor) -> npt.NDArray[np.int64] | None:
    """Return the same memory as an array where the CPU holds it, or None."""
    return window.numpy() if window.is_cpu else None
