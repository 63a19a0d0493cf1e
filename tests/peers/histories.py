"""Random histories of environments, written into a ring and into a buffer of another library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box, Discrete

from fastdqn.replay import ReplayBuffer
from fastdqn.transition import Transitions

__all__ = [
    "ACTIONS",
    "VectorStep",
    "add",
    "history",
    "ring_of",
    "rows_of",
    "sb3_buffer",
    "sb3_rows_of",
    "write",
]

ACTIONS = 5
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class VectorStep:
    """One step of N environments; observations [N, 2] are the environment and a serial number.

    Attributes:
        obs: What they showed before.
        action: [N] int64.
        reward: [N] float32.
        terminated: [N] bool.
        truncated: [N] bool; both may be true.
        next_obs: What the step led to; at the end of an episode its last observation.
        shown: What they show afterwards; at an end the next episode's first observation.
    """

    obs: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    next_obs: Array
    shown: Array

    @property
    def done(self) -> Array:
        """[N] bool, where an episode ended."""
        ended: Array = self.terminated | self.truncated
        return ended


def history(seed: int, num_envs: int, steps: int, ends: float) -> Iterator[VectorStep]:
    """Return random vector steps.

    Args:
        seed: Decides everything.
        num_envs: N.
        steps: How many.
        ends: Probability that a step terminates, and that it is truncated.
    """
    dice, envs = np.random.default_rng(seed), np.arange(num_envs, dtype=np.float32)
    serial = 0

    def observed() -> Array:
        nonlocal serial
        serial += 1
        return np.stack((envs, np.full(num_envs, serial, np.float32)), 1)

    obs = observed()
    for _ in range(steps):
        terminated, truncated = dice.random((2, num_envs)) < ends
        action = dice.integers(ACTIONS, size=num_envs)
        reward = dice.normal(size=num_envs).astype(np.float32)
        following, first = observed(), observed()
        shown = np.where((terminated | truncated)[:, None], first, following)
        yield VectorStep(obs, action, reward, terminated, truncated, following, shown)
        obs = shown


def ring_of(capacity: int, num_envs: int, **settings: Any) -> ReplayBuffer:
    """Return a ring for histories; `begin` is done by the first `write`."""
    return ReplayBuffer(capacity, num_envs, (2,), **settings)


def write(ring: ReplayBuffer, step: VectorStep) -> None:
    """Write a vector step; every one of a history, in order."""
    if not len(ring):
        ring.begin(step.obs)
    flags = step.terminated, step.truncated
    ended = np.flatnonzero(step.done)
    ring.write(step.action, step.reward, *flags, step.shown, final_obs=step.next_obs, ended=ended)


def sb3_buffer(make: Callable[..., Any], capacity: int, num_envs: int, **settings: Any) -> Any:
    """Return a buffer of Stable-Baselines3 for histories."""
    spaces = Box(-np.inf, np.inf, (2,), np.float32), Discrete(ACTIONS)
    return make(capacity, *spaces, device="cpu", n_envs=num_envs, **settings)


def add(buffer: Any, step: VectorStep) -> None:
    """Add a vector step as SB3's vector environments report it.

    `TimeLimit.truncated` is set where a step is truncated and not terminated.
    """
    late = step.truncated & ~step.terminated
    infos = [{"TimeLimit.truncated": bool(flag)} for flag in late]
    buffer.add(step.obs, step.next_obs, step.action, step.reward, step.done, infos)


Row = tuple[Any, ...]


def rows_of(batch: Transitions) -> dict[tuple[float, ...], Row]:
    """Return action, reward, next observation and discount by observation."""
    assert batch.discount is not None
    parts = batch.obs, batch.action, batch.reward, batch.next_obs, batch.discount
    return _by_obs(*parts)


def sb3_rows_of(sample: SimpleNamespace, gamma: float) -> dict[tuple[float, ...], Row]:
    """Return the same of a sample of Stable-Baselines3, whose `dones` end the bootstrap."""
    given = getattr(sample, "discounts", None)
    discount = (1 - sample.dones) * (gamma if given is None else given)
    parts = sample.observations, sample.actions.squeeze(1), sample.rewards.squeeze(1)
    return _by_obs(*parts, sample.next_observations, discount.squeeze(1))


def _by_obs(
    obs: torch.Tensor,
    action: torch.Tensor,
    reward: torch.Tensor,
    next_obs: torch.Tensor,
    discount: torch.Tensor,
) -> dict[tuple[float, ...], Row]:
    rest = zip(action.tolist(), reward.tolist(), next_obs.tolist(), discount.tolist(), strict=True)
    return dict(zip(map(tuple, obs.tolist()), rest, strict=True))
