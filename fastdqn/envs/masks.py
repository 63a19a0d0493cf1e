"""Action masks: which actions an environment allows.

A mask comes in `info["action_mask"]`, or in a Dict observation that has an `action_mask` beside one
other entry; the latter is moved into the info here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Dict, Space

from fastdqn.envs.sources.adapted_envs import as_env
from fastdqn.envs.space_check import NUMBERS
from fastdqn.errors import UsageError

__all__ = [
    "MASK",
    "MaskInInfo",
    "allowed_in",
    "checked_masks",
    "mask_name",
    "observed_beside_mask",
    "refuse_mask_shape",
    "refuse_unexpected_mask",
    "refuse_unexpected_masks",
    "refuse_useless_expectation",
    "with_mask_in_info",
]

MASK = "action_mask"
NO_AND_YES = b"\0\1"
NO_MASK = "it holds True and False, or 1 and 0", "Fix it."


def observed_beside_mask(space: Space[Any]) -> str | None:
    """Return the key of what is observed where a Dict space holds that and a mask alone."""
    if not isinstance(space, Dict) or MASK not in space.spaces or len(space.spaces) != 2:
        return None
    return next(key for key in space.spaces if key != MASK)


class MaskInInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Moves the mask of a Dict observation into the info; the rest becomes the observation.

    Args:
        env: Its observations are a Dict of two entries, one of them `action_mask`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        self._key = observed_beside_mask(space)
        self.observation_space = space[self._key]

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and split its observation."""
        obs, info = self.env.reset(**kwargs)
        return obs[self._key], {**info, MASK: obs[MASK]}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and split its observation."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs[self._key], reward, terminated, truncated, {**info, MASK: obs[MASK]}


def with_mask_in_info(factory: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """Build an environment; where its observation holds a mask, that moves into the info."""
    env = as_env(factory())
    return env if observed_beside_mask(env.observation_space) is None else MaskInInfo(env)


def refuse_mask_shape(env: str, shape: tuple[int, ...], num_actions: int) -> None:
    """Refuse a mask of an environment `env` that has not one entry per action.

    Raises:
        UsageError: The shape is not (A,).
    """
    if shape != (num_actions,):
        raise UsageError(
            f"{env} with an action mask of shape {shape}",
            f"its {num_actions} actions need ({num_actions},)",
            "Fix the mask, or use --no-action-masks.",
        )


def refuse_unexpected_mask(env: int, info: Mapping[str, Any]) -> None:
    """Refuse a mask where none was expected: there is no room for it, so it would be ignored.

    Raises:
        UsageError: The info holds a mask.
    """
    if info.get(MASK) is not None:
        raise UsageError(
            f"environment {env} with an action mask in its info",
            "its first infos held none, so that no room was kept for masks",
            "Use --expect-action-masks (expect_action_masks=True, or num_masked of a "
            "GroupedVectorEnv) to obey masks that come later, or --no-action-masks.",
        )


def refuse_unexpected_masks(infos: Mapping[str, Any]) -> None:
    """Refuse masks in the infos of a vector; see `refuse_unexpected_mask`."""
    said = infos.get(f"_{MASK}")
    for env, mask in enumerate(infos.get(MASK, ())):
        if said is None or said[env]:
            refuse_unexpected_mask(env, {MASK: mask})


def refuse_useless_expectation(expected: bool, *, infos: bool, obeyed: bool) -> None:
    """Refuse `expect_action_masks` of environments without infos, or where masks are not obeyed.

    Raises:
        UsageError: Masks are `expected`, and one of the other two is missing.
    """
    if expected and not infos:
        raise UsageError(
            "--expect-action-masks",
            "EnvPool and tensor environments give no masks",
            "Leave it out, or choose --vectorizer grouped.",
        )
    if expected and not obeyed:
        raise UsageError(
            "--expect-action-masks with --no-action-masks",
            "masks that are ignored need no room",
            "Leave one of the two out.",
        )


def allowed_in(mask: Any, name: str) -> npt.NDArray[np.bool_]:
    """Return a mask, or several, as bool; hot path for arrays of bool and of bytes.

    Args:
        mask: True and False, or 1 and 0, of any shape and any dtype of numbers.
        name: Its name in messages.

    Returns:
        [*S] bool, which may be the memory of the mask.

    Raises:
        UsageError: It is not an array of numbers, or holds others than 0 and 1.
    """
    given = mask if type(mask) is np.ndarray else _array_of(mask, name)
    kind = given.dtype.char
    if kind == "?":
        return given
    if kind in "bB" and not given.tobytes().strip(NO_AND_YES):
        return given.view(np.bool_)
    if given.dtype == object:
        given = _array_of(given.tolist(), name)
    if given.dtype.kind not in NUMBERS:
        raise UsageError(f"{name} of dtype {given.dtype}", *NO_MASK)
    allowed = given.astype(np.bool_)
    if allowed.astype(given.dtype).tobytes() != given.tobytes():
        wrong = allowed != given  # -0.0 is 0
        if wrong.any():
            raise UsageError(f"{name} with {given[wrong].flat[0]}", *NO_MASK)
    return allowed


def mask_name(env: int) -> str:
    """Return the name of environment `env`'s mask in messages."""
    return f"the action mask of environment {env}"


def _array_of(mask: Any, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(mask)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = f"it cannot become one array ({str(error).partition('.')[0]})"
        raise UsageError(name, reason, NO_MASK[1]) from error


def checked_masks(masks: Any, envs: npt.NDArray[np.bool_], num_actions: int) -> Any:
    """Return the masks of some environments of a vector.

    Args:
        masks: [N, A] of any dtype, or [N] objects, each a mask [A] or None, which allows all.
        envs: [N] bool, whose masks are asked for; at least one.
        num_actions: Actions, A.

    Returns:
        [M, A] bool, of the M environments asked for, in order.

    Raises:
        UsageError: A mask of another shape, or with another number than 0 and 1; names the
            environment.
    """
    given, indices = np.asarray(masks), np.flatnonzero(envs).tolist()
    if given.ndim == 2 and given.shape[1] == num_actions and given.dtype.kind == "b":
        picked: npt.NDArray[np.bool_] = given[envs]
        return picked
    allowed = np.ones((len(indices), num_actions), np.bool_)
    for row, index in zip(allowed, indices, strict=True):
        if given[index] is not None:
            mask = allowed_in(given[index], mask_name(index))
            refuse_mask_shape(f"environment {index}", mask.shape, num_actions)
            row[:] = mask
    return allowed
