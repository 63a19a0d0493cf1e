"""Copies the observations of a vector into rows, and refuses those outside their space."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Space
from gymnasium.vector import VectorEnv

from fastdqn.envs.space_check import NUMBERS, Bounds, SpaceCheck
from fastdqn.errors import UsageError

__all__ = ["VectorCheck"]


class VectorCheck:
    """Copies and checks the observations of a vector.

    Args:
        envs: The vector.
        space: Space of one observation.
        key: Of the observation in a Dict, or None.
        into: [N, *O] the rows; written.
        compared: Whether the environments check their observations themselves.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        space: Space[Any],
        key: str | None,
        into: npt.NDArray[Any],
        *,
        compared: bool = False,
    ) -> None:
        self._into, self._shape = into, into.shape
        self._one = SpaceCheck(space, into.shape[1:], into.dtype)
        self._all = self._one
        batched: Any = getattr(envs, "observation_space", None)
        if batched is not None:  # its bounds may differ between environments
            batched = batched if key is None else batched[key]
            together = SpaceCheck(batched, into.shape, into.dtype)
            self._all = together if together.bounded else self._one
        self._bounds = Bounds(into, self._all) if self._all.bounded and not compared else None
        self._dtype, self._holds = (
            into.dtype,
            True,
        )  # the last dtype, and whether ours holds it

    def take(
        self,
        obs: Any,
        envs: npt.NDArray[np.bool_] | None = None,
        restarted: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Copy the observations of some environments; hot path.

        Args:
            obs: [N, *O].
            envs: [N] bool, whose observations are taken; None is all.
            restarted: [N] bool, environments without an observation, since their worker was
                restarted; None is none.

        Raises:
            UsageError: Another shape, or a space does not hold an observation; names the
                environment.
        """
        obs = np.asarray(obs)
        if obs.shape != self._shape or (obs.dtype != self._dtype and not self._know(obs.dtype)):
            raise UsageError(
                f"observations of shape {obs.shape} and dtype {obs.dtype}",
                f"the observation space says {self._shape} and {self._into.dtype}",
                "Fix the vector environment, or its observation_space.",
            )
        if not self._holds:
            self._refuse(obs, envs, restarted)
        if envs is None:
            np.copyto(self._into, obs, "unsafe")
        else:
            self._into[envs] = obs[envs]
        if self._bounds is not None and self._holds and self._bounds.are_left():
            self._refuse(obs, envs, restarted)

    def _know(self, dtype: np.dtype[Any]) -> bool:
        """Remember a dtype of observations; return whether it is numeric."""
        if dtype.kind not in NUMBERS:
            return False
        kept = self._into.dtype
        self._dtype, self._holds = dtype, kept.kind == "f" or np.can_cast(dtype, kept)
        return True

    def _refuse(
        self,
        obs: npt.NDArray[Any],
        envs: npt.NDArray[np.bool_] | None,
        restarted: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Refuse the first observation outside its space among those in `envs`."""
        wrong = self._all.wrong(obs)
        if wrong is None:
            return
        outside = wrong.reshape(len(wrong), -1).any(1)
        if envs is not None:
            outside &= envs
        if restarted is not None:
            outside &= ~restarted
        if outside.any():
            env = int(outside.argmax())
            raise self._one.refusal(obs[env], wrong[env], env)

    def array_of(self, obs: Any, env: int) -> npt.NDArray[Any]:
        """Return one observation of environment `env` as an array that can be stored.

        Raises:
            UsageError: The observation space does not hold it.
        """
        check = self._one if self._all is self._one else self._all.of_row(env, self._one)
        array = check.array_of(obs, env)
        if check.bounded:
            check.refuse_outside(array, env)
        return array
