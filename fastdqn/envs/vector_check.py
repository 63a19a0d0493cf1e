"""What a vector shows, copied into the rows only where the observation space holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Space
from gymnasium.vector import VectorEnv

from fastdqn.envs.space_check import NUMBERS, SpaceCheck
from fastdqn.errors import UsageError

__all__ = ["VectorCheck"]


class VectorCheck:
    """Takes the observations of a vector.

    Args:
        envs: The vector.
        space: Space of one observation.
        key: Of the observation in a Dict, or None.
        into: [N, *O] where observations are kept; written.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        space: Space[Any],
        key: str | None,
        into: npt.NDArray[Any],
    ) -> None:
        self._into = into
        self._one = SpaceCheck(space, into.shape[1:], into.dtype)
        self._all = self._one
        batched: Any = getattr(envs, "observation_space", None)
        if batched is not None:  # its bounds may differ between environments
            batched = batched if key is None else batched[key]
            together = SpaceCheck(batched, into.shape, into.dtype)
            self._all = together if together.bounded else self._one

    def take(
        self,
        obs: Any,
        envs: npt.NDArray[np.bool_],
        restarted: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Copy the observations of some environments.

        Args:
            obs: [N, *O].
            envs: [N] bool, whose observations are taken.
            restarted: [N] bool, who shows nothing yet since a worker was restarted; None is nobody.

        Raises:
            UsageError: The shape is another one, or a space does not hold an observation; names
                the environment.
        """
        obs = np.asarray(obs)
        if obs.shape != self._into.shape or obs.dtype.kind not in NUMBERS:
            raise UsageError(
                f"observations of shape {obs.shape} and dtype {obs.dtype}",
                f"the observation space says {self._into.shape} and {self._into.dtype}",
                "Fix the vector environment, or its observation_space.",
            )
        wrong = self._all.wrong(obs)
        if wrong is not None:
            chosen = envs if restarted is None else envs & ~restarted
            at = np.flatnonzero(wrong.reshape(len(wrong), -1).any(1) & chosen).tolist()
            if at:
                raise self._one.refusal(obs[at[0]], wrong[at[0]], at[0])
        self._into[envs] = obs[envs]

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
