"""A step compiled whole by PyTorch, and what runs a pure step in a mode.

The plain function is the truth. Everything here wraps it from outside, at one line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.execution.ahead import AheadOfTime
from fastdqn.execution.cuda_graph import Cuda, CudaGraphStep
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.modes import Mode
from fastdqn.execution.step import EagerStep, PlainUntilCompiled, PureStep, Step, in_one_line
from fastdqn.execution.trace import CompileError, Trace, UntraceableError, trace

__all__ = ["CompiledStep", "run_step", "waits_for_a_compiler"]

WAITING: list[AheadOfTime | InProcess] = []
"""Compilers for which calls wait now."""


class CompiledStep:
    """A step compiled once for each set of shapes of its tensors.

    What is compiled is its trace, so that a call asks for nothing again, and how PyTorch follows
    Python does not matter. Beside the calls, the step runs as it is until its compiled form is
    there; it is traced in the call that first needs it. The numbers before and after differ by
    rounding only, but the moment depends on the machine.

    Args:
        step: What to compile; writes its results in place.
        compiler: Compiles, beside the calls or while they wait.
        optional: Run the step as it is where it cannot be compiled, as in the background.
        by_row: The step does the same for each row of its last tensor, one row after another.

    Attributes:
        failure: Why the step runs as it is, in one line; None where it does not.
        wait_s: Seconds for which calls waited: for tracing and loading, and for compiling if they
            do.

    Raises:
        UsageError: At a call that waits: the step is not one fixed list of operations.
    """

    def __init__(
        self,
        step: PureStep,
        compiler: AheadOfTime | InProcess,
        *,
        optional: bool = False,
        by_row: bool = False,
    ) -> None:
        self._step, self.compiler = step, compiler
        self._optional, self._by_row = optional, by_row
        self._single = by_row and not compiler.repeats_rows
        self._traces: dict[Hashable, Trace] = {}
        self._forms: dict[Hashable, PureStep] = {}
        self._pending: dict[Hashable, Future[PureStep]] = {}
        self._first_asked_s = self._last_there_s = 0.0
        self.failure: str | None = None
        self.wait_s = 0.0

    @property
    def ready(self) -> bool:
        """Whether nothing is being compiled."""
        return all(future.done() for future in self._pending.values())

    @property
    def ready_after_s(self) -> float | None:
        """Seconds from the first request until the last form was there; None before."""
        if not (self.compiler.background and self._forms and self.ready):
            return None
        return self._last_there_s - self._first_asked_s

    def __call__(self, *tensors: Tensor) -> None:
        """Run the step, compiled if that is there."""
        if not self._single:
            self._run(tensors)
            return
        *others, rows = tensors
        for row in range(len(rows)):
            self._run((*others, rows[row : row + 1]))

    def _run(self, tensors: Sequence[Tensor]) -> None:
        key = _key(tensors)
        (self._forms.get(key) or self._missing(key, tensors) or self._step)(*tensors)

    def bound(self, *tensors: Tensor) -> Callable[[], None]:
        """Return the step on these very tensors, unchecked once it is compiled."""
        key, form = _key(tensors), self._forms.get(_key(tensors))

        def run() -> None:
            nonlocal form
            if form is None:
                form = self._forms.get(key) or self._missing(key, tensors)
            (form or self._step)(*tensors)

        return run

    def has(self, *tensors: Tensor) -> bool:
        """Return whether a call with tensors of such shapes finds everything compiled."""
        return _key(self._one(tensors)) in self._forms

    def prepare(self, *tensors: Tensor) -> None:
        """Ask for the form of such shapes before the first call with them; runs nothing."""
        one = self._one(tensors)
        if self.compiler.background and not self.has(*one):
            self._missing(_key(one), one)

    def close(self) -> None:
        """Cancel what is pending; what is there stays, and the rest runs uncompiled."""
        self.compiler.close()

    def _one(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what is compiled at a time."""
        return (*tensors[:-1], tensors[-1][:1]) if self._single else tensors

    # What is not there yet

    def _missing(self, key: Hashable, tensors: Sequence[Tensor]) -> PureStep | None:
        """Ask for a form, and wait for it unless it is compiled beside the calls."""
        if self.failure is not None or key in self._pending:
            return None
        start = time.perf_counter()
        try:
            with _waiting(self.compiler):
                form = self._ask(key, tensors)
        except Exception as error:  # a compiler may fail in any way
            if self.compiler.background or self._optional:
                self.failure, form = _reason(error), None
            elif isinstance(error, UntraceableError):
                reason = f"the step cannot be compiled: {error}"
                raise UsageError("--execution compile", reason, "Use eager.") from error
            else:
                raise
        self.wait_s += time.perf_counter() - start
        return form

    def _ask(self, key: Hashable, tensors: Sequence[Tensor]) -> PureStep | None:
        num_rows = len(tensors[-1]) if self._by_row and not self._single else 0
        future = self.compiler.submit(partial(self._traced, tensors), tensors, num_rows)
        if future is None:
            return None
        if not self.compiler.background:
            form = self._forms[key] = future.result()
            return form
        self._first_asked_s = self._first_asked_s or time.perf_counter()
        self._pending[key] = future
        future.add_done_callback(partial(self._take, key))
        return self._forms.get(key)

    def _traced(self, tensors: Sequence[Tensor]) -> Trace:
        """Return the trace for such tensors, of a single row where the step goes by row."""
        one = (*tensors[:-1], tensors[-1][:1]) if self._by_row else tuple(tensors)
        key = _key(one)
        if key not in self._traces:
            self._traces[key] = trace(self._step, one)
        return self._traces[key]

    def _take(self, key: Hashable, future: Future[PureStep]) -> None:
        """Store the compiled form for the next call; may run in another thread."""
        try:
            form = future.result()
        except CancelledError:
            return
        except Exception as error:  # see above
            self.failure = _reason(error)
            return
        self._last_there_s = time.perf_counter()
        self._forms[key] = form


