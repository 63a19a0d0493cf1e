"""Greedy actions for those who speak numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastdqn.envs.actions import as_env_counts
from fastdqn.envs.make import EnvDescription
from fastdqn.errors import UsageError
from fastdqn.policy import Policy
from fastdqn.transition import storage_dtype

__all__ = ["predict"]


def predict(
    policy: Policy,
    env: EnvDescription,
    obs: npt.ArrayLike,
    action_mask: npt.ArrayLike | None = None,
) -> npt.NDArray[Any]:
    """Return the greedy action of an observation, or the actions of a batch of them.

    Args:
        policy: Acts.
        env: What it acts in.
        obs: [*O] or [B, *O].
        action_mask: [A] or [B, A] bool, what is allowed; None is everything.

    Returns:
        Array, () or [B], in the numbers and the dtype of the environment's action space.

    Raises:
        UsageError: The observation or the mask has another shape.
    """
    array, shape = np.asarray(obs), env.obs_shape
    if array.shape not in {shape, (array.shape[:1] + shape)}:
        raise UsageError(
            f"observation of shape {array.shape}", f"the network takes {shape}", "Or a batch."
        )
    dtype, device = storage_dtype(env.obs_dtype), policy.network.flat.device
    batch = torch.as_tensor(array.reshape(-1, *shape), dtype=dtype, device=device)
    asked = array.shape[: array.ndim - len(shape)]
    mask = None if action_mask is None else _masks(action_mask, asked, env.num_actions, device)
    actions: npt.NDArray[np.int64] = policy.greedy(batch, mask).cpu().numpy()
    return as_env_counts(actions, env).reshape(asked)


def _masks(
    action_mask: npt.ArrayLike, asked: tuple[int, ...], num_actions: int, device: torch.device
) -> torch.Tensor:
    array, wanted = np.asarray(action_mask, np.bool_), (*asked, num_actions)
    if array.shape != wanted:
        raise UsageError(
            f"action_mask of shape {array.shape}",
            f"{wanted} says what is allowed in these observations",
            "Or leave it out.",
        )
    return torch.as_tensor(array.reshape(-1, num_actions), device=device)
