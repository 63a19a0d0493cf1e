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

from fastdqn.envs.spaces import ARRAY_SPACES
from fastdqn.errors import UsageError

__all__ = ["NUMBERS", "Bounds", "SpaceCheck"]

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
        space: The same.
        shape: The same.
        dtype: The same.
        low: Least values, [*O] or a scalar; None if the dtype has the same bounds.
        high: Largest values.
    """

    def __init__(self, space: Space[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.space, self.shape, self.dtype = space, shape, dtype
        bounds: tuple[Any, Any] = _bounds(space, shape, dtype) or (None, None)
        self.low, self.high = bounds

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
        self._ends = _ends(low, high) if row.size >= MANY and low.ndim == high.ndim == 0 else None
        self._given, self._row = row, row.view(unsigned)
        self._low = low.view(unsigned) if low.any() else None
        self._span = high.view(unsigned) - low.view(unsigned)
        self._counted = self._row if self._low is None else np.zeros_like(self._row)
        self._outside = np.zeros(row.shape, np.bool_)

    def are_left(self) -> bool:
        """Return whether one of the integers lies outside; hot path."""
        if self._ends is not None:
            low, high = self._ends
            return bool(
                (high is not None and np.maximum.reduce(self._given, None) > high)
                or (low is not None and np.minimum.reduce(self._given, None) < low)
            )
        if self._low is not None:
            np.subtract(self._row, self._low, out=self._counted)
        np.greater(self._counted, self._span, out=self._outside)
        return TRUE in self._outside.tobytes()


def _ends(low: npt.NDArray[Any], high: npt.NDArray[Any]) -> tuple[Any, Any]:
    """Return the bounds as scalars, each None if the dtype has the same."""
    info = np.iinfo(low.dtype)
    return (
        low[()] if low > info.min else None,
        high[()] if high < info.max else None,
    )


def _shown(obs: Any) -> str:
    shown = " ".join(repr(obs).split())
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _bounds(space: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any] | None:
    """Return least and largest values; None if they are the dtype's, or for floats."""
    if not isinstance(space, ARRAY_SPACES) or dtype.kind == "f" or np.dtype(space.dtype) != dtype:
        return None
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low, high = _said(space)
    if np.shape(low) != shape or (np.all(low == least) and np.all(high == most)):
        return None
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
