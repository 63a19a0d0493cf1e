"""Compilers that a test controls: they wait, build nothing, or fail."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fastdqn.execution import ahead
from fastdqn.execution.compiler import Request
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.trace import COMPILER, CompileError, Trace

__all__ = ["HeldInductor", "Interpreted", "PromptCompiler", "SlowCompiler", "interpreted"]


class SlowCompiler:
    """Compiles when the test says so.

    What it puts on disk is the trace itself; see `interpreted`.

    Attributes:
        requests: All so far.
        waiting: Those that wait, by future, and what loads them.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.waiting: dict[Future[Any], tuple[Request, Callable[[], Any]]] = {}

    def submit(self, request: Request, load: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.requests.append(request)
        self.waiting[future] = request, load
        return future

    def withdraw(self, future: Future[Any]) -> None:
        self.waiting.pop(future, None)
        future.cancel()

    def finish(self, problem: str = "") -> None:
        """End what has waited longest."""
        future, (request, load) = next(iter(self.waiting.items()))
        del self.waiting[future]
        if problem:
            future.set_exception(CompileError(problem))
            return
        request.path.parent.mkdir(parents=True, exist_ok=True)
        request.path.write_bytes(pickle.dumps((request.source, request.num_rows, request.last)))
        future.set_result(load())


class PromptCompiler(SlowCompiler):
    """Ends every request at once, with a problem if it has one."""

    def __init__(self, problem: str = "") -> None:
        super().__init__()
        self.problem = problem

    def submit(self, request: Request, load: Callable[[], Any]) -> Future[Any]:
        future = super().submit(request, load)
        self.finish(self.problem)
        return future


class Interpreted:
    """What `SlowCompiler` compiled: runs the trace, and counts how often."""

    def __init__(self, path: Path) -> None:
        source, self.num_rows, self.last = pickle.loads(path.read_bytes())  # noqa: S301
        self.operations, self.calls = source.function(), 0

    def __call__(self, tensors: list[Tensor]) -> None:
        self.calls += 1
        last = tensors[self.last]
        for row in last.split(1) if self.num_rows else [last]:
            self.operations(*tensors[: self.last], row, *tensors[self.last + 1 :])


def interpreted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Interpreted]:
    """Keep libraries in `folder`, and load them as traces; return all that are loaded."""
    loaded: list[Interpreted] = []

    def load(path: Path, device: Any) -> Interpreted | None:
        if not path.exists():
            return None
        loaded.append(Interpreted(path))
        return loaded[-1]

    monkeypatch.setattr(ahead, "load_library", load)
    monkeypatch.setattr("fastdqn.execution.ahead.cache_dir", lambda: str(folder))
    return loaded


class HeldInductor:
    """Takes the place of the compiler in this process; what it compiled runs the trace.

    Args:
        monkeypatch: Puts it there.

    Attributes:
        go: Set it to let compiles end at once.
        problem: What they end with.
        traces: All that was asked for.
        calls: Of what was compiled.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.problem = threading.Event(), ""
        self.traces: list[Trace] = []
        self.calls = 0
        monkeypatch.setattr(InProcess, "compile", self._compile)

    def _compile(
        self, traced: Trace, tensors: Sequence[Tensor], **_options: Any
    ) -> Callable[..., None]:
        self.traces.append(traced)
        assert self.go.wait(60)
        if self.problem:
            raise RuntimeError(self.problem)

        def run(*given: Tensor) -> None:
            self.calls += 1
            traced.graph(*given, *traced.constants)

        return run

    def finish(self, problem: str = "") -> None:
        """Let what is compiled now end, and wait for it."""
        self.problem = problem
        self.go.set()
        with COMPILER:  # which the thread gives back at its end
            self.go.clear()
