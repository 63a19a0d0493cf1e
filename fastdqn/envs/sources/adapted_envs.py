"""Single environments, wrapped as vectors need them.

Vectors of Gymnasium's own read what a step returned only after the reset that follows it: one that
writes every observation into one array has overwritten the last one by then, so they are copied.
This file loads no PyTorch, since the worker processes of those vectors import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from fastdqn.envs.advice import refuse_unlike_env
from fastdqn.envs.space_check import SpaceCheck
from fastdqn.envs.spaces import ARRAY_SPACES
from fastdqn.envs.workers.observation_writer import CheckedWriter
from fastdqn.envs.workers.settings import EnvFactory
from fastdqn.foundation.trial_env import close_quietly

__all__ = ["CopiedObservations", "as_env", "copied_observations_in", "with_copied_observations"]


class DuckTypedEnv(gym.Env[Any, Any]):
    """A gymnasium.Env around an environment that resets, steps and has two spaces.

    Args:
        env: The environment.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata = getattr(env, "metadata", {"render_modes": []})
        self.render_mode = getattr(env, "render_mode", None)
        self.step = env.step  # type: ignore[method-assign]
        self.reset = env.reset  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the environment."""
        if name == "env":  # not set yet: while it is unpickled
            raise AttributeError(name)
        return getattr(self.env, name)

    def close(self) -> None:
        """Close the environment, if it can be closed."""
        getattr(self.env, "close", lambda: None)()


def as_env(built: Any) -> gym.Env[Any, Any]:
    """Return what a factory built as an environment of Gymnasium's class.

    Raises:
        UsageError: It is not an environment.
    """
    if isinstance(built, gym.Env):
        return built
    refuse_unlike_env(built, type(built).__name__)
    return DuckTypedEnv(built)


class CopiedObservations(gym.ObservationWrapper[Any, Any, Any]):
    """Copies observations into the dtype of their space; refuses what the space does not hold.

    Args:
        env: The environment.
        index: Its index in the vector, for messages.
    """

    def __init__(self, env: gym.Env[Any, Any], index: int) -> None:
        super().__init__(env)
        space = env.observation_space
        self._block: Any = None
        if isinstance(space, ARRAY_SPACES):
            self._block = np.zeros((1, *(space.shape or ())), space.dtype)
            check = SpaceCheck(space, self._block.shape[1:], self._block.dtype)
            self._writer = CheckedWriter(self._block, 0, check, index)

    def observation(self, observation: Any) -> Any:
        """Return a copy."""
        if self._block is None:
            return deepcopy(observation)
        self._writer[:] = observation
        return self._block[0].copy()


def with_copied_observations(factory: EnvFactory, index: int) -> gym.Env[Any, Any]:
    """Build environment `index` of a vector, with copied observations and a quiet close."""
    env = CopiedObservations(factory(), index)
    env.close = partial(close_quietly, env.env)  # type: ignore[method-assign]
    return env


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
