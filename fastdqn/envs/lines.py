"""Lines of the block: where each environment's observation is written, as quickly as it can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CheckedLine", "lines_over"]


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


def lines_over(block: npt.NDArray[Any]) -> list[Any]:
    """Return what takes the observation of each environment by `line[:] = obs`.

    A memoryview takes a third of the time of an array and refuses, with a TypeError or a
    ValueError, what is not of its very dtype and shape; then a `CheckedLine` is to have it.

    Args:
        block: [N, *O] of the environments of a host; written through the lines.
    """
    if block.ndim == 2:
        return [memoryview(row) for row in block]
    return [CheckedLine(block, index) for index in range(len(block))]
