"""Actions and observations of all environments, as the caller has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.error import CustomSpaceError
from gymnasium.spaces import Dict, OneOf, Space, Text, Tuple
from gymnasium.vector.utils import (
    concatenate,
    create_empty_array,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
)

__all__ = ["Observations", "as_env_actions", "as_rows", "shared_memory_for", "single_actions"]


class ActionSpaceInfo(Protocol):
    """First action and dtype of an action space, e.g. an EnvDescription."""

    @property
    def first_action(self) -> int:
        """The smallest action."""

    @property
    def action_dtype(self) -> str:
        """Dtype of the action space, by name."""


def as_env_actions(actions: npt.NDArray[np.int64], env: ActionSpaceInfo) -> npt.NDArray[Any]:
    """Return actions counted from 0 as actions of the environment, in its space's dtype.

    Args:
        actions: Int64, any shape, each in [0, A).
        env: Its last action fits into int64 and into its own dtype.

    Returns:
        A copy, of the dtype of the action space.
    """
    return (actions + env.first_action).astype(env.action_dtype, copy=False)


def as_rows(actions: Any, target: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Return the caller's actions if they fit into `target` [N, *A], where they would lie.

    Others are pickled one by one, to reach their environments unchanged: None.
    """
    if not isinstance(actions, np.ndarray):
        return None
    return actions if (actions.shape, actions.dtype) == (target.shape, target.dtype) else None


def single_actions(actions: Any, batched: Space[Any], num_envs: int) -> list[Any]:
    """Return one action per environment, as Gymnasium's vectors do.

    Raises:
        ValueError: Too few or too many; names the environment without one.
    """
    singles = list(iterate(batched, actions))
    if len(singles) != num_envs:
        short = len(singles) < num_envs
        who = f"environment {len(singles)} has none" if short else f"there is no {num_envs}"
        raise ValueError(f"{len(singles)} actions for {num_envs} environments: {who}")
    return singles


class Observations:
    """The observations after a step or a reset; not copies.

    Args:
        space: Of one observation.
        num_envs: Environments, N.
        in_block: [N, *O] where they lie in the shared block: arrays of one shape and dtype.
        memory: Gymnasium's shared memory where they lie there: Dict, Tuple, Text and their parts.
            Without either they are pickled with the answers: any space, also the caller's own.
    """

    def __init__(
        self, space: Space[Any], num_envs: int, in_block: Any = None, memory: Any = None
    ) -> None:
        self._space, self._num_envs, self._memory = space, num_envs, memory
        self._copied = memory is not None and _has_words(space)
        if in_block is not None:
            self._now = in_block
        elif memory is not None:
            self._now = None if self._copied else self._look()
        else:
            self._now = create_empty_array(space, n=num_envs, fn=np.zeros)

    def _look(self) -> Any:
        return read_from_shared_memory(self._space, self._memory, n=self._num_envs)

    def read(self, travelled: Sequence[Any] = ()) -> Any:
        """Return the observations of all environments; the next step overwrites arrays.

        Args:
            travelled: Observations pickled with the answers, in order.
        """
        if travelled:
            self._now = concatenate(self._space, travelled, self._now)
        return self._look() if self._copied else self._now


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
