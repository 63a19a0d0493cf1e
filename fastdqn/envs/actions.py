"""How the caller's actions go to the environments: in the block, or each by itself."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Space
from gymnasium.vector.utils import iterate

__all__ = ["as_env_counts", "as_rows", "one_by_one"]


class Counted(Protocol):
    """How an environment counts its actions; an EnvDescription."""

    @property
    def first_action(self) -> int:
        """The smallest action."""

    @property
    def action_dtype(self) -> str:
        """Dtype of the action space, by name."""


def as_env_counts(actions: npt.NDArray[np.int64], env: Counted) -> npt.NDArray[Any]:
    """Return actions counted from 0 as the environment counts them, in its space's own dtype.

    Args:
        actions: Int64, any shape, each in [0, A).
        env: Its last action fits into int64 and into its own dtype.

    Returns:
        A copy, of the dtype of the action space.
    """
    return (actions + env.first_action).astype(env.action_dtype, copy=False)


def as_rows(actions: Any, goal: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Return actions that the block can take as they are.

    Args:
        actions: What the caller gave.
        goal: [N, *A] where they would lie.

    Returns:
        [N, *A], or None where each must travel by itself to arrive as the caller gave it.
    """
    if not isinstance(actions, np.ndarray):
        return None
    return actions if (actions.shape, actions.dtype) == (goal.shape, goal.dtype) else None


def one_by_one(actions: Any, batched: Space[Any], num_envs: int) -> list[Any]:
    """Return the action of each environment as Gymnasium hands it over.

    Raises:
        ValueError: Too few or too many; names the environment that has none.
    """
    singles = list(iterate(batched, actions))
    if len(singles) != num_envs:
        short = len(singles) < num_envs
        who = f"environment {len(singles)} has none" if short else f"there is no {num_envs}"
        raise ValueError(f"{len(singles)} actions for {num_envs} environments: {who}")
    return singles
