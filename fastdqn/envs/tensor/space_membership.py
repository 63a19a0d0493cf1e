"""Whether a space holds the observations of tensor environments, computed on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Space
from torch import Tensor

from fastdqn.envs.space_check import SpaceCheck

__all__ = ["holds_integers", "membership_of"]


def holds_integers(space: Space[Any]) -> bool:
    """Return whether a space is one of integers, or of flags."""
    return np.dtype(space.dtype).kind != "f"


def membership_of(space: Space[Any], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function of values [N, *O]: which rows the space holds, [N] bool.

    Floats need only be finite: their bounds are often hints. Integers are compared with their
    bounds, unless those are the dtype's.

    Args:
        space: Of one observation.
        device: Where the values lie.
    """
    check = SpaceCheck(space, tuple(space.shape or ()), np.dtype(space.dtype))
    if not check.bounded:
        return _finite
    low, high = (_limit(bound, device) for bound in (check.low, check.high))

    def holds(values: Tensor) -> Tensor:
        fine: Tensor = (values >= low) & (values <= high)
        return fine.reshape(len(values), -1).all(1)

    return holds


def _finite(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    return torch.isfinite(values).reshape(len(values), -1).all(1)


def _limit(bound: Any, device: torch.device) -> Any:
    """Return a bound, as a plain number if it is the same everywhere."""
    if np.ndim(bound) == 0:
        return int(bound)
    return torch.as_tensor(np.asarray(bound, np.int64), device=device)
