"""A step compiled ahead: one library for each set of shapes, on disk or still to be made."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from fastdqn.execution.compile_cache import Library, Numerics, library_path, load_library
from fastdqn.execution.compiler import CompileError, Compiles, Request
from fastdqn.execution.trace import FlatArguments, TensorSpec, Trace, trace

__all__ = ["AheadOfTime", "Run", "Variants"]

Run = Callable[[list[Tensor]], object]
"""Runs a step on the tensors of its arguments; the list is emptied."""


class Variants:
    """Asks for the libraries of one step.

    Args:
        step: Writes its results in place; the same operations for any values in its tensors.
        device: Where its tensors live.
        by_row: The step does the same for each row of its last argument, one row after another;
            then a single row is traced, however many there are.
        compiler: Makes what is not on disk.

    Attributes:
        loaded: Libraries that were on disk already.
        made: Libraries that had to be compiled.
    """

    def __init__(
        self,
        step: Callable[..., None],
        device: torch.device,
        *,
        by_row: bool,
        compiler: Compiles,
    ) -> None:
        self._step, self._device, self._by_row = step, device, by_row
        self._compiler = compiler
        self._traces: dict[Hashable, Trace] = {}
        self._waiting: list[Future[None]] = []
        self._leaves = FlatArguments()
        self.loaded = self.made = 0

    def find(self, args: tuple[Any, ...]) -> Future[Run]:
        """Trace the step for these arguments and look for its library; takes some 0.1 s.

        Returns:
            Done already if the library is on disk; else it ends when it has been made, or with
            a CompileError.

        Raises:
            UntraceableError: The step cannot be compiled ahead.
        """
        traced, num_rows = self._traced(args)
        path = library_path(traced, num_rows)
        found: Future[Run] = Future()
        library = load_library(path, self._device)
        if library is not None:
            self.loaded += 1
            found.set_result(_bound(library, traced))
            return found
        last = len(traced.specs) - len(traced.held) - 1
        specs = list(traced.specs)
        if num_rows:
            specs[last] = TensorSpec.of(args[-1])
        request = Request(
            pickle.dumps(traced.graph), tuple(specs), num_rows, last, Numerics.current(), path
        )
        made = self._compiler.submit(request)
        self._waiting.append(made)

        def take(made: Future[None]) -> None:
            self._take(made, found, request, traced)

        made.add_done_callback(take)
        return found

    def _traced(self, args: tuple[Any, ...]) -> tuple[Trace, int]:
        """Return the trace of these arguments, and how often it is repeated."""
        num_rows = len(args[-1]) if self._by_row else 0
        args = (*args[:-1], args[-1][:1]) if self._by_row else args
        variant = self._leaves(args)[0]
        if variant not in self._traces:
            self._traces[variant] = trace(self._step, args)
        return self._traces[variant], num_rows

    def _take(
        self, made: Future[None], found: Future[Run], request: Request, traced: Trace
    ) -> None:
        """Load what has been made."""
        if made in self._waiting:
            self._waiting.remove(made)
        if made.cancelled() or not found.set_running_or_notify_cancel():
            found.cancel()
            return
        error = made.exception()
        library = None if error else load_library(request.path, self._device)
        if error is None and library is None:
            error = CompileError(f"what was compiled cannot be loaded: {request.path.name}")
        if error is not None or library is None:
            found.set_exception(error)
            return
        self.made += 1
        found.set_result(_bound(library, traced))

    def close(self) -> None:
        """Ask for nothing any longer."""
        while self._waiting:
            self._compiler.withdraw(self._waiting.pop())


class AheadOfTime:
    """What all steps that are compiled ahead have.

    Args:
        step: Writes its results in place.
        device: Where its tensors live.
        by_row: See `Variants`.
        compiler: Makes what is not on disk.
    """

    def __init__(
        self, step: Callable[..., None], device: torch.device, *, by_row: bool, compiler: Compiles
    ) -> None:
        self._variants = Variants(step, device, by_row=by_row, compiler=compiler)
        self._leaves = FlatArguments()
        self._runs: dict[Hashable, Run] = {}

    @property
    def loaded(self) -> int:
        """Variants that were found on disk."""
        return self._variants.loaded

    @property
    def made(self) -> int:
        """Variants that were compiled for this step."""
        return self._variants.made


def _bound(library: Library, traced: Trace) -> Run:
    """Let a library run with the tensors that its step holds."""
    held = traced.held
    if not held:
        return library

    def run(tensors: list[Tensor]) -> None:
        library([*tensors, *held])

    return run
