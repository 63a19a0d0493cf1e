"""A wrapper that copies observations, for environments that reuse one array.

Gymnasium's vectors read what a step returned only after the reset that follows it. An environment
that writes every observation into one array has overwritten the last one by then.
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
from fastdqn.envs.workers.settings import EnvFactory

__all__ = ["CopiedObservations", "copied_observations_in", "with_copied_observations"]


class CopiedObservations(gym.Wrapper[Any, Any, Any, Any]):
    """Copies observations into the dtype of their space; refuses what the space does not hold.

    Args:
        env: The environment.
        index: Its index in the vector, for messages.
    """

    def __init__(self, env: gym.Env[Any, Any], index: int) -> None:
        super().__init__(env)
        self._own = _copier_of(env.observation_space, index)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and copy its observation."""
        obs, info = self.env.reset(**kwargs)
        return self._own(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and copy its observation."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._own(obs), reward, terminated, truncated, info


def with_copied_observations(factory: EnvFactory, index: int) -> gym.Env[Any, Any]:
    """Build environment `index` of a vector, with copied observations."""
    return CopiedObservations(factory(), index)


@contextmanager
def copied_observations_in(envs: VectorEnv[Any, Any, Any]) -> Iterator[None]:
    """Copy the observations of a SyncVectorEnv's environments within this context.

    Args:
        envs: Any vector; left as it is if its environments cannot be reached.
    """
    vector = envs.unwrapped
    if not isinstance(vector, SyncVectorEnv):
        yield
        return
    given = list(vector.envs)
    vector.envs[:] = [CopiedObservations(env, index) for index, env in enumerate(given)]
    try:
        yield
    finally:
        vector.envs[:] = given


def _copier_of(space: gym.Space[Any], index: int) -> Callable[[Any], Any]:
    """Return a function that copies an observation of a space."""
    if not isinstance(space, ARRAYS):
        return deepcopy
    block: Any = np.zeros((1, *(space.shape or ())), space.dtype)
    check = SpaceCheck(space, block.shape[1:], block.dtype)
    return partial(_copy_through, block, CheckedWriter(block, 0, check, index))


def _copy_through(block: Any, line: CheckedWriter, obs: Any) -> Any:
    line[:] = obs
    return block[0].copy()
