"""The caller's actions as environments take them: in the block, or pickled one by one."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Space
from gymnasium.vector.utils import iterate

__all__ = ["as_env_actions", "as_rows", "single_actions"]


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
    """Return actions as an array for the block, if they fit.

    Args:
        actions: The caller's.
        target: [N, *A] where they would lie.

    Returns:
        [N, *A], or None where each must be pickled to reach its environment unchanged.
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
