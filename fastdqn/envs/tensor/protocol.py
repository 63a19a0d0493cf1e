"""Protocols of environments on the device, and which observations their spaces hold.

Tensors go in, tensors come out, and nothing waits for the host.

`TensorEnv` is all that an adapter for a simulator on the GPU has to implement (Isaac Lab,
ManiSkill, Brax, Playground). `PureTensorEnv` adds what lets a whole training iteration,
environment included, be compiled or recorded as one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium.spaces import Discrete, Space
from torch import Tensor

from fastdqn.envs.space_check import SpaceCheck

__all__ = ["PureTensorEnv", "TensorEnv", "TensorStep", "holds_integers", "membership_of"]


@dataclass(frozen=True, slots=True)
class TensorStep:
    """The result of one vector step, on the device of the environment.

    An environment may write into the same tensors at its next step: copy what you keep.

    Attributes:
        obs: [N, *O] what the policy acts on next; after an end, the first of the new episode.
        final_obs: [N, *O] the true next observation of this step; equal to `obs` where no
            episode ended. A transition's `next_obs` is this one.
        reward: [N] float32.
        terminated: [N] bool; the episode ended by itself, nothing follows.
        truncated: [N] bool; the episode was cut. Never True where `terminated` is.
    """

    obs: Tensor
    final_obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


@runtime_checkable
class TensorEnv(Protocol):
    """N environments on one device that begin a new episode within the step that ends the old.

    Attributes:
        env_id: Name in messages and files, such as `CartPole-v1`.
        num_envs: N, at least 1.
        device: Where every tensor lies, with its index (`cuda:0`, not `cuda`).
        single_observation_space: Of one environment; its shape is O, its dtype that of `obs`.
        single_action_space: Of one environment; with A actions.
    """

    env_id: str
    num_envs: int
    device: torch.device
    single_observation_space: Space[Any]
    single_action_space: Discrete

    def reset(self, seed: int) -> Tensor:
        """Begin new episodes everywhere and draw from `seed` from now on.

        Returns:
            [N, *O] their first observations.
        """
        ...

    def step(self, action: Tensor) -> TensorStep:
        """Take one step in every environment, and reset those that ended.

        Hot path: should neither loop over environments nor wait for the device.

        Args:
            action: [N] int64 on the device, in 0 ... A - 1 whatever the space's start is; read.
        """
        ...

    def close(self) -> None:
        """Release what the environment holds; a second call does nothing."""
        ...


@runtime_checkable
class PureTensorEnv(TensorEnv, Protocol):
    """A tensor environment whose step is a function of its state, the action and noise.

    Attributes:
        state: Everything that changes, each tensor [N, ...] on the device. The tuple and its
            tensors stay the same objects for life; `advance` and `reset` write into them.
        num_random: R, the uniform numbers that one environment needs for one step.
    """

    state: tuple[Tensor, ...]
    num_random: int

    def advance(self, action: Tensor, uniform: Tensor) -> TensorStep:
        """Do what `step` does with random numbers from outside.

        Writes `state` in place and has no other effect: it draws from no generator, never waits
        for the device, and compiles with `fullgraph=True`.

        Args:
            action: [N] int64 on the device, in 0 ... A - 1; read.
            uniform: [N, R] float32 in [0, 1), all of them independent; read.
        """
        ...


def holds_integers(space: Space[Any]) -> bool:
    """Return whether a space is one of integers, or of flags."""
    return np.dtype(space.dtype).kind != "f"


def membership_of(space: Space[Any], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function of values [N, *O]: which rows the space holds, [N] bool.

    Floats need only be finite: their bounds are often hints. Integers are compared with their
    bounds, unless those are the dtype's.

    Args:
        space: Of one observation.
        device: Where the values lie.
    """
    check = SpaceCheck(space, tuple(space.shape or ()), np.dtype(space.dtype))
    if not check.bounded:
        return _finite
    low, high = (_limit(bound, device) for bound in (check.low, check.high))

    def holds(values: Tensor) -> Tensor:
        fine: Tensor = (values >= low) & (values <= high)
        return fine.reshape(len(values), -1).all(1)

    return holds


def _finite(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    return torch.isfinite(values).reshape(len(values), -1).all(1)


def _limit(bound: Any, device: torch.device) -> Any:
    """Return a bound, as a plain number if it is the same everywhere."""
    if np.ndim(bound) == 0:
        return int(bound)
    return torch.as_tensor(np.asarray(bound, np.int64), device=device)
