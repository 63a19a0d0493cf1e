"""MountainCar-v0 on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdqn.envs.tensor.episodic import EpisodicEnv

__all__ = ["MountainCar"]

LEFT_END, RIGHT_END = -1.2, 0.6
MAX_SPEED = 0.07
GOAL = 0.5
FORCE = 0.001
GRAVITY = 0.0025


class MountainCar(EpisodicEnv):
    """N cars in a valley, step for step those of Gymnasium's MountainCar-v0.

    The physics are (position, velocity in positions per step), and so is the observation. Actions
    push left, not at all, right. The reward is -1 in every step, the last one included; an
    episode terminates where the car stands at 0.5 or beyond and does not roll back.

    Arguments and errors are those of `EpisodicEnv`.

    Source:
        Moore (1990), Efficient memory-based learning for robot control, PhD thesis, University
        of Cambridge, UCAM-CL-TR-209.
    """

    env_id = "MountainCar-v0"
    num_random = 1
    num_physics = 2
    num_actions = 3
    max_episode_steps = 200
    first_low, first_high = -0.6, -0.4
    obs_low = np.array([LEFT_END, -MAX_SPEED], np.float32)
    obs_high = np.array([RIGHT_END, MAX_SPEED], np.float32)

    def _start(self, uniform: Tensor) -> Tensor:
        position = super()._start(uniform)
        return torch.cat((position, torch.zeros_like(position)), 1)

    def _move(self, physics: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position, velocity = physics.unbind(1)
        push = (action - 1).to(physics.dtype) * FORCE
        velocity = velocity + (push + (3 * position).cos() * -GRAVITY)
        velocity = velocity.clamp(-MAX_SPEED, MAX_SPEED)
        position = position + velocity
        # The left wall takes all the speed; only a car that moves left can come to lie in it.
        velocity = velocity.masked_fill((position <= LEFT_END) & (velocity < 0), 0.0)
        position = position.clamp(LEFT_END, RIGHT_END)
        terminated = (position >= GOAL) & (velocity >= 0)
        reward = torch.full_like(position, -1.0, dtype=torch.float32)
        return torch.stack((position, velocity), 1), reward, terminated
