"""What runs a pure step: one protocol, whether it runs as it is, compiled, or as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from torch import Tensor

__all__ = [
    "ComposedStep",
    "EagerStep",
    "PlainUntilCompiled",
    "Progress",
    "PureStep",
    "Step",
    "StepGroup",
    "in_one_line",
]

PureStep = Callable[..., object]
"""A function of tensors that writes its results in place, and does the same operations for any
values in them. Whatever else it reads and writes stays where it lies."""


class Progress(Protocol):
    """How far the compiling of a step is; readable from any thread."""

    @property
    def ready(self) -> bool:
        """Whether nothing is being compiled."""

    @property
    def ready_after_s(self) -> float | None:
        """Seconds from the first request for a compiled form until the last one was there.

        None before, and where nothing is compiled beside the calls.
        """

    @property
    def failure(self) -> str | None:
        """Why a slower form stays, in one line; None where it does not."""

    @property
    def wait_s(self) -> float:
        """Seconds that calls waited so far: for tracing, compiling, loading and recording."""

    def close(self) -> None:
        """Cancel what is being compiled; what is ready stays."""


class Step(Progress, Protocol):
    """Runs a pure step on tensors. The calls come from one thread."""

    def __call__(self, *tensors: Tensor) -> None:
        """Run the step in the fastest form that is there, or wait for it where that is wanted."""

    def has(self, *tensors: Tensor) -> bool:
        """Return whether a call with tensors of such shapes finds everything compiled."""

    def prepare(self, *tensors: Tensor) -> None:
        """Ask for what a call with tensors of such shapes needs; runs nothing."""


class EagerStep:
    """Runs a step as it is.

    Args:
        step: Is run.
    """

    ready, wait_s = True, 0.0
    ready_after_s: float | None = None
    failure: str | None = None

    def __init__(self, step: PureStep) -> None:
        self._step = step

    def __call__(self, *tensors: Tensor) -> None:
        """Run the step."""
        self._step(*tensors)

    def has(self, *_: Tensor) -> bool:
        """Return True: nothing is compiled."""
        return True

    def prepare(self, *_: Tensor) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class StepGroup:
    """Steps whose progress is that of one.

    Args:
        steps: The steps; more may be appended.
    """

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self.steps = list(steps)

    @property
    def ready(self) -> bool:
        """Whether none is being compiled."""
        return all(step.ready for step in self.steps)

    @property
    def ready_after_s(self) -> float | None:
        """Seconds until the last one that was asked for was there; None before, and on failure."""
        seconds = [step.ready_after_s for step in self.steps]
        there = [second for second in seconds if second is not None]
        return max(there) if there and self.ready and not self.failure else None

    @property
    def failure(self) -> str | None:
        """Why one is not compiled."""
        return next((step.failure for step in self.steps if step.failure), None)

    @property
    def wait_s(self) -> float:
        """Seconds for which calls waited."""
        return sum(step.wait_s for step in self.steps)

    def close(self) -> None:
        """Close all of them."""
        for step in self.steps:
            step.close()


class ComposedStep(StepGroup):
    """A step that consists of calls of other ones.

    Args:
        run: Makes the calls.
        needs: The steps that it calls, and tensors such as it calls them with.
    """

    def __init__(
        self, run: Callable[[], object], needs: Sequence[tuple[Step, Sequence[Tensor]]]
    ) -> None:
        super().__init__(step for step, _ in needs)
        self._run, self._needs = run, needs

    @property
    def ready_after_s(self) -> float | None:
        """Seconds until the last part was there; None before."""
        return super().ready_after_s if self.has() else None

    def __call__(self, *_: Tensor) -> None:
        """Run the step."""
        self._run()

    def has(self, *_: Tensor) -> bool:
        """Return whether all parts are compiled."""
        return all(step.has(*tensors) for step, tensors in self._needs)

    def prepare(self, *_: Tensor) -> None:
        """Ask for all parts."""
        for step, tensors in self._needs:
            step.prepare(*tensors)


class PlainUntilCompiled(StepGroup):
    """Two forms of a step: one that runs at once, and one whose parts have to be compiled.

    It moves from one to the other between two calls, for each set of shapes by itself. What has
    to be compiled is requested after the plain form has run, so that its recording is undisturbed.
    If compiling fails, or the first call of the fast form, the plain form is used from then on.

    Args:
        plain: Runs at once.
        fast: Does the same within rounding; a call of it that raises has changed nothing.
    """

    def __init__(self, plain: Step, fast: Step) -> None:
        super().__init__([plain, fast])
        self.plain, self.fast = plain, fast
        self._cannot_run: str | None = None

    @property
    def failure(self) -> str | None:
        """Why the plain form stays, or None."""
        return self._cannot_run or super().failure

    def __call__(self, *tensors: Tensor) -> None:
        """Run the step in the fastest form that is there; never waits for a compiler."""
        moves = self.failure is None
        if moves and self.fast.has(*tensors):
            self._move(tensors)
            return
        self.plain(*tensors)
        if moves:
            self.fast.prepare(*tensors)

    def _move(self, tensors: tuple[Tensor, ...]) -> None:
        try:
            self.fast(*tensors)
        except Exception as error:  # e.g. no memory for another graph
            self._cannot_run = in_one_line(error)
            self.plain(*tensors)

    def has(self, *tensors: Tensor) -> bool:
        """Return whether the fast form is there for such tensors."""
        return self.fast.has(*tensors)

    def prepare(self, *tensors: Tensor) -> None:
        """Ask for nothing: the plain form runs first."""


def in_one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
