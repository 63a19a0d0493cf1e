"""The steps of a learner in one mode: one for batches, and one for each source of rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from fastdqn.execution.modes import Mode, chunks
from fastdqn.execution.step import PureStep, Step
from fastdqn.replay import ReplayBuffer, Sampler

__all__ = ["UPDATES_PER_CALL", "UPDATES_PER_GRAPH", "LearnerSteps", "Runs", "Source"]

Source = Sampler | ReplayBuffer
"""What chooses rows of its ring by numbers [K, B]: random ones, or the rows themselves."""


UPDATES_PER_CALL = (4, 2, 1)
UPDATES_PER_GRAPH = (64, 32, 16, 8, 4, 2, 1)


class Runs(Protocol):
    """Makes what runs a pure step; see `fastdqn.execution.modes.run_step` for the arguments."""

    def __call__(self, step: PureStep, *, plain: Step | None, by_row: bool, kept: bool) -> Step:
        """Return what does the same as a pure step."""


class LearnerSteps:
    """Makes and keeps the steps of a learner in one mode.

    Args:
        mode: How they run.
        update: The pure step on the fields of a batch.
        learning: Returns the pure step that learns from a source, given numbers [K, B]; the step
            does not keep the source alive.
        runs: Makes what runs such a step.
        plain: The steps that run until these ones are compiled, or None.

    Attributes:
        mode: See above.
        update: Runs the step on the fields of a batch.
    """

    def __init__(
        self,
        mode: Mode,
        update: PureStep,
        learning: Callable[[Source], Callable[[Tensor], None]],
        runs: Runs,
        plain: LearnerSteps | None = None,
    ) -> None:
        self.mode = mode
        before = None if plain is None else plain.update
        self.update: Step = runs(update, plain=before, by_row=False, kept=False)
        self._learning, self._runs, self._plain = learning, runs, plain
        self._sizes = _sizes(mode)
        self._steps: dict[int, Step] = {}  # by id, for as long as it is one
        self._sources: dict[int, weakref.ref[Source]] = {}

    @property
    def all(self) -> list[Step]:
        """All steps so far."""
        return [self.update, *self._steps.values()]

    @property
    def learning(self) -> list[Step]:
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
            # Where the numbers of a whole call of this size lie, so that one graph reads both.
            step(part if isinstance(source, ReplayBuffer) else source.place(count).copy_(part))
            done += count

    def step_of(self, source: Source) -> Step:
        """Return what learns from a source, made where it is new, and forgotten with it."""
        key = id(source)
        if key not in self._steps:
            plain = None if self._plain is None else self._plain.step_of(source)
            kept = not isinstance(source, ReplayBuffer)
            pure = self._learning(source)
            self._steps[key] = self._runs(pure, plain=plain, by_row=True, kept=kept)
            self._sources[key] = weakref.ref(source, lambda _: self._forget(key))
        return self._steps[key]

    def _forget(self, key: int) -> None:
        del self._steps[key], self._sources[key]


def _sizes(mode: Mode) -> tuple[int, ...]:
    """Return of how many updates calls are made; eager and C take any number."""
    if mode.graphs:
        return UPDATES_PER_GRAPH
    return UPDATES_PER_CALL if mode.compiles else ()
