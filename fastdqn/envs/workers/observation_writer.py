"""Writers of observations: one per environment, into the block or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdqn.envs.space_check import NUMBERS, Bounds, SpaceCheck

__all__ = ["CallingWriter", "CheckedWriter", "NumberWriter", "writers_over"]


class CheckedWriter:
    """Writes observations of any dtype and shape after comparing them with the space.

    Args:
        block: [N, *O] of the environments of a host.
        index: Which of them.
        check: What the space holds.
        env: Index of the environment in the whole vector, for messages.
    """

    def __init__(self, block: npt.NDArray[Any], index: int, check: SpaceCheck, env: int) -> None:
        self._row = block[index, ...]  # a view, also where an observation is one number
        self._check, self._env = check, env
        self._dtype, self._shape = check.dtype, check.shape
        self._floats = check.dtype.kind == "f"
        self._bounds = Bounds(self._row, check) if check.bounded else None

    def __setitem__(self, _: slice, obs: Any) -> None:
        """Copy `obs` [*O] into the block; nothing is broadcast.

        Raises:
            UsageError: The observation space does not hold it.
        """
        if (
            type(obs) is not np.ndarray
            or obs.shape != self._shape
            or not (obs.dtype == self._dtype or (self._floats and obs.dtype.kind in NUMBERS))
        ):
            obs = self._check.array_of(obs, self._env)
        self._row[...] = obs
        if self._bounds is not None and self._bounds.are_left():
            self._check.refuse_outside(self._row, self._env)


class NumberWriter:
    """A `CheckedWriter` of observations that are one whole number, within bounds."""

    def __init__(self, block: npt.NDArray[Any], index: int, check: SpaceCheck, env: int) -> None:
        column: Any = block
        self._column: Any = memoryview(column)
        self._index, self._check, self._env = index, check, env
        self._low, self._high = int(check.low), int(check.high)

    def __setitem__(self, _: slice, obs: Any) -> None:
        """Copy `obs` into the block; see `CheckedWriter`."""
        if type(obs) is not int and not isinstance(obs, np.integer):
            obs = self._check.array_of(obs, self._env).item()
        if not self._low <= obs <= self._high:
            raise self._check.refusal(np.asarray(obs), np.ones((), np.bool_), self._env)
        self._column[self._index] = obs


class CallingWriter:
    """Passes observations that do not lie in the block to a function."""

    def __init__(self, write: Callable[[Any], None]) -> None:
        self._write = write

    def __setitem__(self, _: slice, obs: Any) -> None:
        """Pass `obs` on."""
        self._write(obs)


def writers_over(
    block: npt.NDArray[Any], checks: Sequence[SpaceCheck], first_env: int
) -> list[Any]:
    """Return a writer per environment, used as `writer[:] = obs`.

    Most are memoryviews, which take half of the time of an array and refuse an observation of
    another dtype or shape with a TypeError or a ValueError; a `CheckedWriter` then takes it.

    Args:
        block: [N, *O] of the environments of a host; written through the writers.
        checks: One per environment.
        first_env: Index of the first environment in the whole vector.
    """
    writers: list[Any] = []
    for index, check in enumerate(checks):
        if block.ndim == 2 and not check.bounded:
            writers.append(memoryview(block[index]))
            continue
        one_number = block.ndim == 1 and check.bounded and block.dtype.kind in "iu"
        kind = NumberWriter if one_number else CheckedWriter
        writers.append(kind(block, index, check, first_env + index))
    return writers
