"""A DQN update as one call into C: the same numbers as the eager step, within rounding."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdqn.native.library import load_library
from fastdqn.native.plan import (
    RING_FIELDS,
    Plan,
    RingAddresses,
    StartsAddresses,
    settings_of,
)
from fastdqn.native.settings import LOSSES, TARGETS, Learned, batch_as_ring, numbers_of
from fastdqn.replay import Ring, Sampler
from fastdqn.transition import Transitions

__all__ = ["NativeUpdate"]

WRONG = {
    1: "an index does not lie in the ring",
    2: "an action is none of the network's, or a next index does not lie in the ring",
}
"""What the C answers when it refuses to learn."""


class NativeUpdate:
    """Updates a learner's state in place. Hot path: one call into C, nothing allocated.

    Args:
        learned: Of an MLP on the CPU.
    """

    def __init__(self, learned: Learned) -> None:
        self._network = learned.network
        self._tensors, self._slots = dict(learned.tensors), list(learned.slots)
        self._numbers: dict[str, Any] = {
            **learned.plain,
            **numbers_of(learned.optimizer),
            **learned.bounds,
            "loss": LOSSES[learned.loss],
            "target": TARGETS[learned.target],
        }
        self._update = load_library().fastdqn_update
        self._plans: dict[tuple[int, torch.dtype], Plan] = {}
        self._ring: Ring | None = None
        self._addresses, self._starts = RingAddresses(), StartsAddresses()

    def __call__(self, ring: Ring, index: Tensor) -> None:
        """Make one update for each row of `index` [K, B] int64, in order.

        Raises:
            IndexError: An index, or an action or a next index that it leads to, is out of range;
                the rows before it were learned from.
        """
        self._run(ring, index.contiguous(), None)

    def bound(self, ring: Ring, index: Tensor) -> Callable[[], None]:
        """Return what learns from tensors that stay where they are; see `__call__`.

        Args:
            ring: Never replaced.
            index: [K, B] int64, contiguous; read at each call.
        """
        plan, addresses = self._plan_of(ring, index), _addresses_of(ring)
        kept = plan, ring, index, addresses
        given = (plan.address, ctypes.byref(addresses), None, index.data_ptr(), len(index))
        update = self._update

        def learn(_: object = kept) -> None:
            answer = update(*given)
            if answer:
                raise IndexError(WRONG[answer])

        return learn

    def sampled(self, sampler: Sampler, updates: int) -> None:
        """Make updates on batches that a sampler chooses; the choice is a part of the call.

        Raises:
            UsageError: Its ring is empty.
        """
        bits = sampler.bits(updates)
        order, first, count = sampler.window
        self._starts.order, self._starts.size = order.data_ptr(), len(order)
        self._starts.first, self._starts.count = first, count
        self._starts.newest = sampler.newest
        self._run(sampler.ring, bits, ctypes.byref(self._starts))

    def _run(self, ring: Ring, numbers: Tensor, starts: Any) -> None:
        if ring is not self._ring:
            self._ring, self._addresses = ring, _addresses_of(ring)
        plan = self._plan_of(ring, numbers)
        given = (ctypes.byref(self._addresses), starts, numbers.data_ptr(), len(numbers))
        answer = self._update(plan.address, *given)
        if answer:
            raise IndexError(WRONG[answer])

    def _plan_of(self, ring: Ring, numbers: Tensor) -> Plan:
        key = numbers.shape[1], ring.frames.dtype
        return self._plans.get(key) or self._open(key)

    def given(self, batch: Transitions) -> None:
        """Make one update on a batch that the caller holds; see `__call__`."""
        self(batch_as_ring(batch), torch.arange(len(batch.action)).unsqueeze(0))

    def _open(self, key: tuple[int, torch.dtype]) -> Plan:
        settings = settings_of(self._network, *key)
        for name, number in self._numbers.items():
            setattr(settings, name, number)
        for name, tensor in self._tensors.items():
            setattr(settings, name, tensor.data_ptr())
        for number, slot in enumerate(self._slots):
            settings.slots[number] = slot.data_ptr()
        kept = (self._network.flat, *self._tensors.values(), *self._slots)
        self._plans[key] = Plan(settings, *kept)
        return self._plans[key]


def _addresses_of(ring: Ring) -> RingAddresses:
    tensors = {name: getattr(ring, name) for name in RING_FIELDS}
    return RingAddresses(
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()},
        num_transitions=len(ring.action),
        num_frames=len(ring.frames),
        frame_bytes=ring.frames[0].numel() * ring.frames.element_size(),
    )
