"""How the observations of all environments come back to the caller."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Protocol

import numpy as np
from gymnasium.error import CustomSpaceError
from gymnasium.spaces import Space
from gymnasium.vector.utils import (
    concatenate,
    create_empty_array,
    create_shared_memory,
    read_from_shared_memory,
)

from fastdqn.envs.rows import Rows

__all__ = [
    "BlockObservations",
    "Observations",
    "SharedObservations",
    "TravellingObservations",
    "shared_memory_for",
]


class Observations(Protocol):
    """Reads the observations after a step or a reset."""

    def read(self, travelled: Iterator[Any], copy: bool) -> Any:
        """Return the observations of all environments.

        Args:
            travelled: Those that came with the answers, in order; of none where none travel.
            copy: Whether the caller may keep them.
        """


class BlockObservations:
    """They lie in the rows' own block: arrays of one shape and dtype."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def read(self, travelled: Iterator[Any], copy: bool) -> Any:  # noqa: ARG002
        """Return the block's array, or a copy."""
        return self.rows.obs.copy() if copy else self.rows.obs


class SharedObservations:
    """They lie in Gymnasium's shared memory: Dict, Tuple, Text and what they contain."""

    def __init__(self, space: Space[Any], memory: Any, num_envs: int) -> None:
        self.space, self.memory, self.num_envs = space, memory, num_envs

    def read(self, travelled: Iterator[Any], copy: bool) -> Any:  # noqa: ARG002
        """Return what the memory holds now; arrays are views without `copy`."""
        seen = read_from_shared_memory(self.space, self.memory, n=self.num_envs)
        return deepcopy(seen) if copy else seen


class TravellingObservations:
    """They come with the answers, pickled: any space, also the caller's own."""

    def __init__(self, space: Space[Any], num_envs: int) -> None:
        self.space = space
        self.joined: Any = create_empty_array(space, n=num_envs, fn=np.zeros)

    def read(self, travelled: Iterator[Any], copy: bool) -> Any:
        """Join what came; without `copy` the next call overwrites the arrays."""
        self.joined = concatenate(self.space, list(travelled), self.joined)
        return deepcopy(self.joined) if copy else self.joined


def shared_memory_for(space: Space[Any], num_envs: int, context: Any) -> Any:
    """Allocate Gymnasium's shared memory for observations that are no plain arrays.

    Raises:
        ValueError: The space is the caller's own; only travelling suits it.
    """
    try:
        return create_shared_memory(space, n=num_envs, ctx=context)
    except CustomSpaceError as error:
        raise ValueError(
            f"shared_memory=True does not suit the observation space {space}: pass "
            "shared_memory=False, with which observations travel one by one."
        ) from error
