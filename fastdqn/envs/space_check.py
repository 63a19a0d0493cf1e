"""Checks observations against their space, and refuses those that it does not hold.

Integers outside their bounds have no one-hot code, and numbers that an integer dtype cannot hold
wrap around: an agent would learn from both unnoticed. The bounds of float Boxes are often only
hints, so floats are left alone here; the rollout refuses those that are not finite.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete, MultiBinary, Space
from gymnasium.vector import VectorEnv

from fastdqn.envs.spaces import ARRAY_SPACES
from fastdqn.errors import UsageError

__all__ = ["NUMBERS", "Bounds", "SpaceCheck", "VectorCheck"]

NUMBERS = "biuf"
"""Kinds of dtypes that observations may have."""
WAY_OUT = "Fix the environment, or let its observation_space say what it really shows."
TRUE = b"\1"
MANY = 1_024
"""Numbers from which on finding the largest is faster than comparing each."""


class SpaceCheck:
    """Shape, dtype and bounds of a space, or of a batch of spaces, to check observations.

    Args:
        space: A Box, Discrete, MultiBinary or MultiDiscrete.
        shape: Shape of the checked values; bounds of another shape are not compared.
        dtype: Their dtype; bounds are compared only if it is that of the space.

    Attributes:
        low: Least values, [*O] or a scalar; None if the dtype has the same bounds.
        high: Largest values.
    """

    def __init__(self, space: Space[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.space, self.shape, self.dtype = space, shape, dtype
        self.low, self.high = _bounds(space, shape, dtype)

    @property
    def bounded(self) -> bool:
        """Whether there are values of the dtype that the space does not hold."""
        return self.low is not None

    def of_row(self, index: int, one: SpaceCheck) -> SpaceCheck:
        """Return the check of row `index` of a batch; `one` is the check of a single space."""
        row = copy(one)
        row.low, row.high = (b if np.ndim(b) == 0 else b[index] for b in (self.low, self.high))
        return row

    def array_of(self, obs: Any, env: int) -> npt.NDArray[Any]:
        """Return an observation as an array that can be stored; see `refuse_outside` for bounds.

        Args:
            obs: What environment `env` returned.
            env: Its index, for messages.

        Raises:
            UsageError: It is not an array of numbers of this shape, or the dtype cannot hold one.
        """
        try:
            array = np.asarray(obs)
        except Exception as error:
            raise self._no_array(obs, env, str(error).partition("\n")[0].rstrip(".")) from None
        if array.dtype.kind not in NUMBERS:
            raise self._no_array(obs, env, f"NumPy makes {array.dtype} of it")
        if array.shape != self.shape:
            raise UsageError(
                f"environment {env} with an observation of shape {array.shape}",
                f"the observation space says {self.shape}",
                WAY_OUT,
            )
        if self.dtype.kind == "f" or array.dtype == self.dtype:
            return array
        self.refuse_outside(array, env)
        return array.astype(self.dtype)

    def refuse_outside(self, values: npt.NDArray[Any], env: int) -> None:
        """Refuse values [*O] that the space does not hold.

        Raises:
            UsageError: Names the environment, a value and the space.
        """
        wrong = self.wrong(values)
        if wrong is not None:
            raise self.refusal(values, wrong, env)

    def wrong(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Return [*O] bool, which numbers the space does not hold; None if it holds all."""
        if self.dtype.kind == "f":
            return None
        wrong = np.zeros((), np.bool_)
        if not np.can_cast(values.dtype, self.dtype):
            with np.errstate(all="ignore"):
                wrong = values.astype(self.dtype) != values
        if self.low is not None:
            wrong = wrong | (values < self.low) | (values > self.high)
        return wrong if wrong.any() else None

    def refusal(
        self, values: npt.NDArray[Any], wrong: npt.NDArray[np.bool_], env: int
    ) -> UsageError:
        """Return the refusal of an observation [*O] with the first of its wrong numbers."""
        where = np.argwhere(wrong)[0].tolist()
        place = f" at {where} of its observation" if where else " for its observation"
        return UsageError(
            f"environment {env} with {np.asarray(values[tuple(where)]).item()!r}{place}",
            f"its observation space {self._said} holds no such value",
            WAY_OUT,
        )

    def _no_array(self, obs: Any, env: int, why: str) -> UsageError:
        return UsageError(
            f"environment {env} with the observation {_shown(obs)} of {type(obs).__name__}",
            f"its observation space {self._said} holds arrays of numbers ({why})",
            WAY_OUT,
        )

    @property
    def _said(self) -> str:
        return " ".join(str(self.space).split())


