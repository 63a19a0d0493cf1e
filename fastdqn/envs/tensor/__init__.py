"""Environments on the device, with tensors instead of arrays, and their ids.

This room loads PyTorch, so modules of worker processes must not import it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastdqn.envs.tensor.acrobot import Acrobot
from fastdqn.envs.tensor.cartpole import CartPole
from fastdqn.envs.tensor.mountain_car import MountainCar
from fastdqn.envs.tensor.protocol import PureTensorEnv, TensorEnv, TensorStep
from fastdqn.errors import UsageError

__all__ = [
    "TENSOR_ENVS",
    "Acrobot",
    "CartPole",
    "MountainCar",
    "PureTensorEnv",
    "TensorEnv",
    "TensorStep",
    "make_tensor_env",
]

TENSOR_ENVS: dict[str, Callable[..., PureTensorEnv]] = {
    kind.env_id: kind for kind in (Acrobot, CartPole, MountainCar)
}
"""Id -> constructor from `num_envs` and `device`; add your own to train on it by id."""


def make_tensor_env(env_id: str, num_envs: int, device: torch.device | str) -> PureTensorEnv:
    """Build N environments on the device, with the settings that Gymnasium registers for the id.

    Args:
        env_id: A key of `TENSOR_ENVS`.
        num_envs: N, at least 1.
        device: `cpu`, `cuda`, `cuda:N`, `mps` or `auto`.

    Raises:
        UsageError: The id has no tensor environment, or the numbers or the device cannot be used.
    """
    if env_id not in TENSOR_ENVS:
        raise UsageError(
            f"--env-id {env_id}",
            f"no environment of this id lives on the device, only {', '.join(TENSOR_ENVS)}",
            "Use --vectorizer grouped, which steps any Gymnasium environment.",
        )
    return TENSOR_ENVS[env_id](num_envs, device)
