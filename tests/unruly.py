"""Environments of spaces that are seldom seen, and some that leave what they promise.

Light on purpose, as `tests.oracles`: workers import this module.
"""

from __future__ import annotations

import os
from pathlib import Path
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

    def __init__(self, action_space: Any) -> None:
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


class LeavingEnv(gym.Env[Any, Any]):
    """Shows one thing, and from its n-th step on another, which its space may not hold.

    Args:
        space: What it says that it shows.
        inside: What it shows at first.
        outside: What it shows from then on.
        at: The step, from 1; 0 is the first reset.
        length: Env steps of an episode.
    """

    def __init__(
        self, space: gym.Space[Any], inside: Any, outside: Any, at: int = 3, length: int = 5
    ) -> None:
        self.observation_space, self.action_space = space, Discrete(2)
        self.inside, self.outside, self.at, self.length = inside, outside, at, length
        self.wakes = self.t = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> Step:
        self.wakes, self.t = self.wakes + 1, self.t + 1
        return self._obs(), 1.0, self.t == self.length, False, {}

    def _obs(self) -> Any:
        return self.outside if self.wakes >= self.at else self.inside


class FallingEnv(LeavingEnv):
    """Ends its process once; its successor shows what its space does not hold.

    Args:
        flag: Path of a file that is there from its fall on.
    """

    def __init__(self, flag: str) -> None:
        self.flag = Path(flag)
        super().__init__(Discrete(5), 2, 5, at=0 if self.flag.exists() else 10_000)

    def step(self, action: Any) -> Step:
        if not self.flag.exists():
            self.flag.touch()
            os._exit(3)
        return super().step(action)
