"""A DQN update as one call into C: the same numbers as the eager step, within rounding."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdqn.foundation.copying import Whole
from fastdqn.native.binding import refuse_index, refuse_ring, refuse_tensor
from fastdqn.native.c_library import load_library
from fastdqn.native.c_structs import (
    RING_FIELDS,
    Plan,
    RingAddresses,
    StartsAddresses,
    settings_of,
    wrong,
)
from fastdqn.native.support import (
    TARGETS,
    Learned,
    batch_as_ring,
    numbers_of,
    own_factors,
)
from fastdqn.networks.network_check import kind_of, refuse_batch
from fastdqn.replay import NewestSampler, Ring, Sampler
from fastdqn.transition import Transitions

__all__ = ["NativeUpdate"]


class NativeUpdate(Whole):
    """Updates a learner's state in place. Hot path: one call into C, nothing allocated.

    Args:
        learned: Of an MLP on the CPU.

    Raises:
        UsageError: At a call with a ring, a batch or an index that is new: the C cannot read it.
    """

    def __init__(self, learned: Learned) -> None:
        self._learned, self._network = learned, learned.network
        self._tensors, self._slots = dict(learned.tensors), list(learned.slots)
        self._numbers: dict[str, Any] = {
            **learned.plain,
            **numbers_of(learned.optimizer),
            **learned.bounds,
            "double_dqn": learned.double_dqn,
            "loss": learned.loss,
            "target": TARGETS[learned.target],
        }
        self._update = load_library().fastdqn_update
        self._plans: dict[tuple[int, torch.dtype], Plan] = {}
        self._ring: Ring | None = None
        self._sampler: Sampler | None = None
        self._batch: tuple[Any, ...] = ()  # kind of the last batch, checked
        self._indices: dict[int, Tensor] = {}
        self._addresses, self._starts = RingAddresses(), StartsAddresses()

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeUpdate:
        """Make another one, of the copies of what is learned."""
        twin = memo[id(self)] = NativeUpdate(copy.deepcopy(self._learned, memo))
        return twin

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
        plan, addresses = self._plan_of(ring, index), _addresses_of(ring)
        alive = plan, ring, index, addresses
        arguments = (plan.address, ctypes.byref(addresses), None, index.data_ptr(), len(index))
        update = self._update

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
            self._ring, self._addresses = ring, _addresses_of(ring)
        plan = self._plan_of(ring, numbers)
        arguments = (ctypes.byref(self._addresses), starts, numbers.data_ptr(), len(numbers))
        answer = self._update(plan.address, *arguments)
        if answer:
            raise wrong(answer)

    def _plan_of(self, ring: Ring, numbers: Tensor) -> Plan:
        key = numbers.shape[1], ring.frames.dtype
        return self._plans.get(key) or self._open(key)

    def on_batch(self, batch: Transitions) -> None:
        """Make one update on a batch of the caller's; see `__call__`."""
        kind = kind_of(batch)
        if kind != self._batch:
            refuse_batch(self._network, batch)
            self._batch = kind
        size, ring = len(batch.action), batch_as_ring(batch)
        self._ring, self._addresses = ring, _addresses_of(ring)
        own = own_factors(batch)
        for name, tensor in own.items():
            setattr(self._addresses, name, tensor.data_ptr())
        index = self._indices.get(size)
        if index is None:
            index = self._indices[size] = torch.arange(size).unsqueeze(0)
        self._run(ring, index, None)

    def _open(self, key: tuple[int, torch.dtype]) -> Plan:
        settings = settings_of(self._network, *key)
        for name, number in self._numbers.items():
            setattr(settings, name, number)
        for name, tensor in self._tensors.items():
            setattr(settings, name, tensor.data_ptr())
        for number, slot in enumerate(self._slots):
            settings.slots[number] = slot.data_ptr()
        alive = (self._network.flat, *self._tensors.values(), *self._slots)
        self._plans[key] = Plan(settings, *alive)
        return self._plans[key]


def _addresses_of(ring: Ring) -> RingAddresses:
    tensors = {name: getattr(ring, name) for name in RING_FIELDS}
    return RingAddresses(
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()},
        num_transitions=len(ring.action),
        num_frames=len(ring.frames),
        frame_bytes=ring.frames[0].numel() * ring.frames.element_size(),
    )
