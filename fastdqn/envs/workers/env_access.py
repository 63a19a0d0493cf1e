"""Building, calling, changing and closing the environments of a host."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.spaces.utils import is_space_dtype_shape_equiv

from fastdqn.envs.sharing import core_of, envs_in_use, refuse_shared, register_holder
from fastdqn.envs.specs.registrations import explained
from fastdqn.envs.workers.failures import ClosedEnv, EnvFailures, Failure
from fastdqn.envs.workers.task import EnvFactory, Task
from fastdqn.errors import UsageError

__all__ = ["EnvAccess"]


class EnvAccess:
    """Some environments of one process.

    Args:
        task: Which ones.
        env_fns: Their factories.

    Attributes:
        envs: The environments, once they are built; `ClosedEnv` where one raised.
    """

    def __init__(self, task: Task, env_fns: Sequence[EnvFactory]) -> None:
        self.task, self.env_fns = task, env_fns
        self.envs: list[gym.Env[Any, Any]] = []
        self.vector = task.spec
        register_holder(self)

    def held(self) -> Iterable[tuple[int, gym.Env[Any, Any]]]:
        """Return (index in the vector, environment) of all environments here."""
        return enumerate(self.envs, self.task.first_env)

    def make(self) -> None:
        """Build the environments.

        Raises:
            EnvFailures: One could not be built.
        """
        taken = envs_in_use()
        for i, env_fn in enumerate(self.env_fns):
            try:
                env = env_fn()
                refuse_shared(taken, env, self.task.first_env + i, self.vector)
                self.envs.append(env)
            except Exception as error:
                raise EnvFailures([self.failure(i, explained(error))]) from error

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Call a method of every environment, or read an attribute."""
        if name in {"reset", "step", "close", "set_wrapper_attr", "_setattr", "_check_spaces"}:
            raise ValueError(
                f"Trying to call function `{name}` with `call`, use `{name}` directly instead."
            )
        return [self._of_env(i, name, args, kwargs) for i in range(len(self.envs))]

    def _of_env(self, i: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            attribute = self.envs[i].get_wrapper_attr(name)
            return attribute(*args, **kwargs) if callable(attribute) else attribute
        except Exception as error:
            raise EnvFailures([self.failure(i, error)]) from error

    def set_attr(self, name: str, values: list[Any]) -> None:
        """Set one attribute of every environment."""
        for i, value in enumerate(values):
            try:
                self.envs[i].set_wrapper_attr(name, value)
            except Exception as error:
                raise EnvFailures([self.failure(i, error)]) from error

    def check_spaces(
        self, mode: Any, obs_space: gym.Space[Any], action_space: gym.Space[Any]
    ) -> list[tuple[bool, bool]]:
        """Return for every environment whether its two spaces are those of the vector."""
        same = operator.eq if mode == "same" else is_space_dtype_shape_equiv
        return [
            (same(env.observation_space, obs_space), env.action_space == action_space)
            for env in self.envs
        ]

    def close(self) -> None:
        """Close every environment, once, whatever one of them raises."""
        while self.envs:
            with contextlib.suppress(Exception):
                self.envs.pop().close()

    # Failures

    def _close_failed(self, i: int, error: Exception, doing: str = "") -> Failure:
        """Close an environment that raised: its state is unknown. The next reset rebuilds it."""
        with contextlib.suppress(Exception):
            self.envs[i].close()
        self.envs[i] = ClosedEnv(self.envs[i])
        return Failure.of(self.task.first_env + i, explained(error), doing, ended=True)

    def _rebuild_if_closed(self, i: int) -> None:
        shut = self.envs[i]
        if isinstance(shut, ClosedEnv):
            env, index = self.env_fns[i](), self.task.first_env + i
            refuse_shared(envs_in_use(), env, index, self.vector)
            if core_of(env) is core_of(shut.was):
                raise UsageError(
                    f"environment {index} that was to be rebuilt",
                    "its factory returned the one that had raised and was closed",
                    "Let it build a new one at each call: lambda: gymnasium.make(...).",
                )
            self.envs[i] = env

    def failure(self, i: int, error: Exception, doing: str = "", *, ended: bool = False) -> Failure:
        """Return the failure of environment `i`."""
        return Failure.of(self.task.first_env + i, error, doing, ended=ended)
