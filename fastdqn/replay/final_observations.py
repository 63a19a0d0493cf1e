"""The places behind the ring for last observations: a second, smaller circle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["FinalObservations"]


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

    def take_back(self, row: int) -> bool:
        """Return whether an older row at this place of the ring points to final observations."""
        place = row % self._num_rows
        away, self._points_away[place] = self._points_away[place], False
        return away
