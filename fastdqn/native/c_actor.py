"""Acting as one call into C: the actions of the eager policy, within rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import Whole
from fastdqn.native.binding import (
    refuse_masks,
    refuse_obs,
    refuse_tensor,
    refuse_uniform,
)
from fastdqn.native.c_library import (
    Plan,
    load_library,
    settings_of,
    wrong,
)
from fastdqn.native.support import why_not_act
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP

__all__ = ["MAX_PLACES", "NativeActor"]

MAX_PLACES = 64
"""Addresses of observations cached at most; each group and each evaluation has one."""


class _Place(NamedTuple):
    """What acting on observations at one address needs; keeps none of them alive.

    `arguments` are the first ones of the C function; `seen` is `action` [N] int64 as an array.
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

    built_from = ("_network",)

    def __init__(self, network: FlatNetwork) -> None:
        why_not = why_not_act(network)
        if why_not or network.flat.device.type != "cpu":
            reason = why_not or f"the network is on {network.flat.device}"
            raise UsageError("acting in C", reason, "Act with `Policy.choose`.")
        self._network, self._device = network, network.flat.device
        assert isinstance(network.module, MLP)
        self._num_actions = network.module.num_actions
        self._act = load_library().fastdqn_act
        self._plans: dict[tuple[torch.Size, torch.dtype], Plan] = {}
        self._places: dict[tuple[int, int | None], _Place] = {}
        self._uniform, self._rows, self._row = torch.empty(0, 2), 0, 2

    def __call__(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """Choose an action for every environment. Hot path.

        Args:
            obs: [N, *O]; copied first where they are not contiguous.
            epsilon: Probability of exploring, in [0, 1].
            uniform: [N, 2] float32 in [0, 1): whether to explore, and where to; each row is
                contiguous.
            action_mask: [N, A] bool, copied like `obs`; None allows everything.

        Returns:
            [N] int64, counted from 0; the caller's own.

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
        out = torch.empty(rows, dtype=torch.int64)
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

    def _place(self, obs: Tensor, mask: Tensor | None) -> _Place:
        arguments, action = self._checked(obs, mask), torch.zeros(len(obs), dtype=torch.int64)
        if len(self._places) == MAX_PLACES:
            self._places.clear()
        mask_shape = None if mask is None else mask.shape
        place = _Place(obs.shape, obs.dtype, mask_shape, arguments, action, action.numpy())
        self._places[arguments[1:]] = place
        return place

    def _checked(self, obs: Tensor, mask: Tensor | None) -> tuple[int | None, int, int | None]:
        """Return the first arguments of the C function for tensors that it can read."""
        refuse_obs(self._network, obs)
        refuse_masks(self._network, mask, len(obs))
        plan = self._plans.get((obs.shape, obs.dtype)) or self._open(obs)
        return plan.address, obs.data_ptr(), None if mask is None else mask.data_ptr()

    def _check_uniform(self, uniform: Tensor, rows: int) -> None:
        refuse_uniform(uniform, rows, self._device)
        self._uniform, self._rows, self._row = uniform, rows, uniform.stride(0)

    def bound(self, obs: Tensor, uniform: Tensor, out: Tensor) -> Callable[[float], None]:
        """Return a function of epsilon that acts on tensors that never move; see `__call__`.

        They are checked, and their addresses are looked up, here; the calls use no PyTorch.
        """
        refuse_uniform(uniform, len(obs), self._device)
        refuse_tensor("out", out, (len(obs),), torch.int64, self._device)
        act, written, alive = self._act, out.data_ptr(), (self, obs, uniform, out)
        arguments = (*self._checked(obs, None), uniform.data_ptr(), uniform.stride(0))

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
