"""Choosing batches by tensors alone, so that a compiled or captured step can do it too.

What the host knows, where the stored transitions begin and how many they are, is written into the
ring's `window` on the device before each use; the random numbers lie in memory that stays where it
is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastdqn.foundation.copying import Whole
from fastdqn.replay.buffer import MAX_DRAW, ReplayBuffer

__all__ = ["Sampler"]


class Sampler(Whole):
    """Chooses what is learned: draws from all stored transitions, or the newest ones.

    `draw` chooses now. `fill` and then `index` choose the same in two halves: the host's, which
    goes before a graph, and a pure one, which goes into it. Both advance the ring's generator by
    the same numbers, so that a seed means the same batches either way.

    Args:
        replay: Where transitions are stored.
        batch_size: Transitions of a batch, B.
        newest: Take the newest transitions instead of drawing.
        due: Batches that are usually asked for at a time; tells those who measure.
    """

    kept_by = "Save the tensors of `sampler.ring`, and build another sampler."

    def __init__(
        self, replay: ReplayBuffer, batch_size: int, *, newest: bool = False, due: int = 1
    ) -> None:
        self.replay, self.batch_size, self.newest, self.due = replay, batch_size, newest, due
        self.ring = replay.ring
        # The ring's own: this file is a part of its room.
        self._starts, self._generator = replay._starts, replay._generator
        self._window = replay.window
        self._places: dict[int, Tensor] = {}
        self._rehearsing = False

    def draw(self, num_batches: int) -> Tensor:
        """Return flat indices [num_batches, B] int64 for `gather(sampler.ring, index)`.

        Raises:
            UsageError: The buffer is empty.
        """
        if self._rehearsing:
            return self.index(self.fill(num_batches))
        choose = self.replay.newest if self.newest else self.replay.draw
        return choose(num_batches, self.batch_size)

    def reseed(self, seed: int) -> None:
        """Let the draws go on with other random numbers."""
        self._generator.manual_seed(seed)

    def fill(self, num_batches: int) -> Tensor:
        """Do the host's half for so many batches. Hot path; never waits for the device.

        Returns:
            [num_batches, B] int64 for `index`; the memory is the same at every call with this
            number, and overwritten by it.

        Raises:
            UsageError: The buffer is empty.
        """
        self.replay.tell(*self._span())
        return self.random_bits(num_batches)

    def random_bits(self, num_batches: int) -> Tensor:
        """Draw what `fill` draws, and tell no device: for those who read `window`.

        Raises:
            UsageError: The buffer is empty.
        """
        if not self._rehearsing:
            self.replay._refuse_empty()
        random_bits = self.place(num_batches)
        if not self.newest:
            random_bits.random_(0, MAX_DRAW, generator=self._generator)
        return random_bits

    def _span(self) -> tuple[int, int]:
        """Return the number of the oldest transition that may be drawn, and how many there are."""
        if self._rehearsing:
            return 0, len(self.ring.action)
        self.replay._refuse_empty()
        return self._starts.first, len(self._starts)

    def place(self, num_batches: int) -> Tensor:
        """Return the memory that `fill` returns, as it is: for parts of a larger draw."""
        place = self._places.get(num_batches)
        if place is None:
            back = torch.arange(self.batch_size, device=self.ring.action.device)
            place = self._places[num_batches] = back.repeat(num_batches, 1)
        return place

    def index(self, random_bits: Tensor) -> Tensor:
        """Do the pure half.

        Args:
            random_bits: [K, B] int64 from `fill`: random numbers, or how far back from the newest.

        Returns:
            [K, B] int64 for `gather`.
        """
        first, count = self._window.unbind(0)
        n = random_bits.remainder(count)
        return self._starts.nth(count - 1 - n if self.newest else n, first)

    @property
    def window(self) -> tuple[Tensor, int, int]:
        """What `index` reads: the order [T * M] int64, its first number now, how many follow."""
        return self._starts.order, *self._span()

    @property
    def chosen_from(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `index` reads on the device: the order [T * M] int64, and two scalars int64.

        The scalars are the number of the oldest transition, and how many there are, as of the
        last `fill`. All of them stay where they are.
        """
        return self._starts.order, self._window[0], self._window[1]

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Draw as if the ring were full, whatever it holds, for measurements before a training.

        The generator is left as it was.
        """
        state = self._generator.get_state()
        self._rehearsing = True
        try:
            yield
        finally:
            self._rehearsing = False
            self._generator.set_state(state)
