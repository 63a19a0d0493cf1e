"""Greedy actions for those who speak numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

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
) -> npt.NDArray[np.int64]:
    """Return the greedy action of an observation, or the actions of a batch of them.

    Args:
        policy: Acts.
        env: What it acts in.
        obs: [*O] or [B, *O].
        action_mask: [A] or [B, A] bool, what is allowed; None is everything.

    Returns:
        Int64 array, () or [B], in the numbers of the environment's action space.

    Raises:
        UsageError: A shape is neither.
    """
    array, shape = np.asarray(obs), env.obs_shape
    if array.shape not in {shape, (array.shape[:1] + shape)}:
        raise UsageError(
            f"observation of shape {array.shape}", f"the network takes {shape}", "Or a batch."
        )
    dtype, device = storage_dtype(env.obs_dtype), policy.network.flat.device
    batch = torch.as_tensor(array.reshape(-1, *shape), dtype=dtype, device=device)
    mask = None if action_mask is None else _masks(action_mask, len(batch), env, device)
    actions: npt.NDArray[np.int64] = policy.greedy(batch, mask).cpu().numpy()
    actions += env.first_action
    return actions.reshape(array.shape[: array.ndim - len(shape)])


def _masks(
    action_mask: npt.ArrayLike, batch: int, env: EnvDescription, device: torch.device
) -> torch.Tensor:
    array = np.asarray(action_mask, np.bool_)
    if array.size != batch * env.num_actions:
        raise UsageError(
            f"action_mask of shape {array.shape}",
            f"{batch} observations with {env.num_actions} actions need "
            f"({batch}, {env.num_actions})",
            "Or leave it out.",
        )
    return torch.as_tensor(array.reshape(batch, env.num_actions), device=device)
