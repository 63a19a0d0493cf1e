"""Lines: where each environment's observation goes, in the block as quickly as it can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector.utils import write_to_shared_memory

__all__ = ["CheckedLine", "SharedLine", "TravellingLine", "lines_over"]


class CheckedLine:
    """Takes an observation of another dtype than the block's, or of several dimensions.

    Args:
        block: [N, *O] of the environments of a host.
        index: Which of them.
    """

    def __init__(self, block: npt.NDArray[Any], index: int) -> None:
        self._row = block[index, ...]  # a view, also where an observation is one number

    def __setitem__(self, _: slice, obs: Any) -> None:
        """Copy `obs` [*O] into the block; nothing is broadcast.

        Raises:
            ValueError: Its shape is not that of the observation space.
        """
        if np.shape(obs) != self._row.shape:
            said = f"the observation space says {self._row.shape}"
            raise ValueError(f"it returned an observation of shape {np.shape(obs)}, {said}")
        self._row[...] = obs


class TravellingLine:
    """Keeps an observation that travels with the answer.

    Args:
        places: One per environment of a host.
        index: Which of them.
    """

    def __init__(self, places: list[Any], index: int) -> None:
        self._places, self._index = places, index

    def __setitem__(self, _: slice, obs: Any) -> None:
        """Keep `obs` itself."""
        self._places[self._index] = obs


class SharedLine:
    """Takes an observation into Gymnasium's own shared memory.

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


def lines_over(block: npt.NDArray[Any]) -> list[Any]:
    """Return what takes the observation of each environment by `line[:] = obs`.

    A memoryview takes half of the time of an array and refuses, with a TypeError or a
    ValueError, what is not of its very dtype and shape; then a `CheckedLine` is to have it.

    Args:
        block: [N, *O] of the environments of a host; written through the lines.
    """
    if block.ndim == 2:
        return [memoryview(row) for row in block]
    return [CheckedLine(block, index) for index in range(len(block))]
