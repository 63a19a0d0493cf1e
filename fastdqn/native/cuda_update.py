"""A DQN update and acting as a few kernels on a card: the eager step's numbers, within rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdqn.foundation.copying import Whole
from fastdqn.native.binding import (
    refuse_index,
    refuse_masks,
    refuse_obs,
    refuse_ring,
    refuse_tensor,
    refuse_uniform,
)
from fastdqn.native.c_library import RING_FIELDS
from fastdqn.native.cuda_plan import GATHERED, Call, CudaPlan, Make, Shape, on_the_card
from fastdqn.native.support import Learned, batch_as_ring, refuse_by_kernels
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.replay import NewestSampler, Ring, Sampler
from fastdqn.transition import Transitions

__all__ = ["CudaActor", "CudaUpdate"]

CHOICES = ("double_dqn", "loss", "target", "optimizer", "amsgrad")
"""Numbers with which the kernels are compiled."""
MAX_ROWS = 8
"""Rows of a batch that one block takes at most."""
SPREAD_OVER = 128
"""Blocks over which a batch is spread before a block takes more rows; a large card has as many
processors."""


class CudaUpdate(Whole):
    """Updates a learner's state in place. Queues a few kernels; never waits for the card.

    The calls allocate only when a batch size or a dtype is new. CUDA graphs can record them.

    Args:
        learned: Of an MLP on a card.
        make: Compiles the kernels.

    Attributes:
        make: See above; actors compile by it, too.

    Raises:
        UsageError: The MLP is dueling, or has LayerNorm.
    """

    built_from = ("_learned", "make")

    def __init__(self, learned: Learned, make: Make = on_the_card) -> None:
        module, numbers = learned.network.module, learned.numbers
        assert isinstance(module, MLP)
        refuse_by_kernels(module)
        self._learned, self._network = learned, learned.network
        self._module, self.make = module, make
        self._ring: Ring | None = None
        self._choices = {name: numbers.pop(name) for name in CHOICES}
        flat = self._network.flat.data_ptr()
        self._call = Call(online=flat, scale=module.scale, offset=module.offset)
        rests = {"rest1": 1 - numbers["beta1"], "rest2": 1 - numbers["beta2"]}
        learned.fill(self._call, {**numbers, **rests})
        self._plans: dict[tuple[int, torch.dtype, bool], CudaPlan] = {}

    def __call__(self, ring: Ring, index: Tensor) -> None:
        """Make one update for each row of `index` [K, B] int64, in order.

        An index, or an action, a next index or a one-hot observation that it leads to, that is out
        of range makes its update not finite: it changes nothing and is counted as skipped.

        Raises:
            UsageError: The kernels cannot read the ring or the index.
        """
        self._call.order = None
        self._run(ring, index.contiguous())

    def sampled(self, sampler: Sampler, random_bits: Tensor) -> None:
        """Make updates on batches that a sampler chooses; the choice is a part of the call.

        Args:
            sampler: Of a ring on the card.
            random_bits: [K, B] int64 from `sampler.fill`; read on the card.
        """
        self._choose_by(sampler)
        self._run(sampler.ring, random_bits)

    def gather(self, sampler: Sampler, random_bits: Tensor) -> None:
        """Gather the batches and learn nothing, to time that alone; see `sampled`."""
        self._choose_by(sampler)
        self._gather(self._ready(sampler.ring, random_bits), random_bits)

    def _choose_by(self, sampler: Sampler) -> None:
        call, order, (first, count) = self._call, sampler.buffer.valid.order, sampler.buffer.span()
        for name, tensor in (("order", order), ("first", first), ("count", count)):
            device = self._network.flat.device
            refuse_tensor(name, tensor, tensor.shape, torch.int64, device)
        call.order, call.order_size = order.data_ptr(), len(order)
        call.first, call.count = first.data_ptr(), count.data_ptr()
        call.newest = isinstance(sampler, NewestSampler)

    def on_batch(self, batch: Transitions) -> None:
        """Make one update on a batch that the network fits (`refuse_batch`); see `__call__`."""
        ring, own = batch_as_ring(batch)
        for name, tensor in own.items():
            setattr(self._call, name, tensor.data_ptr())
        self(ring, torch.arange(len(batch.action), device=batch.action.device).unsqueeze(0))
        for name in own:
            setattr(self._call, name, None)

    def _run(self, ring: Ring, numbers: Tensor) -> None:
        plan = self._ready(ring, numbers)
        for some in torch.split(numbers, plan.shape.together):
            self._gather(plan, some)
            for update in range(len(some)):
                self._learn(plan, update)

    def _ready(self, ring: Ring, numbers: Tensor) -> CudaPlan:
        """Fill in what lies where; return what is compiled for such a ring and such batches."""
        refuse_index(numbers, self._network.flat.device)
        if ring is not self._ring:
            refuse_ring(self._network, ring)
            self._ring = ring
        call, plan = self._call, self._plan_of(ring, numbers)
        for name in RING_FIELDS:
            tensor = getattr(ring, name)
            setattr(call, name, None if tensor is None else tensor.data_ptr())
        call.num_transitions, call.num_frames = len(ring.action), len(ring.frames)
        for name, address in plan.scratch.items():
            setattr(call, name, address)
        return plan

    def _gather(self, plan: CudaPlan, numbers: Tensor) -> None:
        """Queue what gathers the batches of a few updates."""
        call, rows = self._call, numbers.numel()
        call.numbers, call.num_rows = numbers.data_ptr(), rows
        plan.launch("prepare", call, plan.shape.tiles + -(-rows // GATHERED))

    def _learn(self, plan: CudaPlan, update: int) -> None:
        """Queue an update on a batch that was gathered."""
        call, shape = self._call, plan.shape
        call.update = update
        plan.launch("learn", call, -(-shape.batch // shape.rows))
        plan.launch("gradients", call, shape.tiles)
        plan.launch("commit", call, shape.tiles)

    def _plan_of(self, ring: Ring, numbers: Tensor) -> CudaPlan:
        key = numbers.shape[1], ring.frames.dtype, ring.masks is not None
        plan = self._plans.get(key)
        if plan is None:
            size, dtype, masked = key
            choices = {**self._choices, "masked": masked}
            shape = Shape.of(self._module, size, dtype, rows_for(size), **choices)
            plan = self._plans[key] = CudaPlan(shape, numbers.device, self.make)
        return plan


class CudaActor(Whole):
    """Chooses epsilon-greedy actions with the latest parameters of an MLP on a card.

    Args:
        network: Of an MLP on a card.
        make: Compiles the kernels.

    Raises:
        UsageError: The MLP is dueling, or has LayerNorm.
    """

    built_from = ("_network", "_make")

    def __init__(self, network: FlatNetwork, make: Make = on_the_card) -> None:
        assert isinstance(network.module, MLP)
        refuse_by_kernels(network.module)
        self._network, self._module, self._make = network, network.module, make
        self._plans: dict[tuple[int, torch.dtype, bool], CudaPlan] = {}

    def __call__(
        self,
        obs: Tensor,
        epsilon: Tensor,
        uniform: Tensor,
        action_mask: Tensor | None,
        out: Tensor,
    ) -> None:
        """Choose an action for every environment. Queues two kernels; can be recorded.

        Args:
            obs: [N, *O] contiguous.
            epsilon: Scalar float32, probability of exploring.
            uniform: [N, 2] float32 in [0, 1); each row is contiguous.
            action_mask: [N, A] bool, contiguous; None allows everything.
            out: [N] int64, counted from 0; written.

        Raises:
            UsageError: The kernels cannot read them.
        """
        network, device = self._network, self._network.flat.device
        refuse_obs(network, obs)
        refuse_masks(network, action_mask, len(obs))
        refuse_uniform(uniform, len(obs), device)
        refuse_tensor("out", out, (len(obs),), torch.int64, device)
        refuse_tensor("epsilon", epsilon, (), torch.float32, device)
        plan = self._plan_of(obs, masked=action_mask is not None)
        call = Call(
            online=self._network.flat.data_ptr(),
            frames=obs.data_ptr(),
            masks=None if action_mask is None else action_mask.data_ptr(),
            scale=self._module.scale,
            offset=self._module.offset,
            epsilon=epsilon.data_ptr(),
            uniform=uniform.data_ptr(),
            uniform_row=uniform.stride(0),
            chosen=out.data_ptr(),
            **plan.turned,
        )
        plan.launch("prepare", call, plan.shape.tiles)
        call.num_rows = len(obs)
        plan.launch("act", call, -(-len(obs) // plan.shape.rows))

    def _plan_of(self, obs: Tensor, *, masked: bool) -> CudaPlan:
        key = rows_for(len(obs)), obs.dtype, masked
        plan = self._plans.get(key)
        if plan is None:
            rows, dtype, _ = key
            shape = Shape.of(self._module, 1, dtype, rows, masked=masked, double_dqn=False)
            plan = self._plans[key] = CudaPlan(shape, obs.device, self._make)
        return plan


def rows_for(batch: int) -> int:
    """Return how many rows of a batch one block should take."""
    rows = 1
    while rows < MAX_ROWS and batch > rows * SPREAD_OVER:
        rows *= 2
    return rows
