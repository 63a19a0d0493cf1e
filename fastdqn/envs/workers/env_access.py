"""Building, calling, changing and closing the environments of a host."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.spaces.utils import is_space_dtype_shape_equiv

from fastdqn.envs.sharing import core_of, envs_in_use, refuse_shared, register_holder
from fastdqn.envs.specs.registrations import explained
from fastdqn.envs.workers.failures import ClosedEnv, EnvFailures, Failure
from fastdqn.envs.workers.settings import EnvFactory, PoolSettings
from fastdqn.errors import UsageError

__all__ = ["EnvAccess"]


class EnvAccess:
    """Some environments of one process.

    Args:
        settings: Of the pool.
        span: (first, last + 1) environment.
        env_fns: Their factories.

    Attributes:
        envs: The environments, once they are built; `ClosedEnv` where one raised.
    """

    def __init__(
        self, settings: PoolSettings, span: tuple[int, int], env_fns: Sequence[EnvFactory]
    ) -> None:
        self.first_env, self.num_envs, self.env_fns = span[0], span[1] - span[0], env_fns
        self.envs: list[gym.Env[Any, Any]] = []
        self.vector = settings.spec
        register_holder(self)

    def held(self) -> Iterable[tuple[int, gym.Env[Any, Any]]]:
        """Return (index in the vector, environment) of all environments here."""
        return enumerate(self.envs, self.first_env)

    def make(self) -> None:
        """Build the environments.

        Raises:
            EnvFailures: One could not be built.
        """
        taken = envs_in_use()
        for i, env_fn in enumerate(self.env_fns):
            with self._raising_failures(i):
                env = env_fn()
                refuse_shared(taken, env, self.first_env + i, self.vector)
                self.envs.append(env)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Call a method of every environment, or read an attribute."""
        if name in {"reset", "step", "close", "set_wrapper_attr", "_setattr", "_check_spaces"}:
            raise ValueError(
                f"Trying to call function `{name}` with `call`, use `{name}` directly instead."
            )
        results = []
        for i, env in enumerate(self.envs):
            with self._raising_failures(i):
                attribute = env.get_wrapper_attr(name)
                results.append(attribute(*args, **kwargs) if callable(attribute) else attribute)
        return results

    def set_attr(self, name: str, values: list[Any]) -> None:
        """Set one attribute of every environment."""
        for i, value in enumerate(values):
            with self._raising_failures(i):
                self.envs[i].set_wrapper_attr(name, value)

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

    @contextlib.contextmanager
    def _raising_failures(self, i: int) -> Iterator[None]:
        """Raise what environment `i` raises as EnvFailures."""
        try:
            yield
        except Exception as error:
            failure = Failure.of(self.first_env + i, explained(error))
            raise EnvFailures([failure]) from error

    def _close_failed(self, i: int, error: Exception, doing: str = "") -> Failure:
        """Close an environment that raised: its state is unknown. The next reset rebuilds it."""
        with contextlib.suppress(Exception):
            self.envs[i].close()
        self.envs[i] = ClosedEnv(self.envs[i])
        return Failure.of(self.first_env + i, explained(error), doing, ended=True)

    def _rebuild_if_closed(self, i: int) -> None:
        shut = self.envs[i]
        if isinstance(shut, ClosedEnv):
            env, index = self.env_fns[i](), self.first_env + i
            refuse_shared(envs_in_use(), env, index, self.vector)
            if core_of(env) is core_of(shut.was):
                raise UsageError(
                    f"environment {index} that was to be rebuilt",
                    "its factory returned the one that had raised and was closed",
                    "Let it build a new one at each call: lambda: gymnasium.make(...).",
                )
            self.envs[i] = env
