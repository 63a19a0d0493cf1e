"""Writers of observations: one per environment, into the block or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector.utils import write_to_shared_memory

from fastdqn.envs.space_check import NUMBERS, Bounds, SpaceCheck

__all__ = ["CheckedWriter", "NumberWriter", "PickledWriter", "SharedWriter", "writers_over"]


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
    """Writes observations that are one whole number, within bounds.

    Args:
        block: [N] integers, of the environments of a host.
        index: Which of them.
        check: What the space holds; bounded.
        env: Index of the environment in the whole vector, for messages.
    """

    def __init__(self, block: npt.NDArray[Any], index: int, check: SpaceCheck, env: int) -> None:
        column: Any = block
        self._column: Any = memoryview(column)
        self._index, self._check, self._env = index, check, env
        self._low, self._high = int(check.low), int(check.high)

    def __setitem__(self, _: slice, obs: Any) -> None:
        """Copy `obs` into the block.

        Raises:
            UsageError: The observation space does not hold it.
        """
        if type(obs) is not int and not isinstance(obs, np.integer):
            obs = self._check.array_of(obs, self._env).item()
        if not self._low <= obs <= self._high:
            raise self._check.refusal(np.asarray(obs), np.ones((), np.bool_), self._env)
        self._column[self._index] = obs


class PickledWriter:
    """Keeps an observation that is pickled with the answer.

    Args:
        places: One per environment of a host; written.
        index: Which of them.
    """

    def __init__(self, places: list[Any], index: int) -> None:
        self._places, self._index = places, index

    def __setitem__(self, _: slice, obs: Any) -> None:
        """Keep `obs` itself."""
        self._places[self._index] = obs


class SharedWriter:
    """Writes an observation into Gymnasium's own shared memory.

    Args:
        space: Of one observation.
        memory: Of all environments.
        env: Which of them.
    """

    def __init__(self, space: Any, memory: Any, env: int) -> None:
        self._space, self._memory, self._env = space, memory, env

    def __setitem__(self, _: slice, obs: Any) -> None:
        """Copy `obs`, part by part."""
        write_to_shared_memory(self._space, self._env, obs, self._memory)


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
    lines: list[Any] = []
    for index, check in enumerate(checks):
        if block.ndim == 2 and not check.bounded:
            lines.append(memoryview(block[index]))
            continue
        one_number = block.ndim == 1 and check.bounded and block.dtype.kind in "iu"
        kind = NumberWriter if one_number else CheckedWriter
        lines.append(kind(block, index, check, first_env + index))
    return lines
