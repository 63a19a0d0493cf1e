"""Any module as a pure function of one flat parameter vector."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import Whole, copied
from fastdqn.foundation.scalars import whole
from fastdqn.networks.mlp import MLP

__all__ = ["FlatNetwork"]

IMPURE_LAYERS = (_BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU)
"""Layers that mix the batch's rows or draw random numbers."""


class FlatNetwork(Whole):
    """A module as a pure function of one flat float32 vector of its parameters.

    One vector makes the optimizer, the clipping and the soft target one operation each. The
    module's own parameters become views of `flat`, so that it always has the latest weights.

    A module whose forward pass reads random numbers says how many in an attribute `num_random`:
    an int, or a function of the rows of observations. It is then called with the observations
    and so many uniform numbers [R] float32 in [0, 1), and draws none itself: a noisy layer turns
    them into its noise, a network of quantiles into its fractions. The attribute of the outermost
    module counts, for all layers together; that of inner layers is not summed.

    Args:
        module: Maps observations [B, *O] to Q-values [B, A], or to the outputs of which the
            objective makes some; moved to the device.
        device: Where the vector lives.
        q_values: Turns outputs into Q-values [B, A]; None where they are Q-values.

    Attributes:
        flat: [P] float32; written in place by the learner, never replaced.
        q_values: See above.

    Raises:
        UsageError: The module has no parameters, parameters that are frozen or not float32, or
            layers whose forward pass changes or randomises them (batch norm, dropout); a
            `num_random` that is no whole number, or of inner layers alone.
    """

    kept_by = "Save module.state_dict() of its module."

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        q_values: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        _refuse_module(module)
        self.q_values = q_values
        self._num_random = _num_random_of(module)
        _refuse_owned(module)
        self.module = module.to(device)
        named = list(module.named_parameters())
        self._names = [name for name, _ in named]
        self._shapes = [parameter.shape for _, parameter in named]
        self._sizes = [parameter.numel() for _, parameter in named]
        self.flat = torch.cat([parameter.detach().reshape(-1) for _, parameter in named])
        self._tie()

    def _tie(self) -> None:
        """Let the module's parameters be views of `flat`."""
        _OWNERS[self.module] = weakref.ref(self)
        for parameter, view in zip(self.module.parameters(), self.views(self.flat), strict=True):
            parameter.data = view

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy module and vector; the copy's parameters are views of the copy's vector."""
        twin = copied(self, memo)
        twin._tie()
        return twin

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return views of `flat` [P] in the shapes of the parameters."""
        parts = torch.split(flat, self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def num_random(self, rows: int) -> int:
        """Return how many uniform numbers a forward pass over so many observations reads."""
        count = self._num_random
        return _whole(self.module, count(rows)) if callable(count) else count

    def num_columns(self, rows: int) -> int:
        """Return the columns of `rows` rows that hold so many numbers; see `numbers_in`."""
        return -(-self.num_random(rows) // max(rows, 1))

    def numbers_in(self, uniform: Tensor, first: int) -> Tensor | None:
        """Return the numbers of a pass, from column `first` of [N, C] on; None where it has none.

        Acting draws them beside its own, so that there is one draw.
        """
        count, rows = self.num_random(len(uniform)), len(uniform)
        if not count or not rows:  # no row reads any
            return None
        return uniform[:, first : first + self.num_columns(rows)].reshape(-1)[:count]

    def __call__(
        self, parameters: Sequence[Tensor], obs: Tensor, random: Tensor | None = None
    ) -> Tensor:
        """Return the outputs [B, ...] for `obs` [B, *O] under the given parameters.

        Args:
            parameters: In the shapes of the module's own.
            obs: [B, *O].
            random: [R] float32 in [0, 1), R being `num_random(B)`; None is one half everywhere,
                where noise that is symmetric vanishes.
        """
        if type(self.module) is MLP:  # a subclass may have a forward pass of its own
            return self.module.apply_to(parameters, obs, random)
        by_name = dict(zip(self._names, parameters, strict=True))
        given: tuple[Tensor, ...] = (obs,)
        if self.num_random(len(obs) or 1):  # of no rows, too, it is called with numbers
            count = self.num_random(len(obs))
            given = (obs, self.flat.new_full((count,), 0.5) if random is None else random)
        outputs: Tensor = functional_call(self.module, by_name, given)
        return outputs

    def q(self, parameters: Sequence[Tensor], obs: Tensor, random: Tensor | None = None) -> Tensor:
        """Return Q-values [B, A], which act; see `__call__`."""
        outputs = self(parameters, obs, random)
        return outputs if self.q_values is None else self.q_values(outputs)


_OWNERS: weakref.WeakKeyDictionary[nn.Module, weakref.ref[FlatNetwork]] = (
    weakref.WeakKeyDictionary()
)
"""The flat network whose vector holds the parameters of a module."""


def _refuse_owned(module: nn.Module) -> None:
    """Refuse a module that another agent or learner trains: its parameters can view one vector."""
    owner = _OWNERS.get(module, lambda: None)()
    if owner is not None:
        raise UsageError(
            f"network {type(module).__name__}",
            "another agent or learner trains its parameters",
            "Pass each its own: copy.deepcopy(network), or del the other one first.",
        )


def _num_random_of(module: nn.Module) -> int | Callable[[int], Any]:
    """Return the numbers that a module reads, or refuse an attribute that would go unread."""
    count: Any = getattr(module, "num_random", 0)
    name, way_out = f"network {type(module).__name__}", "Let forward(obs, random) hand them down."
    if type(module) is MLP and count != (reads := module.num_noise):
        reason = f"its forward pass reads {reads or 'none'}"
        raise UsageError(f"num_random of {name}", reason, "Subclass MLP.")
    inner = [type(layer).__name__ for layer in module.modules() if getattr(layer, "num_random", 0)]
    silent = isinstance(module, MLP) and not count  # the number that every MLP has
    if inner and (silent or not hasattr(module, "num_random")):
        reason = f"its layer {inner[0]} has num_random, and the outermost module has none"
        raise UsageError(name, reason, f"Give it the sum of its layers'. {way_out}")
    return count if callable(count) else _whole(module, count)


def _whole(module: nn.Module, count: Any) -> int:
    return whole(f"num_random of network {type(module).__name__}", count, way_out="0 is none.")


def _refuse_module(module: nn.Module) -> None:
    name = f"network {type(module).__name__}"
    if not isinstance(module, nn.Module):
        got, reason = f"network {module}", "it is no torch.nn.Module"
        raise UsageError(got, reason, "Pass an instance of one.")
    parameters = list(module.parameters())
    lazy = any(isinstance(parameter, UninitializedParameter) for parameter in parameters)
    meta = any(parameter.is_meta for parameter in parameters)
    others = any(parameter.dtype != torch.float32 for parameter in parameters)
    frozen = not all(parameter.requires_grad for parameter in parameters)
    sizes = "Call it once on a batch of observations, or give the layers their sizes."
    learned = "some of its parameters do not require a gradient, and every parameter is learned"
    for wrong, reason, way_out in (
        (lazy, "it has lazy layers, whose sizes are not known yet", sizes),
        (meta, "its parameters have no memory (device meta)", "Build it on the CPU."),
        (not parameters, "it has no parameters", "Pass a module that learns."),
        (others, "its parameters are not float32", "Call .float() on it."),
        (frozen, learned, "Register what shall stay fixed as buffers."),
    ):
        if wrong:
            raise UsageError(name, reason, way_out)
    for layer in module.modules():
        if isinstance(layer, IMPURE_LAYERS) or getattr(layer, "track_running_stats", False):
            raise UsageError(
                f"{name} with {type(layer).__name__}",
                "its forward pass is not a pure function of parameters and observations",
                "Use LayerNorm, or leave the layer out.",
            )
