"""Acrobot-v1 on the device, with the equations of Sutton and Barto's book."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastdqn.envs.tensor.episodic import EpisodicEnv

__all__ = ["Acrobot"]

GRAVITY = 9.8  # m/s^2
MASS_1 = MASS_2 = 1.0  # kg
LENGTH_1 = 1.0  # m
CENTRE_1 = CENTRE_2 = 0.5  # m, from a link's joint to its centre of mass
INERTIA_1 = INERTIA_2 = 1.0  # kg m^2
TIME_STEP = 0.2  # s
MAX_SPIN_1, MAX_SPIN_2 = 4 * math.pi, 9 * math.pi  # rad/s

# What the equations below have of masses and lengths, folded once: a product of Python numbers is
# free, and each of these products is exact or rounded as Gymnasium rounds it.
COUPLING = MASS_2 * LENGTH_1 * CENTRE_2
OUTER = MASS_2 * CENTRE_2**2 + INERTIA_2
PULL_1 = (MASS_1 * CENTRE_1 + MASS_2 * LENGTH_1) * GRAVITY
PULL_2 = MASS_2 * CENTRE_2 * GRAVITY


class Acrobot(EpisodicEnv):
    """N two-link pendulums driven at the elbow, step for step those of Gymnasium's Acrobot-v1.

    The physics are (angle of the first link rad, 0 hanging; angle of the second against the first
    rad; their velocities rad/s). The observation has the cosine and sine of both angles and the two
    velocities. Actions are torques of -1, 0 and 1 N m. The reward is -1 in every step and
    0 in the one that swings the tip more than one link's length above the pivot and terminates.

    Arguments and errors are those of `EpisodicEnv`.

    Source:
        Sutton (1996), Generalization in reinforcement learning: successful examples using sparse
        coarse coding, NIPS 8; the equations of motion as in Sutton, Barto (1998), Reinforcement
        learning, section 11.3.
    """

    env_id = "Acrobot-v1"
    num_random = num_physics = 4
    num_actions = 3
    max_episode_steps = 500
    first_low, first_high = -0.1, 0.1
    obs_high = np.array([1.0, 1.0, 1.0, 1.0, MAX_SPIN_1, MAX_SPIN_2], np.float32)
    obs_low = -obs_high

    def _move(self, physics: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = _runge_kutta(physics, (action - 1).to(physics.dtype))
        angle_1, angle_2, spin_1, spin_2 = moved.unbind(1)
        angle_1, angle_2 = _wrapped(angle_1), _wrapped(angle_2)
        spin_1 = spin_1.clamp(-MAX_SPIN_1, MAX_SPIN_1)
        spin_2 = spin_2.clamp(-MAX_SPIN_2, MAX_SPIN_2)
        terminated = -angle_1.cos() - (angle_2 + angle_1).cos() > 1.0
        reward = terminated.to(torch.float32) - 1.0
        return torch.stack((angle_1, angle_2, spin_1, spin_2), 1), reward, terminated

    def _observe(self, physics: Tensor) -> Tensor:
        angles = physics[:, :2]
        pairs = torch.stack((angles.cos(), angles.sin()), 2).flatten(1)
        return torch.cat((pairs, physics[:, 2:]), 1).to(torch.float32)


def _wrapped(angle: Tensor) -> Tensor:
    """Take off whole turns, so that [N] angles lie in -pi ... pi; those that do stay as they are.

    One Runge-Kutta step may turn the second link more than once.
    """
    turns = ((angle.abs() - math.pi) / (2 * math.pi)).ceil().clamp_min(0.0)
    return angle - angle.sign() * turns * (2 * math.pi)


def _runge_kutta(physics: Tensor, torque: Tensor) -> Tensor:
    """Take one step of the classic fourth-order rule under a constant torque [N]."""
    k1 = _rate(physics, torque)
    k2 = _rate(physics + TIME_STEP / 2 * k1, torque)
    k3 = _rate(physics + TIME_STEP / 2 * k2, torque)
    k4 = _rate(physics + TIME_STEP * k3, torque)
    return physics + TIME_STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _rate(physics: Tensor, torque: Tensor) -> Tensor:
    """Return the time derivative [N, 4] of the physics [N, 4]: velocities and accelerations."""
    angle_1, angle_2, spin_1, spin_2 = physics.unbind(1)
    cos_2, sin_2 = angle_2.cos(), angle_2.sin()
    d1 = MASS_1 * CENTRE_1**2 + (LENGTH_1**2 + CENTRE_2**2 + 2 * COUPLING * cos_2)
    d1 = d1 + INERTIA_1 + INERTIA_2
    d2 = CENTRE_2**2 + COUPLING * cos_2 + INERTIA_2
    phi2 = PULL_2 * (angle_1 + angle_2 - math.pi / 2).cos()
    phi1 = -COUPLING * spin_2.square() * sin_2 - 2 * COUPLING * spin_2 * spin_1 * sin_2
    phi1 = phi1 + PULL_1 * (angle_1 - math.pi / 2).cos() + phi2
    bend = torque + d2 / d1 * phi1 - COUPLING * spin_1.square() * sin_2 - phi2
    acceleration_2 = bend / (OUTER - d2.square() / d1)
    acceleration_1 = -(d2 * acceleration_2 + phi1) / d1
    return torch.stack((spin_1, spin_2, acceleration_1, acceleration_2), 1)