@contextmanager
def _waiting(compiler: AheadOfTime | InProcess) -> Iterator[None]:
    """Note that a call waits for a compiler, unless it compiles beside the calls."""
    if compiler.background:
        yield
        return
    WAITING.append(compiler)
    try:
        yield
    finally:
        WAITING.remove(compiler)


def waits_for_a_compiler() -> bool:
    """Return whether a call of this process waits until its step is compiled."""
    return bool(WAITING)


def _key(tensors: Sequence[Tensor]) -> Hashable:
    return tuple([(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors])


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, CompileError) else in_one_line(error)


def run_step(
    step: PureStep,
    mode: Mode,
    device: torch.device,
    *,
    snapshot: Callable[..., Callable[[], None]] | None = None,
    plain: Step | None = None,
    by_row: bool = False,
    static: bool = True,
    background: bool = False,
    cuda: Cuda = torch.cuda,
) -> Step:
    """Return the step that runs a pure function in a mode.

    Args:
        step: A function of tensors of fixed shapes that writes its results in place.
        mode: From `mode_of`.
        device: Where the tensors live.
        snapshot: Copies what the step changes; see `CudaGraphStep`. Without it no graph is made.
        plain: What runs the step as a graph without a compiler, or None where nothing does yet.
        by_row: The step does the same for each row of its last tensor, one after another.
        static: Its tensors lie at the same addresses at each call with such shapes.
        background: Start with what needs no compiler, and change when the rest is ready.
        cuda: `torch.cuda`, or a fake of it.
    """
    inner: Step = EagerStep(step)
    if mode.compiles:
        kind = AheadOfTime if device.type == "cpu" and not mode.graphs else InProcess
        compiler = kind(device, background=background)
        inner = CompiledStep(step, compiler, by_row=by_row)
    if not mode.graphs or snapshot is None:
        return inner
    options: Any = {"device": device, "cuda": cuda, "copies_inputs": not static}
    graph = CudaGraphStep(inner, snapshot, **options)
    if not (mode.compiles and background):
        return graph
    return PlainUntilCompiled(plain or CudaGraphStep(EagerStep(step), snapshot, **options), graph)
