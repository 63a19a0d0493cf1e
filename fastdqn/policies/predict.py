"""Greedy actions for callers who hold arrays, lists or tensors of any layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastdqn.envs.description import EnvDescription
from fastdqn.envs.masks import allowed_in
from fastdqn.envs.space_check import NUMBERS, SpaceCheck
from fastdqn.envs.vector_data import as_env_actions
from fastdqn.errors import UsageError, first_line
from fastdqn.policies.policy import Policy

__all__ = ["predict"]

Array = npt.NDArray[Any]


def predict(
    policy: Policy,
    env: EnvDescription,
    obs: npt.ArrayLike,
    action_mask: npt.ArrayLike | None = None,
) -> npt.NDArray[Any]:
    """Return the greedy action of an observation, or the actions of a batch of them.

    Observations are copied where the network cannot read them in place: other strides, byte orders
    and dtypes, read-only memory, tensors on other devices or with a gradient.

    Args:
        policy: Acts.
        env: What it acts in.
        obs: [*O] or [B, *O]; each number must be one that the space's dtype holds.
        action_mask: [A] or [B, A], True or 1 for what is allowed; None is everything.

    Returns:
        Array, () or [B], in the numbers and the dtype of the environment's action space.

    Raises:
        UsageError: The observation or the mask has another shape, or holds what cannot be in it.
    """
    array, shape = _array_of(obs, "observation"), env.obs_shape
    if array.shape not in {shape, (array.shape[:1] + shape)}:
        raise UsageError(
            f"observation of shape {array.shape}", f"the network takes {shape}", "Or a batch."
        )
    asked = array.shape[: array.ndim - len(shape)]
    batch = _tensor_of(array.reshape(-1, *shape), env, policy.network.flat.device)
    mask = None
    if action_mask is not None:
        allowed = _allowed(_array_of(action_mask, "action_mask"), (*asked, env.num_actions))
        mask = torch.as_tensor(allowed.reshape(-1, env.num_actions), device=batch.device)
    actions: npt.NDArray[np.int64] = policy.greedy(batch, mask).cpu().numpy()
    return as_env_actions(actions, env).reshape(asked)


def _array_of(values: Any, name: str) -> Array:
    """Return numbers as an array, copied only where they must be.

    Raises:
        UsageError: They are no numbers, or of several shapes.
    """
    if isinstance(values, tuple) and len(values) == 2 and isinstance(values[1], dict):
        reason = "it is a pair of an observation and an info, as reset returns"
        raise UsageError(name, reason, "Take it apart: obs, info = env.reset().")
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.dtype is torch.bfloat16 else values).numpy()
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = f"it cannot become one array ({first_line(error)})"
        raise UsageError(name, reason, "Pass an array, a list or a tensor of numbers.") from error
    if array.dtype.kind not in NUMBERS:
        raise UsageError(
            f"{name} of dtype {array.dtype}", "it holds no real numbers", "Pass real numbers."
        )
    return array


def _tensor_of(array: Array, env: EnvDescription, device: torch.device) -> torch.Tensor:
    """Return observations [B, *O] as the network takes them; always a copy.

    Raises:
        UsageError: A number is none that the space's dtype, or its counts, hold.
    """
    stored = "float32" if env.obs_dtype == "float64" else env.obs_dtype
    if array.dtype == stored:
        stored_obs = np.array(array, stored, order="C")
    else:
        with np.errstate(all="ignore"):
            stored_obs = np.array(array, stored, order="C")
    if stored_obs.dtype.kind != "f":  # whole numbers that would be cut or wrapped, too
        wrong = SpaceCheck(env.obs_space, env.obs_shape, np.dtype(env.obs_dtype)).wrong(array)
        if wrong is not None:
            raise UsageError(
                f"observation with {array[wrong].flat[0]}",
                f"it is none of {env.obs_space}",
                "Pass observations as the environment returns them.",
            )
    elif not np.isfinite(stored_obs).all():
        raise UsageError(
            f"observation with {array[~np.isfinite(stored_obs)].flat[0]}",
            f"it is no finite number of {stored}",
            "Pass finite numbers.",
        )
    return torch.from_numpy(stored_obs).to(device)


def _allowed(mask: Array, wanted: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    if mask.shape != wanted:
        raise UsageError(
            f"action_mask of shape {mask.shape}",
            f"{wanted} says what is allowed in these observations",
            "Or leave it out.",
        )
    return np.array(allowed_in(mask, "action_mask"))
