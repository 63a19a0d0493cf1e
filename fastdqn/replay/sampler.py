"""Choosing batches by tensors alone, so that a compiled or recorded step can do it, too.

What only the host knows (where the stored transitions begin and how many there are) is written
into the ring's `window` on the device before each use; the random numbers lie in memory that never
moves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import Whole
from fastdqn.foundation.scalars import whole
from fastdqn.foundation.state import PartState
from fastdqn.replay.buffer import MAX_DRAW, ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing

__all__ = [
    "GivenRows",
    "NewestSampler",
    "Sampler",
    "UniformSampler",
    "uniform_of",
]

BITS_BESIDE_UNIFORM = 38
"""Of the 62 random bits of a number; the 24 that are left fill a float32 in [0, 1)."""


class Sampler(Whole, ABC):
    """Chooses what is learned; a new way to choose is a class that says how it draws.

    `fill` is the host's half, which goes before a compiled or recorded step: it publishes where
    the stored transitions begin, and draws random numbers. `draw` and `feedback` are the pure half,
    which goes into the step, in turns: each batch is drawn after the update before it has fed its
    priorities back, unless the sampler is `independent` of them. Both rings are read through
    `replay.span()` and `replay.nth()`, which list the transitions that may be drawn; `replay.ring`
    has a place for each.

    Args:
        replay: Where transitions are stored.
        batch_size: Transitions of a batch, B.
        due: Batches that a call usually asks for; measurements use as many.

    Attributes:
        ring: The tensors of `replay`.
        independent: Whether every number chooses its row by itself, whatever was learned before,
            and all rows weigh alike (without weights): the batches of a call are drawn at once.
    """

    kept_by = "Save the tensors of `sampler.ring`, and build another sampler."
    independent = False

    def __init__(
        self, replay: ReplayBuffer | FunctionalRing, batch_size: int, *, due: int = 1
    ) -> None:
        if not isinstance(replay, ReplayBuffer | FunctionalRing):
            got, reason = f"a sampler over {type(replay).__name__}", "it draws from a ring"
            raise UsageError(got, reason, "Pass a ReplayBuffer.")
        self.batch_size = whole("batch_size", batch_size, least=1, way_out="Try 64.")
        self.replay, self.due = replay, due
        self.ring = replay.ring
        self._places: dict[tuple[int, int], Tensor] = {}
        self._rehearsing = False

    # The pure half

    @abstractmethod
    def draw(self, random_bits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows of a batch, and what their losses are weighted with.

        Args:
            random_bits: [B] int64 in [0, 2^62); [K, B] of K batches, if `independent`.

        Returns:
            [B] int64 for `gather(sampler.ring, rows)`, and [B] float32 >= 0 without a gradient, or
            None for 1 everywhere. Rows and signs are checked in one trial draw and trusted later:
            a row outside of the ring is an error of the device.
        """

    def feedback(self, rows: Tensor, priority: Tensor) -> None:
        """Take the priorities of a batch, before the next one is drawn; writes in place.

        Args:
            rows: [B] int64, as they were drawn; one may come twice.
            priority: [B] float32 from the objective; NaN throughout where the update was skipped,
                and then nothing may change.
        """

    def wrote(self) -> None:
        """Look at what was just written; pure. Tensor environments call it at each vector step.

        Samplers that keep something for each transition let the new ones in here, and the rows that
        these push out, out; beside other environments `fill` does.
        """

    def written(self) -> tuple[Tensor, ...]:
        """Return the tensors that `draw` and `feedback` write; without any, nothing is fed back.

        Measurements and warm-ups restore them. They never move: `feedback` writes in place.
        """
        return ()

    # As a part of a training

    def state(self) -> PartState:
        """Return what it consists of beside the ring and its generator.

        That is what it has `written()`. A sampler that keeps anything else says so here, and takes
        it back in `restore`: otherwise a training that is resumed draws other batches.
        """
        return PartState({}, {f"written{n}": each for n, each in enumerate(self.written())})

    def restore(self, state: PartState) -> None:
        """Go on from what `state` returned, once the ring is restored; writes in place.

        Raises:
            CheckpointError: Names what is none.
        """
        state.copy_into({f"written{n}": each for n, each in enumerate(self.written())})

    # The host's half

    def fill(self, updates: int, num_random: int = 0) -> Tensor:
        """Do the host's half for so many batches. Hot path; never waits for the device.

        Args:
            updates: Batches, K.
            num_random: Numbers that each update reads beside them, R; see `uniform_of`.

        Returns:
            [K, B + R] int64 for `draw`; the memory is the same at every call with these numbers,
            and overwritten by it.

        Raises:
            UsageError: The buffer is empty.
        """
        self.buffer.valid.publish(*self.span_on_host())
        place = self.place(updates, num_random)
        self._draw_into(place)
        return place

    def _draw_into(self, place: Tensor) -> None:
        place.random_(0, MAX_DRAW, generator=self.buffer.generator)

    @property
    def buffer(self) -> ReplayBuffer:
        """The ring that the host writes into.

        Raises:
            UsageError: Tensor environments fill it, on the device, and draw the numbers there.
        """
        if not isinstance(self.replay, ReplayBuffer):
            got, reason = "the host's half of a sampler", "tensor environments fill its ring"
            raise UsageError(got, reason, "Call draw(random_bits) with numbers of your own.")
        return self.replay

    def expect(self, drawn: int, total: int) -> None:
        """Note how many batches were drawn before, and how many there will be in all."""

    def reseed(self, seed: int) -> None:
        """Let the draws go on with other random numbers."""
        self.buffer.generator.manual_seed(seed)

    def span_on_host(self) -> tuple[int, int]:
        """Return the number of the oldest transition that may be drawn, and how many there are.

        Raises:
            UsageError: The buffer is empty.
        """
        if self._rehearsing:
            return 0, len(self.ring.action)
        buffer = self.buffer
        if not (count := len(buffer.valid)):
            buffer.refuse_empty()
        return buffer.valid.first, count

    def place(self, updates: int, num_random: int = 0) -> Tensor:
        """Return the memory that `fill` returns, as it is: for parts of a larger draw."""
        key = updates, self.batch_size + num_random
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = self.ring.action.new_empty(key)
            self._begin(place)
        return place

    def _begin(self, place: Tensor) -> None:
        place.zero_()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Draw as if the ring were full, whatever it holds, for measurements before a training.

        The generator is left as it was.
        """
        state = self.buffer.generator.get_state()
        self._rehearsing = True
        try:
            yield
        finally:
            self._rehearsing = False
            self.buffer.generator.set_state(state)


class UniformSampler(Sampler):
    """Draws uniformly over the stored transitions, with replacement; see `Sampler`."""

    independent = True

    def draw(self, random_bits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return rows by the remainder of the random bits; all weigh alike."""
        first, count = self.replay.span()
        return self.replay.nth(random_bits.remainder(count), first), None


class NewestSampler(Sampler):
    """Takes the newest transitions, the same ones in every batch: learning without replay.

    Its random bits say how far back from the newest; while fewer are stored, the newest repeat.
    """

    independent = True

    def draw(self, random_bits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows so far back; all weigh alike."""
        first, count = self.replay.span()
        return self.replay.nth(count - 1 - random_bits.remainder(count), first), None

    def _begin(self, place: Tensor) -> None:
        back = torch.arange(self.batch_size, device=place.device)
        place[:, : self.batch_size] = back

    def _draw_into(self, place: Tensor) -> None:
        if place.shape[1] > self.batch_size:
            super()._draw_into(place[:, self.batch_size :])


class GivenRows(Sampler):
    """Takes the rows that the caller chose: their index takes the place of the random bits."""

    independent = True

    def draw(self, random_bits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows themselves; all weigh alike."""
        return random_bits, None


def uniform_of(random_bits: Tensor) -> Tensor:
    """Turn random bits, int64 in [0, 2^62), into uniform float32 numbers in [0, 1)."""
    return (random_bits >> BITS_BESIDE_UNIFORM).float() * 2.0**-24
