"""A DQN update as one call into C: the eager step's numbers, within rounding."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdqn.foundation.copying import Whole
from fastdqn.native.binding import (
    refuse_index,
    refuse_ring,
    refuse_tensor,
)
from fastdqn.native.c_library import (
    Plan,
    RingAddresses,
    ValidAddresses,
    addresses_of,
    load_library,
    settings_of,
    wrong,
)
from fastdqn.native.support import Learned, batch_as_ring
from fastdqn.replay import NewestSampler, PrioritizedSampler, Ring, Sampler
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.transition import Transitions

__all__ = ["NativeUpdate"]


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
        self._addresses, self._valid = RingAddresses(), ValidAddresses()

    def __call__(self, ring: Ring, index: Tensor) -> None:
        """Make one update for each row of `index` [K, B] int64, in order.

        Raises:
            IndexError: An index, or an action, a next index or a one-hot observation that it leads
                to, is out of range; the rows before it were learned from.
        """
        index = index.contiguous()
        if index.ndim != 2 or index.dtype is not torch.int64 or not index.is_cpu:
            refuse_index(index, self._network.flat.device)
        self._run(ring, index)

    def bound(
        self, ring: Ring, index: Tensor, by: PrioritizedSampler | None = None
    ) -> Callable[[], None]:
        """Return what learns from tensors that stay where they are; see `__call__`.

        Args:
            ring: Never replaced.
            index: [K, B] int64, contiguous; read at each call.
            by: Draws the batches from `index`, which then holds random bits.

        Raises:
            UsageError: The C cannot read them.
        """
        refuse_ring(self._network, ring)
        refuse_index(index, self._network.flat.device)
        plan, addresses = self._plan_of(ring, index), addresses_of(ring)
        update, alive = self._update, (plan, ring, index, addresses, by)
        drawn = ctypes.byref(addresses), None, by and by.address
        arguments = plan.address, *drawn, index.data_ptr(), len(index)

        def learn(_: object = alive) -> None:
            answer = update(*arguments)
            if answer:
                raise wrong(answer)

        return learn

    def sampled(self, sampler: Sampler, random_bits: Tensor) -> None:
        """Make updates on batches that a sampler chooses; the choice is a part of the call.

        Args:
            sampler: Of a ring on the CPU.
            random_bits: [K, B] int64 from `sampler.fill`, or for tensor environments of their own.
        """
        if isinstance(sampler, PrioritizedSampler):
            self._run(sampler.ring, random_bits, by=sampler)
            return
        if isinstance(sampler.replay, FunctionalRing):
            self(sampler.ring, sampler.draw(random_bits)[0])
            return
        order = sampler.buffer.valid.order
        if sampler is not self._sampler:
            refuse_index(random_bits, self._network.flat.device)
            refuse_tensor("order", order, order.shape, torch.int64, self._network.flat.device)
            self._sampler = sampler
        self._valid.order, self._valid.size = order.data_ptr(), len(order)
        self._valid.first, self._valid.count = sampler.span_on_host()
        self._valid.newest = isinstance(sampler, NewestSampler)
        self._run(sampler.ring, random_bits, ctypes.byref(self._valid))

    def _run(
        self, ring: Ring, numbers: Tensor, valid: Any = None, by: PrioritizedSampler | None = None
    ) -> None:
        if ring is not self._ring:
            refuse_ring(self._network, ring)
            self._ring, self._addresses = ring, addresses_of(ring)
        plan = self._plan_of(ring, numbers)
        drawn = ctypes.byref(self._addresses), valid, by and by.address
        answer = self._update(plan.address, *drawn, numbers.data_ptr(), len(numbers))
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
        self._run(ring, index)
