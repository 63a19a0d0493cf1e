"""CartPole-v1 on the device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastdqn.envs.tensor.episodic import EpisodicEnv

__all__ = ["CartPole"]

GRAVITY = 9.8  # m/s^2
POLE_MASS = 0.1  # kg
TOTAL_MASS = 0.1 + 1.0  # kg, pole and cart
HALF_LENGTH = 0.5  # m, of the pole
POLE_MOMENT = POLE_MASS * HALF_LENGTH  # kg m
FORCE = 10.0  # N
TIME_STEP = 0.02  # s
MAX_POSITION = 2.4  # m
MAX_ANGLE = 12 * 2 * math.pi / 360  # rad


class CartPole(EpisodicEnv):
    """N poles on carts, step for step those of Gymnasium's CartPole-v1.

    The physics are (position m, velocity m/s, angle rad, angular velocity rad/s), and so is the
    observation. The reward is 1 in every step; an episode terminates where the cart is farther
    than 2.4 m from the middle or the pole leans by more than 12 degrees.

    Arguments and errors are those of `EpisodicEnv`.

    Source:
        Barto, Sutton, Anderson (1983), Neuronlike adaptive elements that can solve difficult
        learning control problems, IEEE Transactions on Systems, Man, and Cybernetics 13(5);
        equations without friction: Florian (2007), Correct equations for the dynamics of the
        cart-pole system, equations 23 and 24.
    """

    env_id = "CartPole-v1"
    num_random = num_physics = 4
    num_actions = 2
    max_episode_steps = 500
    first_low, first_high = -0.05, 0.05
    obs_high = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], np.float32)
    obs_low = -obs_high

    def _move(self, physics: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position, _, angle, spin = physics.unbind(1)
        force = action.to(physics.dtype) * (2 * FORCE) - FORCE
        cos, sin = angle.cos(), angle.sin()
        push = (force + POLE_MOMENT * spin.square() * sin) / TOTAL_MASS
        spin_rate = (GRAVITY * sin - cos * push) / (
            HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cos.square() / TOTAL_MASS)
        )
        acceleration = push - POLE_MOMENT * spin_rate * cos / TOTAL_MASS
        # Euler's explicit rule: positions move by the velocities from before the step.
        rate = torch.stack((physics[:, 1], acceleration, spin, spin_rate), 1)
        moved = physics + TIME_STEP * rate
        terminated = (moved[:, 0].abs() > MAX_POSITION) | (moved[:, 2].abs() > MAX_ANGLE)
        return moved, torch.ones_like(position, dtype=torch.float32), terminated
