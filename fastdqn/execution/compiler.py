"""The compiler: a process beside the trainer that turns traces into libraries on disk.

It prints nothing, compiles one request after another, and lives only while there is work. It ends
with its parent, however that ends, together with the processes that it has started.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from fastdqn.execution.trace import CompileError, Source, TensorSpec

__all__ = ["AHEAD", "BACKGROUND", "LOOK_INTERVAL_S", "Compiler", "Numerics", "Request"]

LINGER_S = 2.0
"""How long the process waits for more work; starting another one takes it three seconds."""
MODULE = ("-P", "-m", "fastdqn.execution.compiler_process")
EXIT_S = 1.0
"""How long a process that has closed its pipe may take to leave."""
LOOK_INTERVAL_S = 1.0
"""How often to look whether a silent process still lives."""

Process = subprocess.Popen[bytes]
T = TypeVar("T")
AnyFuture = Future[Any]
"""Whatever it will hold: the type of a future does not vary with that of its result."""


class Numerics(NamedTuple):
    """How PyTorch computes in this process; compiled into machine code.

    Attributes:
        threads: Intra-op threads.
        precision: Of float32 products, as in `torch.set_float32_matmul_precision`.
        deterministic: As in `torch.use_deterministic_algorithms`.
    """

    threads: int
    precision: str
    deterministic: bool

    @classmethod
    def current(cls) -> Numerics:
        """Return those of this process."""
        return cls(
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        )

    def apply(self) -> None:
        """Let this process compute so."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(self.deterministic)


class Request(NamedTuple):
    """One request to the compiler process, pickled.

    Attributes:
        source: PyTorch's own operations.
        specs: Of its inputs.
        num_rows: Repeats the operations for each row of the input at `last`; 0 does not.
        last: Which input that is.
        numerics: How to compute.
        path: Of the library, which is written atomically.
    """

    source: Source
    specs: tuple[TensorSpec, ...]
    num_rows: int
    last: int
    numerics: Numerics
    path: Path


Asked = tuple[Request, Callable[[], object]]


class Compiler:
    """Compiles in a process of its own, which is started when there is something to do.

    May be used from any thread.

    Args:
        niceness: Added to that of this process.
        command: Arguments of the Python that is started; its protocol is that of
            `compiler_process`.
        linger_s: Seconds after which an idle process ends.
    """

    def __init__(
        self,
        niceness: int = 0,
        command: tuple[str, ...] = MODULE,
        linger_s: float = LINGER_S,
    ) -> None:
        self._command, self._linger_s = (*command, str(niceness)), linger_s
        self._changed = threading.Condition()
        self._pending: dict[AnyFuture, Asked] = {}
        self._process: Process | None = None

    def submit(self, request: Request, load: Callable[[], T]) -> Future[T]:
        """Ask for a library; returns at once.

        Args:
            request: What to compile.
            load: Is called when the library lies on disk, in another thread.

        Returns:
            Ends with what `load` returns or raises, or with a CompileError.
        """
        future: Future[T] = Future()
        with self._changed:
            try:
                self._process = self._process or self._start()
            except OSError as error:
                future.set_exception(CompileError(f"no compiler could be started: {error}"))
                return future
            self._pending[future] = request, load
            self._changed.notify_all()
        return future

    def withdraw(self, future: AnyFuture) -> None:
        """Cancel a request; ends the process if it was the last one."""
        future.cancel()
        with self._changed:
            self._pending.pop(future, None)
            if not self._pending:
                self._end()

    def _start(self) -> Process:
        modules = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        process = subprocess.Popen(
            [sys.executable, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": modules, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
            start_new_session=True,
        )
        name, arguments = "fastdqn-compiler", (process,)
        threading.Thread(target=self._serve, name=name, args=arguments, daemon=True).start()
        return process

    def _end(self) -> None:
        """End the process and what it has started."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._changed.notify_all()

    def _serve(self, process: Process) -> None:
        """Have a process compile what is pending until it ends, or has nothing to do."""
        with process:
            while (first := self._next(process)) is not None:
                future, (request, load) = first
                problem = _ask(process, request)
                with self._changed:
                    if self._process is not process:
                        return  # ended on purpose
                    settled = [future] if problem is not None else list(self._pending)
                    for each in settled:
                        self._pending.pop(each, None)
                    if problem is None:
                        problem = f"the compiler ended with {self._left(process)}"
                for each in settled:
                    _settle(each, problem, load)

    def _next(self, process: Process) -> tuple[AnyFuture, Asked] | None:
        """Wait for a request; None where the process has ended, or has waited long enough."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._pending or self._process is not process, self._linger_s
            )
            if self._process is not process:
                return None
            first = next(iter(self._pending.items()), None)
            if first is None:
                self._end()
        return first

    def _left(self, process: Process) -> str:
        """Wait for a process that has closed its pipe, end what it had started, and say how."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_S)
        self._end()
        code = process.returncode
        if code >= 0:
            return f"exit code {code}"
        hint = " (often out of memory)" if -code == signal.SIGKILL else ""
        return f"{signal.Signals(-code).name}{hint}"


def _ask(process: Process, request: Request) -> str | None:
    """Return what went wrong, which may be nothing; None where the process has ended."""
    requests, answers = process.stdin, process.stdout
    assert requests is not None
    assert answers is not None
    message = pickle.dumps(request)
    with suppress(BrokenPipeError):
        while message:
            message = message[requests.write(message) :]
    while not select.select([answers], [], [], LOOK_INTERVAL_S)[0]:
        if process.poll() is not None:
            return None  # and something that it had started holds the pipe
    answer = answers.readline()
    return json.loads(answer) if answer else None


def _settle(future: AnyFuture, problem: str, load: Callable[[], object]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        if problem:
            raise CompileError(problem)
        future.set_result(load())
    except Exception as error:  # whatever a file on disk leads to
        future.set_exception(error)


AHEAD = Compiler()
"""Compiles for callers who wait."""
BACKGROUND = Compiler(niceness=5)
"""Compiles for callers who go on. Nicer still, it would never end beside a trainer and workers
that keep all cores busy."""
