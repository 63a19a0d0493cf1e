"""Actions and observations of all environments, as the caller has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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

from fastdqn.envs.workers.settings import PoolSettings
from fastdqn.envs.workers.shared_block import SharedBlock

__all__ = ["as_env_actions", "as_rows", "reader_of", "shared_memory_for", "single_actions"]


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


def reader_of(settings: PoolSettings, rows: SharedBlock) -> Callable[[Sequence[Any]], Any]:
    """Return a function that returns the observations of all environments; not a copy.

    Its argument holds the observations that were pickled with the answers, in order; they are
    batched in arrays that the next call overwrites. Others lie in the block, or in Gymnasium's
    shared memory, of which arrays are views.
    """
    space, memory, num_envs = settings.obs_space, settings.shared_obs, settings.spec.num_envs
    if space is None:
        return lambda _: rows.obs
    if memory is not None:
        look = partial(read_from_shared_memory, space, memory, n=num_envs)
        views = None if _has_words(space) else look()
        return lambda _: look() if views is None else views
    joined: Any = create_empty_array(space, n=num_envs, fn=np.zeros)

    def read(pickled: Sequence[Any]) -> Any:
        nonlocal joined
        if pickled:
            joined = concatenate(space, pickled, joined)
        return joined

    return read


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
