"""The compiler: a process beside the trainer that turns traces into libraries on disk.

It prints nothing, compiles one request after another, and lives only while there is work. It ends
with its parent, however that ends, together with the processes that it has started.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fastdqn.execution.compile_cache import Numerics
from fastdqn.execution.trace import CompileError, TensorSpec

__all__ = ["AHEAD", "BACKGROUND", "Compiler", "Request"]

LINGER_S = 2.0
"""How long the process waits for more work; starting another one takes it three seconds."""
MODULE = ("-P", "-m", "fastdqn.execution.compiler_process")
EXIT_S = 1.0
"""How long a process that has closed its pipe may take to leave."""


@dataclass(frozen=True)
class Request:
    """One request to the compiler process, pickled.

    Attributes:
        graph: The operations, pickled: a GraphModule of PyTorch's own operations.
        specs: Of its inputs.
        num_rows: Repeats the operations for each row of the input at `last`; 0 does not.
        last: Which input that is.
        numerics: How to compute.
        path: Of the library, which is written atomically.
    """

    graph: bytes
    specs: tuple[TensorSpec, ...]
    num_rows: int
    last: int
    numerics: Numerics
    path: Path


class Compiler:
    """Compiles in a process of its own, which is started when there is something to do.

    May be used from any thread.

    Args:
        niceness: Added to that of this process.
        command: Arguments of the Python that is started; its protocol is that of
            `compiler_process`.
        linger_s: Seconds after which an idle process ends.

    Attributes:
        starts: Processes started so far.
    """

    def __init__(
        self,
        niceness: int = 0,
        command: tuple[str, ...] = MODULE,
        linger_s: float = LINGER_S,
    ) -> None:
        self._command, self._linger_s = (*command, str(niceness)), linger_s
        self._lock = threading.Lock()
        self._numbers = count()
        self._pending: dict[int, Future[None]] = {}
        self._line: _Line | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the process that runs now, or None."""
        line = self._line
        return None if line is None else line.process.pid

    def submit(self, request: Request) -> Future[None]:
        """Ask for a library; returns at once.

        Returns:
            Ends when the library lies on disk, or with a CompileError.
        """
        future: Future[None] = Future()
        with self._lock:
            try:
                line = self._line = self._line or self._start()
            except OSError as error:
                future.set_exception(CompileError(f"no compiler could be started: {error}"))
                return future
            number = next(self._numbers)
            self._pending[number] = future
            line.outbox.put(pickle.dumps((number, request)))
        return future

    def withdraw(self, future: Future[None]) -> None:
        """Cancel a request; ends the process if it was the last one."""
        future.cancel()
        with self._lock:
            self._pending = {n: f for n, f in self._pending.items() if f is not future}
            if not self._pending:
                self._end()

    def close(self) -> None:
        """End the process at once; a later `submit` starts another one."""
        with self._lock:
            for future in self._pending.values():
                future.cancel()
            self._pending = {}
            self._end()

    def _start(self) -> _Line:
        line = _Line(self._command)
        self.starts += 1
        for work in (line.send, lambda: self._listen(line)):
            threading.Thread(target=work, name="fastdqn-compiler", daemon=True).start()
        return line

    def _end(self) -> int:
        line, self._line = self._line, None
        return 0 if line is None else line.end()

    def _listen(self, line: _Line) -> None:
        """Take the answers of a process until it ends, or has nothing to do for a while."""
        for answer in line.answers(self._linger_s):
            with self._lock:
                if self._line is not line:
                    return  # ended on purpose
                if answer is None and not self._pending:
                    self._end()
                    return
                future = None if answer is None else self._pending.pop(answer[0], None)
            if answer is not None and future is not None:
                _settle(future, answer[1])
        with self._lock:
            if self._line is not line:
                return
            left, self._pending = self._pending, {}
            self._line = None
            how = _describe(line.left())
        for future in left.values():
            _settle(future, f"the compiler ended with {how}")


class _Line:
    """A process and the two pipes to it.

    Attributes:
        process: The process, leader of a group of its own.
        outbox: What is to be sent, None to end.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        modules = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": modules, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
            start_new_session=True,
        )
        self.outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def send(self) -> None:
        """Send what comes into the outbox: a pipe to a process that still starts may be full."""
        assert self.process.stdin is not None
        with self.process.stdin as pipe, suppress(BrokenPipeError):
            while message := self.outbox.get():
                while message:
                    message = message[pipe.write(message) :]

    def answers(self, idle_s: float) -> Iterator[tuple[int, str] | None]:
        """Yield what the process says, and None after each `idle_s` seconds of silence."""
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            heard = b""
            while True:
                if not select.select([pipe], [], [], idle_s)[0]:
                    if self.process.poll() is not None:
                        return  # and something that it had started holds the pipe
                    yield None
                    continue
                new = pipe.read(65536)
                if not new:
                    return
                *lines, heard = (heard + new).split(b"\n")
                for line in lines:
                    number, problem = json.loads(line)
                    yield number, problem

    def end(self) -> int:
        """End the process and what it has started; return the exit code."""
        self.outbox.put(None)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def left(self) -> int:
        """Wait for a process that has closed its pipe, and end what it had started."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(EXIT_S)
        return self.end()


def _settle(future: Future[None], problem: str) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if problem:
        future.set_exception(CompileError(problem))
    else:
        future.set_result(None)


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    hint = " (often out of memory)" if -code == signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"


AHEAD = Compiler()
"""Compiles for callers who wait."""
BACKGROUND = Compiler(niceness=5)
"""Compiles for callers who go on. Nicer still, it would never end beside a trainer and workers
that keep all cores busy."""
