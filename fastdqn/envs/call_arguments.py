"""Arguments of a vector and of its calls, checked as Gymnasium's AsyncVectorEnv checks them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete, Space
from gymnasium.vector import AutoresetMode
from gymnasium.vector.async_vector_env import _async_worker

from fastdqn.envs.workers.origins import NUM_WORDS
from fastdqn.envs.workers.settings import EnvFactory, PoolSettings
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.errors import UsageError

__all__ = ["refuse_arguments", "reset_mask", "seed_list", "values_by_env", "with_kept_episodes"]


def refuse_arguments(  # noqa: PLR0917 - called once, with names that are its own
    env_fns: Sequence[EnvFactory],
    worker: Any,
    num_workers: int | None,
    num_groups: int,
    max_concurrency: int | None,
    supervision: Supervision | None,
) -> None:
    """Refuse arguments of GroupedVectorEnv that cannot be used.

    Raises:
        UsageError: A value that has no meaning, or two that exclude each other.
        ValueError: What Gymnasium's class refuses, in its words.
    """
    if not env_fns:
        raise UsageError("env_fns []", "a vector needs an environment", "Pass one factory or more.")
    if worker is not None:
        _refuse_signature(worker)
        raise UsageError(
            "worker", "a foreign worker does not know the block", "Use gymnasium's own class."
        )
    if max_concurrency is not None and not isinstance(max_concurrency, int | np.integer):
        raise ValueError(
            f"`max_concurrency` must be an integer or None, got {type(max_concurrency)}."
        )
    if max_concurrency is not None and max_concurrency < 1:
        raise ValueError(f"`max_concurrency` must be a positive or None, got {max_concurrency}.")
    if num_workers is not None and num_workers < 0:
        raise UsageError(f"num_workers={num_workers}", "it is negative", "0 steps in this process.")
    if num_groups < 1 or len(env_fns) % num_groups:
        raise UsageError(
            f"--env-groups {num_groups}",
            f"{len(env_fns)} environments do not fall into that many equal groups",
            "Choose --num-envs as a multiple of it.",
        )
    if supervision is not None and max_concurrency is not None:
        raise UsageError(
            f"max_concurrency={max_concurrency} with supervision",
            "a worker that dies takes its permit along",
            "Choose fewer workers instead.",
        )


def with_kept_episodes(settings: PoolSettings, actions: Space[Any]) -> PoolSettings:
    """Return settings that keep the open episodes, so that they can be played again.

    Args:
        settings: Of the pool.
        actions: Space of one action.

    Raises:
        UsageError: Episodes of this kind are not kept.
    """
    way_out = "Leave keep_episodes and Supervision.restore_s out."
    if not isinstance(actions, Discrete):
        raise UsageError(
            f"keep_episodes with actions of {actions}", "only Discrete ones are kept", way_out
        )
    if settings.obs_space is not None or settings.autoreset_mode != AutoresetMode.SAME_STEP.value:
        got = "keep_episodes without arrays in the block, or not in mode SAME_STEP"
        raise UsageError(got, "no such episode is kept", way_out)
    first = int(actions.start)
    spec = replace(settings.spec, num_origin=NUM_WORDS)
    return replace(settings, spec=spec, action_range=(first, first + int(actions.n) - 1))


def _refuse_signature(worker: Any) -> None:
    """Refuse a worker function with the wrong signature, as Gymnasium's class does."""
    try:
        inspect.signature(worker).bind(*(None,) * 8)
    except TypeError as error:
        raise ValueError(
            "A custom `worker` must accept 8 arguments. Got the signature "
            f"{inspect.signature(worker)} which should match {inspect.signature(_async_worker)}."
        ) from error


def seed_list(seed: int | list[int | None] | None, num_envs: int) -> list[int | None]:
    """Return the seed of each environment.

    Raises:
        ValueError: A list of another length.
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int):
        return [seed + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(
            "If seeds are passed as a list the length must match "
            f"num_envs={num_envs} but got length={len(seed)}."
        )
    return list(seed)


def reset_mask(options: dict[str, Any] | None, num_envs: int) -> list[bool]:
    """Return which environments are reset; take the mask out of the options.

    Raises:
        TypeError: A mask that is no array of bool.
        ValueError: One of another shape, or without an environment.
    """
    if options is None or "reset_mask" not in options:
        return [True] * num_envs
    mask, name = options.pop("reset_mask"), "`options['reset_mask']`"
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, got {type(mask)}")
    if mask.shape != (num_envs,):
        raise ValueError(f"{name} must have shape `({num_envs},)`, got {mask.shape}")
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must have `dtype=np.bool_`, got {mask.dtype}")
    if not mask.any():
        raise ValueError(
            f"{name} must contain a boolean array with at least one True value, "
            f"got reset_mask={mask}"
        )
    return [bool(chosen) for chosen in mask]


def values_by_env(values: Any, num_envs: int) -> list[Any]:
    """Return the value of each environment: those of a list or tuple, or one for all.

    Raises:
        ValueError: A list or tuple of another length.
    """
    if not isinstance(values, list | tuple):
        return [values] * num_envs
    if len(values) != num_envs:
        raise ValueError(
            "Values must be a list or tuple with length equal to the number of environments. "
            f"Got `{len(values)}` values for {num_envs} environments."
        )
    return list(values)
