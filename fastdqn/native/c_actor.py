"""Acting as one call into C."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import Whole
from fastdqn.native.binding import refuse_masks, refuse_obs, refuse_out, refuse_uniform
from fastdqn.native.c_library import load_library
from fastdqn.native.c_structs import Plan, settings_of, wrong
from fastdqn.native.support import why_not_act
from fastdqn.networks.flat_network import FlatNetwork

__all__ = ["NativeActor"]

MAX_PLACES = 64
"""Addresses of observations cached at most; each group and each evaluation has one."""


class _Place(NamedTuple):
    """Arguments of acting for observations at one address; keeps none of them alive.

    Attributes:
        shape: Of the observations, [N, *O].
        dtype: Of the observations.
        mask_shape: Of the masks, or None.
        arguments: The first ones of the C function: plan, observations, masks.
        action: [N] int64.
        seen: The same as an array.
    """

    shape: torch.Size
    dtype: torch.dtype
    mask_shape: torch.Size | None
    arguments: tuple[int | None, int, int | None]
    action: Tensor
    seen: npt.NDArray[np.int64]


def _is_mask(mask: Tensor, shape: torch.Size | None) -> bool:
    return mask.shape == shape and mask.dtype is torch.bool and mask.is_contiguous()


class NativeActor(Whole):
    """Chooses epsilon-greedy actions with the latest parameters of an MLP on the CPU.

    Tensors are checked when they are new; later calls only look whether they are known.

    Args:
        network: Of an MLP on the CPU.

    Raises:
        UsageError: It is another network; at a call: tensors that the C cannot read.
    """

    def __init__(self, network: FlatNetwork) -> None:
        why_not = why_not_act(network)
        if why_not or network.flat.device.type != "cpu":
            reason = why_not or f"the network is on {network.flat.device}"
            raise UsageError("acting in C", reason, "Act with `Policy.choose`.")
        self._network, self._device = network, network.flat.device
        self._num_actions = network.views(network.flat)[-1].numel()
        self._act = load_library().fastdqn_act
        self._plans: dict[tuple[torch.Size, torch.dtype], Plan] = {}
        self._places: dict[tuple[int, int | None], _Place] = {}
        self._uniform, self._rows, self._row = torch.empty(0, 2), 0, 2

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeActor:
        """Make another one, of the network's copy."""
        twin = memo[id(self)] = NativeActor(copy.deepcopy(self._network, memo))
        return twin

    def __call__(
        self,
        obs: Tensor,
        epsilon: float,
        uniform: Tensor,
        action_mask: Tensor | None = None,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Choose an action for every environment. Hot path.

        Args:
            obs: [N, *O]; copied first where they are not contiguous.
            epsilon: Probability of exploring, in [0, 1].
            uniform: [N, 2] float32 in [0, 1): whether to explore, and where to; each row is
                contiguous.
            action_mask: [N, A] bool, copied like `obs`; None allows everything.
            out: [N] int64, contiguous; written.

        Returns:
            [N] int64, counted from 0: `out` unless that is None.

        Raises:
            IndexError: A one-hot observation is out of range.
        """
        if not (obs.is_cpu and obs.is_contiguous()):
            obs = obs.contiguous()
            refuse_obs(self._network, obs)
        plan = self._plans.get((obs.shape, obs.dtype)) or self._open(obs)
        rows, mask = len(obs), None
        if action_mask is not None:
            action_mask = action_mask.contiguous()
            fits = action_mask.shape == (rows, self._num_actions) and action_mask.is_cpu
            if not fits or action_mask.dtype is not torch.bool:
                refuse_masks(self._network, action_mask, rows)
            mask = action_mask.data_ptr()
        if out is None:
            out = torch.empty(rows, dtype=torch.int64)
        else:
            refuse_out(out, rows, self._device)
        if uniform is not self._uniform or rows != self._rows:
            self._check_uniform(uniform, rows)
        draws = uniform.data_ptr(), self._row
        answer = self._act(plan.address, obs.data_ptr(), mask, *draws, epsilon, out.data_ptr())
        if answer:
            raise wrong(answer)
        return out

    def on_host(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Do the same for observations and masks at the same address at every call. Hot path.

        Returns:
            [N] int64 as a tensor and as an array; both are overwritten by the next call with
            observations at this place.

        Raises:
            IndexError: A one-hot observation is out of range.
        """
        address, mask = obs.data_ptr(), None if action_mask is None else action_mask.data_ptr()
        place = self._places.get((address, mask))
        if (
            place is None
            or place.shape != obs.shape
            or place.dtype is not obs.dtype
            or not obs.is_contiguous()
            or (action_mask is not None and not _is_mask(action_mask, place.mask_shape))
        ):
            place = self._place(obs, action_mask)
        if uniform is not self._uniform or len(place.seen) != self._rows:
            self._check_uniform(uniform, len(place.seen))
        draws = uniform.data_ptr(), self._row
        answer = self._act(*place.arguments, *draws, epsilon, place.action.data_ptr())
        if answer:
            raise wrong(answer)
        return place.action, place.seen

    def _place(self, obs: Tensor, action_mask: Tensor | None) -> _Place:
        """Check observations and masks that are new at their address."""
        refuse_obs(self._network, obs)
        refuse_masks(self._network, action_mask, len(obs))
        plan = self._plans.get((obs.shape, obs.dtype)) or self._open(obs)
        action, address = torch.zeros(len(obs), dtype=torch.int64), obs.data_ptr()
        mask = None if action_mask is None else action_mask.data_ptr()
        if len(self._places) == MAX_PLACES:
            self._places.clear()
        shape, arguments = obs.shape, (plan.address, address, mask)
        mask_shape = None if action_mask is None else action_mask.shape
        place = _Place(shape, obs.dtype, mask_shape, arguments, action, action.numpy())
        self._places[address, mask] = place
        return place

    def _check_uniform(self, uniform: Tensor, rows: int) -> None:
        """Check random numbers that are new; usually they are drawn into the same memory."""
        refuse_uniform(uniform, rows, self._device)
        self._uniform, self._rows, self._row = uniform, rows, uniform.stride(0)

    def bound(self, obs: Tensor, uniform: Tensor, out: Tensor) -> Callable[[float], None]:
        """Return a function of epsilon that acts on tensors that never move; see `__call__`.

        They are checked, and their addresses are looked up, here; the calls use no PyTorch.
        """
        refuse_obs(self._network, obs)
        refuse_uniform(uniform, len(obs), self._device)
        refuse_out(out, len(obs), self._device)
        plan = self._plans.get((obs.shape, obs.dtype)) or self._open(obs)
        act, alive = self._act, (plan, obs, uniform, out)
        arguments = (plan.address, obs.data_ptr(), None, uniform.data_ptr(), uniform.stride(0))
        written = out.data_ptr()

        def choose(epsilon: float, _: object = alive) -> None:
            answer = act(*arguments, epsilon, written)
            if answer:
                raise wrong(answer)

        return choose

    def _open(self, obs: Tensor) -> Plan:
        refuse_obs(self._network, obs)
        settings = settings_of(self._network, len(obs), obs.dtype)
        plan = self._plans[obs.shape, obs.dtype] = Plan(settings, self._network.flat)
        return plan