class Bounds:
    """Checks within a microsecond whether integers lie between two bounds.

    Minus the least value and read as unsigned, numbers below it become very large, so that one
    comparison checks both bounds. Of many numbers with the same bounds only the least and the
    largest are compared.

    Args:
        row: [*O] integers; read at every check.
        check: The check of the space; bounded, and of the shape and dtype of the row.
    """

    def __init__(self, row: npt.NDArray[Any], check: SpaceCheck) -> None:
        unsigned = np.dtype(f"u{row.itemsize}")
        low, high = (np.asarray(bound, row.dtype) for bound in (check.low, check.high))
        info = np.iinfo(row.dtype)
        self._many = row.size >= MANY and low.ndim == high.ndim == 0
        self._least = low[()] if self._many and low > info.min else None
        self._most = high[()] if self._many and high < info.max else None
        self._given, self._row = row, row.view(unsigned)
        self._low = low.view(unsigned) if low.any() else None
        self._span = high.view(unsigned) - low.view(unsigned)
        self._counted = self._row if self._low is None else np.zeros_like(self._row)
        self._outside = np.zeros(row.shape, np.bool_)

    def are_left(self) -> bool:
        """Return whether one of the integers lies outside; hot path."""
        if self._many:
            most, least = self._most, self._least
            return bool(
                (most is not None and np.maximum.reduce(self._given, None) > most)
                or (least is not None and np.minimum.reduce(self._given, None) < least)
            )
        if self._low is not None:
            np.subtract(self._row, self._low, out=self._counted)
        np.greater(self._counted, self._span, out=self._outside)
        return TRUE in self._outside.tobytes()


class VectorCheck:
    """Copies the observations of a vector into rows, and refuses those outside their space.

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
        self._dtype, self._holds = into.dtype, True  # the last dtype, and whether ours holds it

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
        outside &= True if envs is None else envs
        outside &= True if restarted is None else ~restarted
        if outside.any():
            env = int(outside.argmax())
            raise self._one.refusal(obs[env], wrong[env], env)

    def array_of(self, obs: Any, env: int) -> npt.NDArray[Any]:
        """Return one observation of environment `env`; see `SpaceCheck.array_of`."""
        check = self._one if self._all is self._one else self._all.of_row(env, self._one)
        array = check.array_of(obs, env)
        if check.bounded:
            check.refuse_outside(array, env)
        return array


def _shown(obs: Any) -> str:
    shown = " ".join(repr(obs).split())
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _bounds(space: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return least and largest values; None twice if they are the dtype's, or for floats."""
    if not isinstance(space, ARRAY_SPACES) or dtype.kind == "f" or np.dtype(space.dtype) != dtype:
        return None, None
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low, high = _said(space)
    if np.shape(low) != shape or (np.all(low == least) and np.all(high == most)):
        return None, None
    return _scalar_if_uniform(low), _scalar_if_uniform(high)


def _said(space: Any) -> tuple[Any, Any]:
    if isinstance(space, Box):
        return space.low, space.high
    if isinstance(space, MultiBinary):
        return np.zeros(space.shape, space.dtype), np.ones(space.shape, space.dtype)
    count = space.n if isinstance(space, Discrete) else space.nvec
    last = np.asarray(count, object) - 1 + np.asarray(space.start, object)  # may pass the dtype
    last = np.minimum(last, np.iinfo(space.dtype).max)
    return np.asarray(space.start, space.dtype), np.asarray(last, space.dtype)


def _scalar_if_uniform(bounds: npt.NDArray[Any]) -> Any:
    first = bounds.reshape(-1)[:1]
    return first[0] if first.size and (bounds == first).all() else bounds
