"""One update as a pure step: a state and a batch in, the same state written in place.

It knows its settings, the objective and the network, holds no tensor of its own, draws no random
number and never branches on a value, so that it can run eagerly, compiled, or in a graph.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastdqn.algorithms.objectives import Objective, refuse_other_rows
from fastdqn.algorithms.optimizers import Optimizer, clip_by_norm, clip_by_value
from fastdqn.algorithms.td_losses import discount_of
from fastdqn.errors import UsageError
from fastdqn.foundation.copying import Whole
from fastdqn.learner.state import LearnerState
from fastdqn.learner.steps import Source
from fastdqn.native import CudaUpdate, Learned, NativeUpdate, why_not_native
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.network_check import refuse_frames
from fastdqn.replay import ReplayBuffer, Ring, Sampler, gather, uniform_of
from fastdqn.replay.sampler import GivenRows
from fastdqn.replay.sampler_check import refuse_unfit
from fastdqn.transition import Transitions

__all__ = ["Update"]


class Update(Whole):
    """One update; see `fastdqn.learner.learner.Learner` for the settings.

    Attributes:
        earlier_updates: Those of a training that this one continues. The period of the hard
            target counts on from them; the optimizer does not: its moments start at zero, and so
            does the count that corrects their bias, `state.updates`.
    """

    earlier_updates = 0
    kept_by = "Save the tensors of `learner.state`, or the network's state_dict()."

    state: LearnerState
    network: FlatNetwork
    objective: Objective
    device: torch.device
    precision: str
    gamma: float
    target_kind: str
    tau: float
    target_period: int
    clip_norm: float | None
    clip_value: float | None
    _optimizer: Optimizer
    _own_random: int
    """Numbers that the objective reads for each row."""

    @property
    def _target_phase(self) -> int:
        """Updates of the period of the hard target that were made before."""
        return self.earlier_updates % self.target_period if self.target_period else 0

    def why_not_native(self, sampler: Sampler | None = None) -> str | None:
        """Return why these settings cannot run natively, or None where they can.

        Args:
            sampler: Chooses the batches; None leaves that open.
        """
        parts = self.network, self.objective, self._optimizer, self.precision
        return why_not_native(*parts, sampler)

    def natively(
        self,
        state: LearnerState,
        kind: Callable[[Learned], NativeUpdate | CudaUpdate] | None = None,
    ) -> NativeUpdate | CudaUpdate:
        """Return what updates a state in C, or on a card in CUDA C.

        Args:
            state: Is written.
            kind: Builds it; None is the one for the device.

        Raises:
            UsageError: These settings, or this machine, do not allow it.
        """
        why_not = self.why_not_native()
        if why_not:
            raise UsageError("--execution native", why_not, "Use --execution eager or compile.")
        tensors = {
            "bootstrap": state.online if self.target_kind == "none" else state.target,
            "updates": state.updates,
            "skipped": state.skipped,
            "learning_rate": state.learning_rate,
            "metrics": state.metrics,
        }
        plain = {
            "gamma": self.gamma,
            "tau": self.tau,
            "target_period": self.target_period,
            "target_phase": self._target_phase,
        }
        learned = Learned(
            self.network,
            tensors,
            state.slots,
            self._optimizer,
            self.objective,
            self.target_kind,
            self.clip_norm,
            self.clip_value,
            plain,
        )
        if kind is None:
            kind = NativeUpdate if self.device.type == "cpu" else CudaUpdate
        return kind(learned)

    def _step(
        self, state: LearnerState, batch: Transitions, random: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make one update; return the priorities [B], and whether it was made, a scalar bool."""
        if batch.discount is None:
            batch = replace(batch, discount=discount_of(batch.terminated, self.gamma))
        own, *numbers = self._split_random(random, len(batch.action))
        with torch.no_grad():
            others = self._passes(state, batch, numbers[1:])
            *found, priority = self._gradient(state, batch, others, numbers[0], own)
            return priority, self._commit(state, *found)

    def learn_from(self, state: LearnerState, sampler: Sampler, random_bits: Tensor) -> None:
        """Make an update for each row of random bits, in order: draw, gather, learn, feed back.

        Pure but for what it writes in place: the state, and what the sampler has `written()`.

        Args:
            state: Written, usually `self.state`.
            sampler: Draws the batches, each after the update before it has fed its priorities back.
            random_bits: [K, B + R] int64 in [0, 2^62): B numbers that choose the batch, then
                `num_random(B)` that become the update's own.
        """
        size, feeds, random = sampler.batch_size, bool(sampler.written()), None
        both_masks = any(sees == "obs" for _, sees in self.objective.passes)
        if random_bits.shape[1] > size:
            random, random_bits = uniform_of(random_bits[:, size:]), random_bits[:, :size]
        with torch.no_grad():
            for number, (rows, weight) in enumerate(_drawn(sampler, random_bits)):
                batch = gather(sampler.ring, rows, self.gamma, weight, both_masks=both_masks)
                own = None if random is None else random[number]
                priority, made = self._step(state, batch, own)
                if feeds:
                    sampler.feedback(rows, torch.where(made, priority, torch.nan))

    def _updating(self, *arguments: Tensor | None) -> None:
        """Take one step on the fields of a batch, and random bits [R] or None; pure."""
        *fields, random_bits = arguments
        random = None if random_bits is None else uniform_of(random_bits)
        self._step(self.state, Transitions(*fields), random)  # type: ignore[arg-type]

    def _learning_from(self, source: Source) -> Callable[[Tensor], None]:
        """Return the pure step that learns from a source, given numbers [K, B].

        Raises:
            UsageError: The network does not take what its ring holds, or the sampler is unfit.
        """
        self._check_ring(source.ring)
        if isinstance(source, Sampler):
            refuse_unfit(source)
        reference, state = weakref.ref(source), self.state

        def learn(numbers: Tensor) -> None:
            alive = reference()
            assert alive is not None
            if isinstance(alive, ReplayBuffer):
                alive = GivenRows(alive, self._batch_size_in(numbers.shape[1]))
            self.learn_from(state, alive, numbers)

        return learn

    def _check_ring(self, ring: Ring) -> None:
        """Refuse a ring that the network does not fit."""
        refuse_frames(self.network, ring.frames, ring.masks, "the replay buffer")

    def num_random(self, batch_size: int) -> int:
        """Return how many uniform numbers an update reads: the objective's, then each pass's."""
        passes = 1 + len(self.objective.passes)
        return batch_size * self._own_random + passes * self.network.num_random(batch_size)

    def _batch_size_in(self, width: int) -> int:
        """Return B of rows of B numbers that choose a batch and `num_random(B)` more."""
        sizes = range(width + 1)
        return bisect_left(sizes, width, key=lambda size: size + self.num_random(size))

    def _split_random(self, random: Tensor | None, batch_size: int) -> list[Tensor | None]:
        """Split the numbers of an update: [B, R] for the objective, [R] for each pass."""
        count = 1 + len(self.objective.passes)
        if random is None:
            return [None] * (1 + count)
        own, each = batch_size * self._own_random, self.network.num_random(batch_size)
        passes = torch.split(random[own:], each) if each else (None,) * count
        return [random[:own].view(batch_size, -1) if own else None, *passes]

    def _passes(
        self, state: LearnerState, batch: Transitions, numbers: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Return the outputs of the passes that the objective names."""
        bootstrap = state.online if self.target_kind == "none" else state.target
        flat = {"online": state.online, "target": bootstrap}
        return [
            self._outputs(self.network.views(flat[name]), getattr(batch, sees), some)
            for (name, sees), some in zip(self.objective.passes, numbers, strict=True)
        ]

    def _outputs(self, parameters: Sequence[Tensor], obs: Tensor, random: Tensor | None) -> Tensor:
        """Return outputs [B, ...] float32; the forward pass alone may be of lower precision."""
        if self.precision != "bf16":
            return self.network(parameters, obs, random)
        # No cache of casts: a recorded graph would read those of its warm-up.
        with torch.autocast(obs.device.type, torch.bfloat16, cache_enabled=False):
            return self.network(parameters, obs, random).float()

    def _gradient(
        self,
        state: LearnerState,
        batch: Transitions,
        others: Sequence[Tensor],
        numbers: Tensor | None,
        own: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradient [P], its norm, the metrics [4] and the priorities [B]."""
        with torch.enable_grad():
            leaves = [view.detach().requires_grad_() for view in self.network.views(state.online)]
            outputs = self._outputs(leaves, batch.obs, numbers)
            losses, priority = self.objective.loss(outputs, others, batch, own)
            refuse_other_rows(self.objective, batch, losses, priority)
            losses = _weighted(losses, batch.weight)
            loss = losses.mean()
            parts = torch.autograd.grad(loss, leaves, materialize_grads=True)
        grad = torch.cat([part.reshape(-1) for part in parts])
        norm = torch.linalg.vector_norm(grad)
        q = self.objective.q_values(outputs).gather(1, batch.action.unsqueeze(1))
        metrics = torch.stack((loss.detach(), priority.mean(), q.mean(), norm))
        return grad, norm, metrics, priority

    def _commit(self, state: LearnerState, grad: Tensor, norm: Tensor, metrics: Tensor) -> Tensor:
        """Write the new parameters, moments and target, or nothing where a number is not finite.

        Returns:
            Scalar bool, whether all of them were.
        """
        fine = torch.isfinite(metrics).all()
        state.updates.add_(1)
        state.skipped.add_(~fine)
        step = (state.updates - state.skipped).clamp(min=1).float()
        clipped = self._clip(grad, norm)
        flat, slots = self._optimizer(state.online, clipped, state.slots, step, state.learning_rate)
        state.online.copy_(torch.where(fine, flat, state.online))
        for old, new in zip(state.slots, slots, strict=True):
            old.copy_(torch.where(fine, new, old))
        self._move_target(state, fine)
        state.metrics.copy_(metrics)
        return fine

    def _clip(self, grad: Tensor, norm: Tensor) -> Tensor:
        if self.clip_norm is not None:
            grad = clip_by_norm(grad, norm, self.clip_norm)
        if self.clip_value is not None:
            grad = clip_by_value(grad, self.clip_value)
        return grad

    def _move_target(self, state: LearnerState, fine: Tensor) -> None:
        """Move the target towards the online parameters by a weight that lives on the device."""
        if self.target_kind == "soft":
            state.target.lerp_(state.online, fine * self.tau)
        elif self.target_kind == "hard" and self.target_period:
            made = state.updates - state.skipped
            if self._target_phase:
                made = made + self._target_phase
            due = made % self.target_period == 0
            state.target.lerp_(state.online, (due & fine).float())


def _drawn(sampler: Sampler, random_bits: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield a batch for each row of [K, B], drawn in turn, or all at once if independent."""
    if sampler.independent:
        for rows in sampler.draw(random_bits)[0].unbind(0):
            yield rows, None
    else:
        for bits in random_bits.unbind(0):
            yield sampler.draw(bits)


def _weighted(losses: Tensor, weight: Tensor | None) -> Tensor:
    return losses if weight is None else weight * losses
