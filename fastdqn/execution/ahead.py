"""Compiles ahead: a library for each set of shapes, on disk already or made by another process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from fastdqn.execution.compile import Form
from fastdqn.execution.compile_cache import Library, Numerics, library_path, load_library
from fastdqn.execution.compiler import AHEAD, BACKGROUND, Compiler, Request
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.trace import CompileError, TensorSpec, Trace

__all__ = ["AheadOfTime"]


class AheadOfTime:
    """Loads libraries within milliseconds, or has a process beside this one make them.

    Calls that wait are compiled in this process where no library can be made.

    Args:
        device: Where tensors live.
        background: Whether calls go on while it compiles.
        process: Makes what is not on disk; None is the one that suits `background`.

    Attributes:
        loaded: Libraries that were on disk already.
        made: Libraries that had to be compiled.
        fallback: Why this process compiles instead, or None.
    """

    repeats_rows = True

    def __init__(
        self, device: torch.device, *, background: bool = False, process: Compiler | None = None
    ) -> None:
        self._device, self._background = device, background
        self._process = process or (BACKGROUND if background else AHEAD)
        self._waiting: list[Future[None]] = []
        self.loaded = self.made = 0
        self.fallback: str | None = None

    def submit(
        self, traced: Callable[[], Trace], tensors: Sequence[Tensor], num_rows: int
    ) -> Future[Form]:
        """See `Compiles`. Done already if the library is on disk."""
        step = traced()
        found = self._submit(step, tensors, num_rows)
        if self._background:
            return found
        try:
            found.result()
        except CompileError as error:
            self.fallback = str(error)
            found = Future()
            found.set_result(_inside(InProcess(self._device), step, tensors, num_rows))
        finally:
            self.close()  # cancels the request of an interrupted wait
        return found

    def _submit(self, traced: Trace, tensors: Sequence[Tensor], num_rows: int) -> Future[Form]:
        path, found = library_path(traced, num_rows), Future[Form]()
        library = load_library(path, self._device)
        if library is not None:
            self.loaded += 1
            found.set_result(_bound(library, traced))
            return found
        last, specs = len(tensors) - 1, list(traced.specs)
        if num_rows:
            specs[last] = TensorSpec.of(tensors[-1])
        numerics = Numerics.current()
        request = Request(pickle.dumps(traced.graph), tuple(specs), num_rows, last, numerics, path)
        made = self._process.submit(request)
        self._waiting.append(made)
        made.add_done_callback(lambda made: self._take(made, found, request, traced))
        return found

    def _take(
        self, made: Future[None], found: Future[Form], request: Request, traced: Trace
    ) -> None:
        """Load what has been made."""
        if made in self._waiting:
            self._waiting.remove(made)
        if made.cancelled() or not found.set_running_or_notify_cancel():
            found.cancel()
            return
        error = made.exception()
        library = None if error else load_library(request.path, self._device)
        if library is None:
            lost = CompileError(f"what was compiled cannot be loaded: {request.path.name}")
            found.set_exception(error or lost)
            return
        self.made += 1
        found.set_result(_bound(library, traced))

    def close(self) -> None:
        """Cancel what is pending."""
        while self._waiting:
            self._process.withdraw(self._waiting.pop())


def _inside(compiler: InProcess, traced: Trace, tensors: Sequence[Tensor], num_rows: int) -> Form:
    """Compile in this process; a step by row is compiled for a single row."""
    if not num_rows:
        return compiler.compile(traced, tensors)
    form = compiler.compile(traced, (*tensors[:-1], tensors[-1][:1]))

    def run(*tensors: Tensor) -> None:
        *others, rows = tensors
        for row in range(len(rows)):
            form(*others, rows[row : row + 1])

    return run


def _bound(library: Library, traced: Trace) -> Form:
    """Let a library run with the constants of its step."""
    constants = traced.constants

    def run(*tensors: Tensor) -> None:
        library([*tensors, *constants])

    return run
