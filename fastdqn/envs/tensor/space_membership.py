"""Whether a space holds the observations of tensor environments, computed on the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    low, high = _limits(check, device)

    def holds(values: Tensor) -> Tensor:
        fine: Tensor = (values >= low) & (values <= high)
        return fine.reshape(len(values), -1).all(1)

    return holds


def _finite(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    return torch.isfinite(values).reshape(len(values), -1).all(1)


def _limits(check: SpaceCheck, device: torch.device) -> tuple[Any, Any]:
    """Return the bounds, as plain numbers if they are the same everywhere."""
    low, high = check.low, check.high
    if np.ndim(low) == np.ndim(high) == 0:
        return int(low), int(high)
    as_tensor = partial(torch.as_tensor, device=device)
    return as_tensor(np.asarray(low, np.int64)), as_tensor(np.asarray(high, np.int64))
