"""The steps of a learner in one mode: one for batches, and one for each source of rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.execution.modes import Mode, chunks
from fastdqn.execution.step import PureStep, Step
from fastdqn.native import CudaUpdate, NativeUpdate, refuse_sampler
from fastdqn.replay import ReplayBuffer, Ring, Sampler
from fastdqn.transition import Transitions

__all__ = [
    "UPDATES_PER_CALL",
    "UPDATES_PER_GRAPH",
    "LearnerSteps",
    "Runs",
    "Source",
    "index_of",
    "native_parts",
]

Source = Sampler | ReplayBuffer
"""What chooses rows of its ring by numbers [K, B]: random ones, or the rows themselves."""


UPDATES_PER_CALL = (4, 2, 1)
UPDATES_PER_GRAPH = (64, 32, 16, 8, 4, 2, 1)

Runs = Callable[..., Step]
"""Makes what runs a pure step; see `fastdqn.execution.compile.run_step` for the arguments.

Of `written` it is passed what the step writes besides the learner's state.
"""


class LearnerSteps:
    """Builds and caches the steps of a learner in one mode.

    Args:
        mode: How they run.
        update: The pure step on the fields of a batch; None for one that is missing.
        learning: Returns the pure step that learns from a source, given numbers [K, B]; the step
            does not keep the source alive.
        runs: Makes what runs such a step.
        plain: The steps that run until these ones are compiled, or None.

    Attributes:
        mode: See above.
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
        self._updating = update
        self._updates: dict[tuple[bool, ...], Step] = {}  # by which fields there are
        self._learning, self._runs, self._plain = learning, runs, plain
        self._sizes = _sizes(mode)
        self._steps: dict[int, Step] = {}  # by id of the source, as long as it lives
        self._sources: dict[int, weakref.ref[Source]] = {}

    @property
    def all(self) -> list[Step]:
        """All steps so far."""
        return [*self._updates.values(), *self._steps.values()]

    @property
    def learning(self) -> list[Step]:
        """The steps of the sources so far."""
        return list(self._steps.values())

    def update(self, *fields: Tensor | None) -> None:
        """Take one optimizer step on the fields of a batch. Hot path."""
        there = tuple([field is not None for field in fields])
        step = self._updates.get(there) or self._update_of(there)
        step(*[field for field in fields if field is not None])

    def _update_of(self, there: tuple[bool, ...]) -> Step:
        """Return the step on batches that have some of the fields."""
        if there not in self._updates:
            plain = None if self._plain is None else self._plain._update_of(there)

            def update(*present: Tensor) -> None:
                fields = iter(present)
                self._updating(*(next(fields) if some else None for some in there))

            self._updates[there] = self._runs(update, plain=plain, by_row=False, static=False)
        return self._updates[there]

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

    def prepare(self, sampler: Sampler, updates: int, num_random: int) -> None:
        """Ask for what calls with so many updates need; see `Learner.prepare`."""
        step = self.step_of(sampler)
        for count in sorted(set(chunks(updates, UPDATES_PER_CALL)), reverse=True):
            step.prepare(sampler.place(count, num_random))

    def close(self) -> bool:
        """Cancel what is still being compiled; return whether everything was ready."""
        ready = all(step.ready for step in self.all)
        if not ready:
            for step in self.all:
                step.close()
        return ready

    def step_of(self, source: Source) -> Step:
        """Return the step that learns from a source; built once, dropped with the source."""
        key = id(source)
        if key not in self._steps:
            plain = None if self._plain is None else self._plain.step_of(source)
            static = not isinstance(source, ReplayBuffer)
            pure = self._learning(source)
            written = source.written() if isinstance(source, Sampler) else ()
            options: dict[str, Any] = {"plain": plain, "static": static, "written": written}
            self._steps[key] = self._runs(pure, by_row=True, **options)
            self._sources[key] = weakref.ref(source, lambda _: self._forget(key))
        return self._steps[key]

    def _forget(self, key: int) -> None:
        del self._steps[key], self._sources[key]


def _placed(source: Source, part: Tensor) -> Tensor:
    """Copy numbers to the static input of a call of this size, so that one graph reads both."""
    if isinstance(source, ReplayBuffer):
        return part
    return source.place(len(part), part.shape[1] - source.batch_size).copy_(part)


def _sizes(mode: Mode) -> tuple[int, ...]:
    """Return how many updates a call may have; eager and C take any number."""
    if mode.graphs:
        return UPDATES_PER_GRAPH
    return UPDATES_PER_CALL if mode.compiles else ()


def native_parts(
    native: NativeUpdate | CudaUpdate, check_ring: Callable[[Ring], None]
) -> tuple[PureStep, Callable[[Source], Callable[[Tensor], None]]]:
    """Return the arguments `update` and `learning` of `LearnerSteps` for a native update.

    Args:
        native: Updates the state in C, or on a card in CUDA C.
        check_ring: Refuses a ring that the network does not fit.
    """

    def update(*fields: Tensor) -> None:
        native.on_batch(Transitions(*fields[:-1]))

    def learning(source: Source) -> Callable[[Tensor], None]:
        check_ring(source.ring)
        if isinstance(source, ReplayBuffer):
            return partial(native, source.ring)
        refuse_sampler(source)
        return partial(native.sampled, weakref.proxy(source))

    return update, learning


def index_of(updates: int | Tensor) -> Tensor:
    """Return the caller's index [K, B] int64, or refuse it."""
    if not isinstance(updates, Tensor):
        way_out = "Pass `replay.draw(updates, batch_size)`, or a Sampler."
        raise UsageError(f"{updates!r} updates from a replay buffer", "it chooses none", way_out)
    if updates.ndim != 2 or updates.dtype is not torch.int64:
        got = f"index {list(updates.shape)} {updates.dtype}"
        raise UsageError(got, "it has a row [B] int64 for each update", "See `replay.draw`.")
    return updates
