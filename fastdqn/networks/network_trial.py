"""Tries a network on a few observations, without side effects.

A copy of the network is tried, and the global generators are restored.
"""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdqn.errors import UsageError, first_line
from fastdqn.foundation.trial_env import generators_restored
from fastdqn.networks.flat_network import FlatNetwork

__all__ = ["tried", "twin_of", "warn_if_random"]

TOLERANCE = 1e-2
"""Fraction of the largest Q-value by which rounding may change one in another batch."""


def tried(network: FlatNetwork, shown: Tensor, where: str) -> int:
    """Return A of the Q-values for `shown` [B, *O], computed as a learner does.

    Raises:
        UsageError: The network raises, returns anything but Q-values [B, A] with a gradient, or
            writes into the observations.
    """
    with generators_restored():
        return _q_values(twin_of(network), shown.clone(), shown, where)


def _q_values(network: FlatNetwork, shown: Tensor, before: Tensor, where: str) -> int:
    name = f"network {type(network.module).__name__}"
    fed = f"observations {list(shown.shape)} {shown.dtype} of {where}"
    leaves = [view.detach().requires_grad_() for view in network.views(network.flat)]
    try:
        with torch.enable_grad():
            q: Any = network.q(leaves, shown)
    except UsageError as error:  # of the objective: these are no outputs that it reads
        raise UsageError(name, f"{error.reason}, and it gives {error.got}", error.way_out) from None
    except Exception as error:  # a network of the caller may raise any exception
        reason = f"it raises on {fed} ({type(error).__name__}: {first_line(error)})"
        raise UsageError(name, reason, "Build it for what it will be shown.") from error
    way_out = "Return one tensor of float numbers [B, A], a row per observation."
    if not isinstance(q, Tensor):
        raise UsageError(name, f"it gives a {type(q).__name__} for {fed}", way_out)
    if q.ndim != 2 or len(q) != len(shown) or not q.is_floating_point():
        raise UsageError(name, f"it gives {list(q.shape)} {q.dtype} for {fed}", way_out)
    if not q.requires_grad:
        reason = "its Q-values have no gradient by its parameters"
        raise UsageError(name, reason, "Leave out no_grad and detach.")
    if not torch.equal(shown.nan_to_num(), before.nan_to_num()):
        reason = "it writes into the observations that it is given"
        raise UsageError(name, reason, "Compute a new tensor: x = x / 255, not x /= 255.")
    return int(q.shape[1])


def warn_if_random(network: FlatNetwork, shown: Tensor, stacklevel: int) -> None:
    """Warn of Q-values that change from call to call, or with the other rows of a batch.

    The network stays in its mode (train or eval), since nothing changes that later.

    Args:
        network: One that `tried` has passed.
        shown: [B, *O], several rows.
        stacklevel: Of the warning, as `warnings.warn` takes it.

    Raises:
        UsageError: It takes several observations, but not a single one.
    """
    name = type(network.module).__name__
    with generators_restored(), torch.no_grad():
        twin = twin_of(network)
        if _is_random(twin, shown):
            twin.module.eval()
            way_out = (
                "Take it out (functional.dropout draws unless training=False)"
                if _is_random(twin, shown)
                else "Call .eval() on the network before you pass it"
            )
            message = f"gives other Q-values for the same observations at each call. {way_out}"
        elif _depends_on_others(twin, shown):
            message = (
                "values an observation by the other rows of its batch, so that what it predicts "
                "depends on what is asked beside it. Use layers that look at one row (LayerNorm)"
            )
        else:
            return
    warnings.warn(f"network {name} {message}.", UserWarning, stacklevel=stacklevel)


def _is_random(network: FlatNetwork, shown: Tensor) -> bool:
    """Return whether a network draws random numbers, or gives other values in a second call."""
    views = network.views(network.flat)
    network.q(views, shown)  # lazy draws happen here, once
    first = network.q(views, shown)
    before = _states(network.flat.device)
    second = network.q(views, shown)
    return _states(network.flat.device) != before or not _alike(first, second)


def _depends_on_others(network: FlatNetwork, shown: Tensor) -> bool:
    """Return whether a row's Q-values depend on the rows beside it."""
    views = network.views(network.flat)
    together = network.q(views, shown)
    try:
        alone = torch.cat([network.q(views, row) for row in torch.split(shown, 1)])
    except Exception as error:
        raise UsageError(
            f"network {type(network.module).__name__}",
            f"it raises on a single observation ({type(error).__name__}: {first_line(error)})",
            "Let it take batches of any size; predict asks for one row.",
        ) from error
    return not _alike(together, alone)


def _alike(one: Tensor, other: Tensor) -> bool:
    finite = one.abs().nan_to_num(0.0, 0.0, 0.0)
    atol = TOLERANCE * float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=atol, equal_nan=True)


def twin_of(network: FlatNetwork) -> FlatNetwork:
    """Return a copy to try, or the network itself where it cannot be copied."""
    try:
        return copy.deepcopy(network)
    except Exception:  # a network of the caller may hold any object
        return network


def _states(device: torch.device) -> tuple[Any, ...]:
    """Return the states of the global generators, for a comparison."""
    drawn: Any = np.random.get_state()
    states = [torch.get_rng_state()]
    if device.type in {"cuda", "mps"}:
        states.append(getattr(torch, device.type).get_rng_state())
    plain = tuple(state.cpu().numpy().tobytes() for state in states)
    return *plain, random.getstate(), drawn[1].tobytes(), drawn[2:]
