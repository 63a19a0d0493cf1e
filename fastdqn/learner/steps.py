"""The steps of a learner in one mode: one for batches, and one for each source of rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from fastdqn.execution.modes import chunks
from fastdqn.replay import ReplayBuffer, Sampler

__all__ = ["LearnerSteps", "Runs", "Source"]

Source = Sampler | ReplayBuffer
"""What chooses rows of its ring by numbers [K, B]: random ones, or the rows themselves."""


class Runs(Protocol):
    """Makes what runs a pure step."""

    def __call__(
        self,
        step: Callable[..., None],
        plain: Callable[..., None] | None,
        *,
        by_row: bool,
        kept: bool,
        written: Sequence[Tensor] = (),
    ) -> Callable[..., None]:
        """Return what does the same as a pure step, in some mode.

        Args:
            step: Writes its results in place.
            plain: What runs the step without a compiler, or None where nothing does yet.
            by_row: The step does the same for each row of its last argument, one after another.
            kept: Its tensors lie at one place at each call with such shapes.
            written: What it writes besides the learner's state.
        """
        ...


class LearnerSteps:
    """Makes and keeps the steps of a learner in one mode.

    Args:
        update: The pure step on the fields of a batch.
        learning: Returns the pure step that learns from a source, given numbers [K, B]; the step
            does not keep the source alive.
        runs: Makes what runs such a step.
        sizes: Updates of one call, largest first, and down to 1; empty takes any number.
        plain: The steps that run until these ones are compiled, or None.

    Attributes:
        update: Runs the step on the fields of a batch.
    """

    def __init__(
        self,
        update: Callable[..., None],
        learning: Callable[[Source], Callable[[Tensor], None]],
        runs: Runs,
        *,
        sizes: Sequence[int] = (),
        plain: LearnerSteps | None = None,
    ) -> None:
        before = None if plain is None else plain.update
        self.update: Callable[..., None] = runs(update, before, by_row=False, kept=False)
        self._learning, self._runs, self._sizes, self._plain = learning, runs, sizes, plain
        self._steps: dict[int, Callable[[Tensor], None]] = {}  # by id, for as long as it is one
        self._sources: dict[int, weakref.ref[Source]] = {}

    @property
    def learning(self) -> list[Callable[[Tensor], None]]:
        """The steps of the sources so far."""
        return list(self._steps.values())

    def learn(self, source: Source, numbers: Tensor) -> None:
        """Take one optimizer step for each row of `numbers` [K, B]. Hot path."""
        step = self._steps.get(id(source)) or self.step_of(source)
        if not self._sizes or len(numbers) in self._sizes:
            step(numbers)
            return
        done = 0
        for count in chunks(len(numbers), self._sizes):
            part = numbers[done : done + count]
            step(_placed(source, part))
            done += count

    def step_of(self, source: Source) -> Callable[[Tensor], None]:
        """Return what learns from a source, made where it is new, and forgotten with it."""
        key = id(source)
        if key not in self._steps:
            plain = None if self._plain is None else self._plain.step_of(source)
            kept = not isinstance(source, ReplayBuffer)
            pure = self._learning(source)
            written = source.written() if isinstance(source, Sampler) else ()
            self._steps[key] = self._runs(pure, plain, by_row=True, kept=kept, written=written)
            self._sources[key] = weakref.ref(source, lambda _: self._forget(key))
        return self._steps[key]

    def _forget(self, key: int) -> None:
        del self._steps[key], self._sources[key]


def _placed(source: Source, part: Tensor) -> Tensor:
    """Move numbers to where those of a call of this size lie, so that one graph reads both."""
    if isinstance(source, ReplayBuffer):
        return part
    return source.place(len(part), part.shape[1] - source.batch_size).copy_(part)
