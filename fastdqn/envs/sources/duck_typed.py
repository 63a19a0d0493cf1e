"""Environments that have `reset`, `step` and two spaces, but do not derive from gymnasium.Env."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym

from fastdqn.envs.advice import refuse_unlike_env

__all__ = ["DuckTypedEnv", "as_env", "closing_quietly"]


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


def closing_quietly(factory: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """Build an environment whose `close` never raises, for Gymnasium's own vectors."""
    env = factory()
    env.close = partial(_suppressed, env.close)  # type: ignore[method-assign]
    return env


def _suppressed(close: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):
        close()
