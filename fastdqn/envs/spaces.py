"""Spaces, metadata and step time of a vector, read from one of its environments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from gymnasium.vector.utils import batch_differing_spaces, batch_space

from fastdqn.envs.workers.settings import EnvFactory
from fastdqn.foundation.trial_env import trial_env

__all__ = [
    "ARRAY_SPACES",
    "VectorSpaces",
    "measured_step_s",
    "read_spaces",
    "refuse_other_spaces",
]

ARRAY_SPACES = (Box, Discrete, MultiBinary, MultiDiscrete)
"""Spaces whose elements are arrays of one shape and dtype."""
MEASURED_STEPS = 30
PATIENCE_S = 0.01
"""Seconds of a reset or of a few steps from which an environment counts as slow."""


@dataclass(frozen=True)
class VectorSpaces:
    """Spaces of one environment and of all of them together, as a VectorEnv names them.

    Attributes:
        step_s: Seconds of a step, or None if it was not measured.
    """

    metadata: dict[str, Any]
    render_mode: str | None
    single_action_space: Space[Any]
    action_space: Space[Any]
    single_observation_space: Space[Any]
    observation_space: Space[Any]
    step_s: float | None


def read_spaces(
    env_fns: Sequence[EnvFactory],
    observation_mode: str | tuple[Space[Any], Space[Any]],
    *,
    measure: bool,
) -> VectorSpaces:
    """Build one environment, read its spaces, close it; `different` reads those of all.

    It leaves no side effect in this process; see `foundation.trial_env`.

    Args:
        env_fns: Factories, one per environment.
        observation_mode: As in Gymnasium's AsyncVectorEnv.
        measure: Whether to take a few random steps and to time them.

    Raises:
        ValueError: There is no such mode.
        TypeError: The pair holds something else than spaces.
    """
    with trial_env(env_fns[0]) as env:
        single, batched = _observation_spaces(env, env_fns, observation_mode)
        return VectorSpaces(
            dict(getattr(env, "metadata", {})),
            getattr(env, "render_mode", None),
            env.action_space,
            batch_space(env.action_space, len(env_fns)),
            single,
            batched,
            measured_step_s(env) if measure else None,
        )


def _observation_spaces(
    env: gym.Env[Any, Any], env_fns: Sequence[EnvFactory], mode: Any
) -> tuple[Space[Any], Space[Any]]:
    """Return the space of one observation and the space of all."""
    if isinstance(mode, tuple) and len(mode) == 2:
        for space in mode:
            if not isinstance(space, Space):
                raise TypeError(
                    "Expected both elements of observation_mode to be Spaces, "
                    f"got {type(mode[0])} and {type(mode[1])}"
                )
        return mode[1], mode[0]
    if mode == "same":
        return env.observation_space, batch_space(env.observation_space, len(env_fns))
    if mode == "different":
        spaces = []
        for env_fn in env_fns:
            with trial_env(env_fn) as each:
                spaces.append(each.observation_space)
        return spaces[0], batch_differing_spaces(spaces)
    raise ValueError(
        "Invalid `observation_mode`, expected: 'same' or 'different' or tuple of single and "
        f"batch observation space, actual got {mode}"
    )


def refuse_other_spaces(
    same: Sequence[tuple[bool, bool]], mode: Any, action_space: Space[Any], name: str
) -> None:
    """Refuse environments whose spaces are not those of their vector, in Gymnasium's words.

    Args:
        same: For each environment, whether its observation space and its action space fit.
        mode: As in Gymnasium's AsyncVectorEnv.
        action_space: Of one environment of the vector.
        name: Of the vector's class.

    Raises:
        RuntimeError: Names the first that differs.
    """
    for index, (same_obs, same_action) in enumerate(same):
        if not same_obs and mode == "same":
            raise RuntimeError(
                f"{name}(..., observation_mode='same') however some of the sub-environments "
                "observation spaces are not equivalent. If this is intentional, use "
                f"`observation_mode='different'` instead. Environment {index} differs."
            )
        if not same_obs:
            raise RuntimeError(
                f"{name}(..., observation_mode='different' or custom space) however the "
                "sub-environment's observation spaces do not share a common shape and dtype. "
                f"Environment {index} differs."
            )
        if not same_action:
            raise RuntimeError(
                f"Some environments have an action space different from `{action_space}`. In "
                "order to batch actions, the action spaces from all environments must be equal. "
                f"Environment {index} differs."
            )


def measured_step_s(env: gym.Env[Any, Any]) -> float | None:
    """Time random steps; None where the environment is slow, or raises."""
    try:
        start = time.perf_counter()
        env.reset(seed=0)
        if time.perf_counter() - start > PATIENCE_S:
            return None
        actions = [env.action_space.sample() for _ in range(MEASURED_STEPS)]
        start = time.perf_counter()
        for taken, action in enumerate(actions, 1):  # noqa: B007 - read behind the loop
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated or time.perf_counter() - start > PATIENCE_S:
                break
        return (time.perf_counter() - start) / taken
    except Exception:
        return None  # the error will be raised again where it is handled
