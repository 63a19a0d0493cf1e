"""Episodes of many equal environments: counting, limits, new starts, with no Python loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor

from fastdqn.device import resolve_device
from fastdqn.envs.tensor.protocol import TensorStep
from fastdqn.errors import UsageError

__all__ = ["EpisodicEnv"]


class EpisodicEnv(ABC):
    """A `PureTensorEnv` whose subclass adds the physics.

    The state is (physics [N, S], env steps of the running episode [N] int32).

    Args:
        num_envs: N, at least 1.
        device: `cpu`, `cuda`, `cuda:N`, `mps` or `auto`.
        dtype: Of the physics. float64 is for comparisons, and not for MPS, which lacks it;
            observations and rewards are float32 either way.
        max_episode_steps: Env steps after which an episode is cut (truncated), at least 1; None is
            the limit that Gymnasium registers.

    Attributes:
        num_physics: S.
        num_actions: A.
        first_low: Least value of a first state's parts, which are uniform.
        first_high: Largest.
        obs_low: [*O] float32, least observations.
        obs_high: [*O] float32, largest.

    Raises:
        UsageError: One of them cannot be used.
    """

    env_id: str
    num_random: int
    num_physics: int
    num_actions: int
    max_episode_steps: int
    first_low: float
    first_high: float
    obs_low: npt.NDArray[np.float32]
    obs_high: npt.NDArray[np.float32]

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        max_episode_steps: int | None = None,
    ) -> None:
        place = resolve_device(str(device))
        if max_episode_steps is not None:
            self.max_episode_steps = max_episode_steps
        _check(num_envs, place, dtype, self.max_episode_steps)
        self.single_observation_space: Space[Any] = Box(
            self.obs_low, self.obs_high, dtype=np.float32
        )
        self.single_action_space = Discrete(self.num_actions)
        physics = torch.zeros(num_envs, self.num_physics, dtype=dtype, device=place)
        steps = torch.zeros(num_envs, dtype=torch.int32, device=place)
        self.state: tuple[Tensor, ...] = (physics, steps)
        self.num_envs = num_envs
        self.device = physics.device
        self._uniform = torch.zeros(num_envs, self.num_random, device=place)
        self._generator = torch.Generator(self.device)
        self.reset(0)

    def reset(self, seed: int) -> Tensor:
        """Begin new episodes everywhere; see `TensorEnv`. Returns a new tensor."""
        physics, steps = self.state
        self._generator.manual_seed(seed)
        first = self._start(self._draw())
        physics.copy_(first)
        steps.zero_()
        return self._observe(first)

    def step(self, action: Tensor) -> TensorStep:
        """Take one step; see `TensorEnv`. No later step writes into the tensors returned."""
        return self.advance(action, self._draw())

    def advance(self, action: Tensor, uniform: Tensor) -> TensorStep:
        """Step with random numbers from outside, which only ended environments use."""
        physics, steps = self.state
        moved, reward, terminated = self._move(physics, action)
        taken = steps + 1
        truncated = (taken >= self.max_episode_steps) & ~terminated
        ended = terminated | truncated
        following = torch.where(ended.unsqueeze(1), self._start(uniform), moved)
        physics.copy_(following)
        steps.copy_(taken.masked_fill(ended, 0))
        obs, final_obs = self._observe(following), self._observe(moved)
        return TensorStep(obs, final_obs, reward, terminated, truncated)

    def close(self) -> None:
        """Do nothing: there are only tensors to free."""
        return

    def _draw(self) -> Tensor:
        return torch.rand(self._uniform.shape, generator=self._generator, out=self._uniform)

    def _start(self, uniform: Tensor) -> Tensor:
        """Turn [N, R] float32 in [0, 1) into the physics [N, S] of new episodes, a new tensor.

        In float32 whatever the dtype is: Gymnasium rounds its first states too.
        """
        first = uniform * (self.first_high - self.first_low) + self.first_low
        return first.to(self.state[0].dtype)

    @abstractmethod
    def _move(self, physics: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the physics [N, S] after one step, reward [N] float32, terminated [N] bool.

        All three are new tensors; `physics` is read.
        """

    def _observe(self, physics: Tensor) -> Tensor:
        """Return the observations [N, *O] float32 of the physics [N, S]; may be `physics`."""
        return physics.to(torch.float32)


def _check(num_envs: int, device: torch.device, dtype: torch.dtype, max_episode_steps: int) -> None:
    if num_envs < 1:
        raise UsageError(f"--num-envs {num_envs}", "there is nothing to step", "Use 1 or more.")
    if max_episode_steps < 1:
        raise UsageError(
            f"max_episode_steps={max_episode_steps}", "an episode has a step", "Use 1 or more."
        )
    if dtype not in {torch.float32, torch.float64}:
        raise UsageError(
            f"dtype={dtype}",
            "the physics are held in float32 or float64",
            "Leave dtype out: float32 is what the observations have.",
        )
    if dtype is torch.float64 and device.type == "mps":
        raise UsageError(f"dtype={dtype}", "MPS has no float64", "Leave dtype out, or use the CPU.")
