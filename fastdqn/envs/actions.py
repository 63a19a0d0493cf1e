"""How the caller's actions go to the environments: in the block, or each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Discrete, Space
from gymnasium.vector.utils import iterate

__all__ = ["as_rows", "one_by_one"]


def as_rows(actions: Any, space: Space[Any], goal: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Return actions that the block can take as they are.

    Args:
        actions: What the caller gave.
        space: Of one action.
        goal: [N, *A] where they would lie.

    Returns:
        [N, *A], or None where each must travel by itself to arrive as the caller gave it.

    Raises:
        ValueError: An action of a Discrete space that is not in it, or too few or too many.
    """
    _refuse_length(len(actions), len(goal))
    if not isinstance(actions, np.ndarray):
        if isinstance(space, Discrete):
            _refuse_out_of_range(np.asarray(actions), space)
        return None
    if isinstance(space, Discrete):
        _refuse_out_of_range(actions, space)
        return actions
    return actions if actions.shape == goal.shape and actions.dtype == goal.dtype else None


def one_by_one(actions: Any, batched: Space[Any], num_envs: int) -> list[Any]:
    """Return the action of each environment as Gymnasium hands it over.

    Raises:
        ValueError: Too few or too many.
    """
    singles = list(iterate(batched, actions))
    _refuse_length(len(singles), num_envs)
    return singles


def _refuse_length(got: int, num_envs: int) -> None:
    if got != num_envs:
        who = f"environment {got} has none" if got < num_envs else f"there is no {num_envs}"
        raise ValueError(f"{got} actions for {num_envs} environments: {who}")


def _refuse_out_of_range(actions: npt.NDArray[Any], space: Discrete[Any]) -> None:
    """Refuse anything but one action of a Discrete space per environment."""
    if actions.ndim != 1 or actions.dtype.kind not in "iu":
        raise ValueError(
            f"actions of shape {actions.shape} and dtype {actions.dtype}: "
            f"each environment takes one whole number of {space}"
        )
    wrong = (actions < space.start) | (actions >= space.start + space.n)
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"action {actions[index]} of environment {index} is not in {space}")
