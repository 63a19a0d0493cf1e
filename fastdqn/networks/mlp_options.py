"""The options of an MLP: what they may be, and the shapes of the parameters that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import refuse_unless_bool

__all__ = ["ACTIVATIONS", "OF_SHAPES", "OPTIONS", "flag", "parameter_shapes", "refuse_unfit"]

OF_SHAPES = ("dueling", "noisy", "layer_norm")
OPTIONS = (*OF_SHAPES, "kaiming", "activation")
"""Arguments of `MLP` that are settings of a run; some decide which parameters it has."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "relu": torch.relu,
        "leaky_relu": functional.leaky_relu,
        "elu": functional.elu,
        "gelu": functional.gelu,
        "silu": functional.silu,
        "tanh": torch.tanh,
    }
)
"""What follows a hidden layer, by name."""
PLAIN, NOISY = ("weight", "bias"), ("weight", "bias", "weight_sigma", "bias_sigma")
"""Parameters of a linear layer, in order."""


def parameter_shapes(
    inputs: int,
    hidden_sizes: Sequence[int],
    num_actions: int,
    *,
    dueling: bool = False,
    noisy: bool = False,
    layer_norm: bool = False,
    num_atoms: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of an `MLP`, by their names and in their order.

    Args:
        inputs: Numbers of an observation, or values of a Discrete space.
        hidden_sizes: Units of each hidden layer.
        num_actions: A.
        dueling: See `MLP`, as of all that follow.
        noisy: See above.
        layer_norm: See above.
        num_atoms: See above.
    """
    steps = _steps(inputs, hidden_sizes, num_actions, num_atoms or 1, dueling=dueling)
    first = 1 if hidden_sizes else 0  # the first hidden layer has no noise
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (name, size, units) in enumerate(steps):
        for part in NOISY if noisy and number >= first else PLAIN:
            shapes[f"{name}.{part}"] = (units, size) if part.startswith("weight") else (units,)
    for number, units in enumerate(hidden_sizes if layer_norm else ()):
        shapes |= {f"norms.{number}.{part}": (units,) for part in PLAIN}
    return shapes


def _steps(
    inputs: int, hidden_sizes: Sequence[int], num_actions: int, num_atoms: int, *, dueling: bool
) -> Iterator[tuple[str, int, int]]:
    """Yield name, inputs and outputs of each linear layer."""
    sizes = (inputs, *hidden_sizes)
    for number, (size, units) in enumerate(pairwise(sizes)):
        yield f"layers.{number}", size, units
    of_value = sizes[-1] // 2 if dueling and hidden_sizes else 0
    yield f"layers.{len(hidden_sizes)}", sizes[-1] - of_value, num_actions * num_atoms
    if dueling:
        yield "value", of_value or sizes[-1], num_atoms


def flag(name: str, value: Any) -> bool:
    """Return an option that is on or off as a bool, or refuse it."""
    refuse_unless_bool(name, value, "Leave it out.")
    return bool(value)


def refuse_unfit(activation: Any, hidden_sizes: Sequence[int], *, dueling: bool) -> None:
    """Refuse an activation that there is not, and a dueling network that cannot be divided.

    Raises:
        UsageError: Names the flag.
    """
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        way_out = f"Choose {', '.join(ACTIVATIONS)}."
        raise UsageError(f"--activation {activation}", "there is no such activation", way_out)
    if dueling and hidden_sizes and hidden_sizes[-1] == 1:
        reason = "a dueling network divides its last hidden layer, which has 1 unit"
        raise UsageError("--dueling", reason, "Give it 2 or more with --hidden-sizes.")
