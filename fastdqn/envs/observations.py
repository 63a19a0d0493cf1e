"""Observations of all environments, as the caller gets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium.error import CustomSpaceError
from gymnasium.spaces import Dict, OneOf, Space, Text, Tuple
from gymnasium.vector.utils import (
    concatenate,
    create_empty_array,
    create_shared_memory,
    read_from_shared_memory,
)

from fastdqn.envs.workers.settings import PoolSettings
from fastdqn.envs.workers.shared_block import SharedBlock

__all__ = [
    "BlockObservations",
    "Observations",
    "PickledObservations",
    "SharedObservations",
    "reader_of",
    "shared_memory_for",
]


class Observations(Protocol):
    """Reads the observations after a step or a reset."""

    def read(self, travelled: Sequence[Any] | None = None) -> Any:
        """Return the observations of all environments; not a copy.

        Args:
            travelled: Observations pickled with the answers, in order; None without any.
        """


class BlockObservations:
    """Observations in the shared block: arrays of one shape and dtype."""

    def __init__(self, rows: SharedBlock) -> None:
        self.rows = rows

    def read(self, travelled: Sequence[Any] | None = None) -> Any:  # noqa: ARG002
        """Return the block's array."""
        return self.rows.obs


class SharedObservations:
    """Observations in Gymnasium's shared memory: Dict, Tuple, Text and their parts."""

    def __init__(self, space: Space[Any], memory: Any, num_envs: int) -> None:
        self.space, self.memory, self.num_envs = space, memory, num_envs
        self._views = None if _has_words(space) else self._look()

    def _look(self) -> Any:
        return read_from_shared_memory(self.space, self.memory, n=self.num_envs)

    def read(self, travelled: Sequence[Any] | None = None) -> Any:  # noqa: ARG002
        """Return the observations in the memory; arrays are views of it."""
        return self._look() if self._views is None else self._views


class PickledObservations:
    """Observations pickled with the answers: any space, also the caller's own."""

    def __init__(self, space: Space[Any], num_envs: int) -> None:
        self.space = space
        self._joined: Any = create_empty_array(space, n=num_envs, fn=np.zeros)

    def read(self, travelled: Sequence[Any] | None = None) -> Any:
        """Batch the observations; the next call overwrites the arrays."""
        if travelled:
            self._joined = concatenate(self.space, travelled, self._joined)
        return self._joined


def reader_of(settings: PoolSettings, rows: SharedBlock) -> Observations:
    """Return the reader of a pool's observations, wherever its hosts leave them."""
    space, memory, num_envs = settings.obs_space, settings.shared_obs, settings.spec.num_envs
    if space is None:
        return BlockObservations(rows)
    if memory is None:
        return PickledObservations(space, num_envs)
    return SharedObservations(space, memory, num_envs)


def _has_words(space: Space[Any]) -> bool:
    """Return whether reading the memory of this space copies: words and choices are no views."""
    if isinstance(space, Dict):
        return any(map(_has_words, space.values()))
    if isinstance(space, Tuple):
        return any(map(_has_words, space.spaces))
    return isinstance(space, Text | OneOf)


def shared_memory_for(space: Space[Any], num_envs: int, context: Any) -> Any:
    """Allocate Gymnasium's shared memory for observations that are no plain arrays.

    Raises:
        ValueError: The space is the caller's own; its observations can only be pickled.
    """
    try:
        return create_shared_memory(space, n=num_envs, ctx=context)
    except CustomSpaceError as error:
        raise ValueError(
            "Using `AsyncVector(..., shared_memory=True)` caused an error, you can disable this "
            "feature with `shared_memory=False` however this is slower."
        ) from error
