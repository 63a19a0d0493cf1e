"""Environments of spaces that are seldom seen, and some that leave what they promise.

Light on purpose, as `tests.oracles`: workers import this module.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

Info = dict[str, Any]
Step = tuple[Any, float, bool, bool, Info]


class ActionEchoEnv(gym.Env[Any, Any]):
    """Shows the last action and t; refuses what its action space does not contain.

    It computes with the action as it comes: what wraps around is seen in the reward.

    Args:
        action_space: Of any dtype, from any start.
    """

    def __init__(self, action_space: Discrete) -> None:
        self.action_space = action_space
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2), {}

    def step(self, action: Any) -> Step:
        assert self.action_space.contains(action), f"{action!r} of {type(action)}"
        self.t += 1
        with np.errstate(over="ignore"):
            reward = float(action - 1)
        return np.array([float(action), self.t]), reward, self.t % 5 == 0, False, {}
