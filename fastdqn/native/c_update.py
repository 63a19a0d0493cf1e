"""A DQN update and acting as one call into C: the eager step's numbers, within rounding."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import Whole
from fastdqn.native.binding import (
    refuse_index,
    refuse_masks,
    refuse_obs,
    refuse_ring,
    refuse_tensor,
    refuse_uniform,
)
from fastdqn.native.c_library import (
    Plan,
    RingAddresses,
    StartsAddresses,
    addresses_of,
    load_library,
    settings_of,
    wrong,
)
from fastdqn.native.support import Learned, batch_as_ring, why_not_act
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.replay import NewestSampler, Ring, Sampler
from fastdqn.transition import Transitions

__all__ = ["MAX_PLACES", "NativeActor", "NativeUpdate"]

MAX_PLACES = 64
"""Addresses of observations cached at most; each group and each evaluation has one."""


class NativeUpdate(Whole):
    """Updates a learner's state in place. Hot path: one call into C, nothing allocated.

    Args:
        learned: Of an MLP on the CPU.

    Raises:
        UsageError: At a call with a ring, a batch or an index that is new: the C cannot read it.
    """

    built_from = ("_learned",)

    def __init__(self, learned: Learned) -> None:
        self._learned, self._network, self._numbers = learned, learned.network, learned.numbers
        self._update = load_library().fastdqn_update
        self._plans: dict[tuple[int, torch.dtype], Plan] = {}
        self._ring: Ring | None = None
        self._sampler: Sampler | None = None
        self._indices: dict[int, Tensor] = {}
        self._addresses, self._starts = RingAddresses(), StartsAddresses()

    def __call__(self, ring: Ring, index: Tensor) -> None:
        """Make one update for each row of `index` [K, B] int64, in order.

        Raises:
            IndexError: An index, or an action, a next index or a one-hot observation that it leads
                to, is out of range; the rows before it were learned from.
        """
        index = index.contiguous()
        if index.ndim != 2 or index.dtype is not torch.int64 or not index.is_cpu:
            refuse_index(index, self._network.flat.device)
        self._run(ring, index, None)

    def bound(self, ring: Ring, index: Tensor) -> Callable[[], None]:
        """Return what learns from tensors that stay where they are; see `__call__`.

        Args:
            ring: Never replaced.
            index: [K, B] int64, contiguous; read at each call.

        Raises:
            UsageError: The C cannot read them.
        """
        refuse_ring(self._network, ring)
        refuse_index(index, self._network.flat.device)
        plan, addresses = self._plan_of(ring, index), addresses_of(ring)
        update, alive = self._update, (plan, ring, index, addresses)
        arguments = (plan.address, ctypes.byref(addresses), None, index.data_ptr(), len(index))

        def learn(_: object = alive) -> None:
            answer = update(*arguments)
            if answer:
                raise wrong(answer)

        return learn

    def sampled(self, sampler: Sampler, random_bits: Tensor) -> None:
        """Make updates on batches that a sampler chooses; the choice is a part of the call.

        Args:
            sampler: Of a ring on the CPU.
            random_bits: [K, B] int64 from `sampler.fill`.
        """
        order = sampler.buffer.valid.order
        if sampler is not self._sampler:
            refuse_index(random_bits, self._network.flat.device)
            refuse_tensor("order", order, order.shape, torch.int64, self._network.flat.device)
            self._sampler = sampler
        self._starts.order, self._starts.size = order.data_ptr(), len(order)
        self._starts.first, self._starts.count = sampler.span_on_host()
        self._starts.newest = isinstance(sampler, NewestSampler)
        self._run(sampler.ring, random_bits, ctypes.byref(self._starts))

    def _run(self, ring: Ring, numbers: Tensor, starts: Any) -> None:
        if ring is not self._ring:
            refuse_ring(self._network, ring)
            self._ring, self._addresses = ring, addresses_of(ring)
        plan = self._plan_of(ring, numbers)
        arguments = (ctypes.byref(self._addresses), starts, numbers.data_ptr(), len(numbers))
        answer = self._update(plan.address, *arguments)
        if answer:
            raise wrong(answer)

    def _plan_of(self, ring: Ring, numbers: Tensor) -> Plan:
        key = numbers.shape[1], ring.frames.dtype
        plan = self._plans.get(key)
        if plan is None:
            settings = settings_of(self._network, *key)
            self._learned.fill(settings, self._numbers)
            plan = self._plans[key] = Plan(settings, self._learned)
        return plan

    def on_batch(self, batch: Transitions) -> None:
        """Make one update on a batch that the network fits (`refuse_batch`); see `__call__`."""
        size, (ring, own) = len(batch.action), batch_as_ring(batch)
        self._ring, self._addresses = ring, addresses_of(ring)
        for name, tensor in own.items():
            setattr(self._addresses, name, tensor.data_ptr())
        index = self._indices.get(size)
        if index is None:
            index = self._indices[size] = torch.arange(size).unsqueeze(0)
        self._run(ring, index, None)


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
        self._num_actions = network.views(network.flat)[-1].numel()
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
