"""A replay ring full of random vector observations, and what is written into it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdqn.replay import ReplayBuffer

__all__ = ["CAPACITY", "NUM_ACTIONS", "NUM_ENVS", "OBS_SIZE", "random_replay", "random_step"]

CAPACITY, NUM_ENVS, OBS_SIZE, NUM_ACTIONS = 100_000, 16, 8, 4
TERMINATED = 0.1
"""Part of the transitions that end an episode, so that no Q-value runs away."""


def random_step(device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Return action, reward, terminated, truncated, obs of one vector step, for `write`."""
    step = (
        torch.randint(NUM_ACTIONS, (NUM_ENVS,)),
        torch.randn(NUM_ENVS),
        torch.rand(NUM_ENVS) < TERMINATED,
        torch.zeros(NUM_ENVS, dtype=torch.bool),
        torch.randn(NUM_ENVS, OBS_SIZE),
    )
    return tuple(part.to(device) for part in step)


def random_replay(
    device: torch.device | str = "cpu", capacity: int = CAPACITY, n_step: int = 1
) -> ReplayBuffer:
    """Return a full ring of LunarLander's sizes."""
    replay = ReplayBuffer(capacity, NUM_ENVS, (OBS_SIZE,), device=device, n_step=n_step)
    replay.begin(torch.randn(NUM_ENVS, OBS_SIZE))
    steps = [random_step(device) for _ in range(64)]
    while len(replay) < replay.capacity:
        for step in steps:
            replay.write(*step)
    return replay
