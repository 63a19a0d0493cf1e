"""Environments whose observations are theirs for one step only, made to hand over arrays for good.

Gymnasium's vectors keep what a step returned until after the reset that follows it. An environment
that writes into one array for ever has overwritten it by then: copying is the way out, at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from fastdqn.envs.space_check import ARRAYS, SpaceCheck
from fastdqn.envs.workers.observation_writer import CheckedWriter
from fastdqn.envs.workers.task import EnvFactory

__all__ = ["OwnArrays", "own_arrays_in", "with_own_arrays"]


class OwnArrays(gym.Wrapper[Any, Any, Any, Any]):
    """Copies what an environment shows, into the dtype of its space; refuses what that cannot hold.

    Args:
        env: The environment.
        index: Which one of a vector, to be named.
    """

    def __init__(self, env: gym.Env[Any, Any], index: int) -> None:
        super().__init__(env)
        self._own = _copier_of(env.observation_space, index)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and copy what it shows."""
        obs, info = self.env.reset(**kwargs)
        return self._own(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and copy what it shows."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._own(obs), reward, terminated, truncated, info


def with_own_arrays(factory: EnvFactory, index: int) -> gym.Env[Any, Any]:
    """Build environment `index` of a vector, which hands over arrays for good."""
    return OwnArrays(factory(), index)


@contextmanager
def own_arrays_in(envs: VectorEnv[Any, Any, Any]) -> Iterator[None]:
    """Let the environments of a SyncVectorEnv hand over arrays for good, until the end.

    Args:
        envs: Any vector; left as it is where its environments are not within reach.
    """
    vector = envs.unwrapped
    if not isinstance(vector, SyncVectorEnv):
        yield
        return
    given = list(vector.envs)
    vector.envs[:] = [OwnArrays(env, index) for index, env in enumerate(given)]
    try:
        yield
    finally:
        vector.envs[:] = given


def _copier_of(space: gym.Space[Any], index: int) -> Callable[[Any], Any]:
    """Return what copies an observation of a space."""
    if not isinstance(space, ARRAYS):
        return deepcopy
    block: Any = np.zeros((1, *(space.shape or ())), space.dtype)
    check = SpaceCheck(space, block.shape[1:], block.dtype)
    return partial(_copy_through, block, CheckedWriter(block, 0, check, index))


def _copy_through(block: Any, line: CheckedWriter, obs: Any) -> Any:
    line[:] = obs
    return block[0].copy()
