"""A worker process as its parent sees it: its start, signals, answers, and its end."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.parent_watch import GROUP_SIGNALS
from fastdqn.envs.workers.worker import CLOSE, DONE, FAILED, Wire, next_signal
from fastdqn.errors import WorkerError

__all__ = [
    "LOOK_INTERVAL_S",
    "WorkerProcess",
    "parent_pid",
    "signals_blocked",
    "without_main_module",
]

LOOK_INTERVAL_S = 1.0
"""Seconds between checks of the other workers while one is waited for."""


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Hide the caller's script from multiprocessing, which would run it again in each worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals that only the parent handles while a worker is started.

    The worker unblocks them. A fork server that is started with it keeps them blocked, so that a
    signal to the process group does not end it.
    """
    resource_tracker.ensure_running()  # unblocks when it starts by itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parent_pid(start_method: str) -> int:
    """Return the process whose end a worker watches; see `Parent`."""
    if start_method == "forkserver":
        return -1
    in_a_thread = threading.current_thread() is not threading.main_thread()
    return 0 if in_a_thread else os.getpid()


class WorkerProcess:
    """A worker as its parent sees it.

    Attributes:
        index: Which worker.
        spans: (first, last + 1) environment by group.
        process: The process.
        wire: The parent's end of the connection to it.
        signal: Sends a signal of one byte; raises OSError if the worker has ended.
    """

    def __init__(
        self,
        index: int,
        spans: Sequence[tuple[int, int]],
        process: Any,
        wire: Wire,
        spin_s: float = 0.0,
    ) -> None:
        self.index, self.spans, self.process, self.wire = index, spans, process, wire
        self.pid, self.ended, self._spin_s = process.pid, False, spin_s
        self.signal = wire.signals.send
        patience = struct.pack("ll", int(LOOK_INTERVAL_S), 0)
        wire.signals.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        self._poller = select.poll()
        self._poller.register(wire.signals, select.POLLIN)
        self._poller.register(process.sentinel, select.POLLIN)

    def __str__(self) -> str:
        """Return the name of the worker in messages."""
        envs = ", ".join(f"{a} to {b - 1}" for a, b in self.spans)
        return f"worker {self.index} (pid {self.pid}, environments {envs})"

    def send(self, signal_: bytes, message: bytes | None = None) -> None:
        """Send a signal and what it announces.

        Raises:
            WorkerError: The worker has ended.
        """
        try:
            self.wire.send(signal_, message)
        except OSError as error:
            raise self.exit_error() from error

    def answered(self, timeout_s: float) -> bool:
        """Wait for a signal or the end of the process; return whether one is there."""
        return bool(self._poller.poll(timeout_s * 1000))

    def next_signal(self) -> bytes:
        """Wait a second at most; return a signal, or nothing if the worker ended; hot path."""
        try:
            return next_signal(self.wire.signals, self._spin_s)
        except OSError:
            return b""

    def receive(self, received: bytes = b"") -> Any:
        """Return the worker's answer: None, or an object.

        Args:
            received: What `next_signal` returned; empty waits for a signal.

        Raises:
            WorkerError: The worker has ended.
            EnvFailures: Environments raised.
        """
        try:
            signal_ = received or self.wire.receive()
            if signal_ == DONE:
                return None
            answer = pickle.loads(self.wire.messages.recv_bytes())  # noqa: S301 - our own worker's
        except (EOFError, OSError) as error:
            raise self.exit_error() from error
        if signal_ == FAILED:
            raise EnvFailures(answer)
        return answer

    def exit_error(self) -> WorkerError:
        """Return the error that says how the process ended."""
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None:
            return WorkerError(f"{self} does not answer")
        if code >= 0:
            return WorkerError(f"{self} ended with exit code {code}")
        hint = " (often out of memory)" if -code == signal.SIGKILL else ""
        return WorkerError(f"{self} ended with {signal.Signals(-code).name}{hint}")

    def request_close(self) -> None:
        """Ask the process to close its environments and to exit, if it still runs."""
        with contextlib.suppress(OSError):
            self.wire.send(CLOSE)

    def end(self, polite_s: float = 0.0) -> None:
        """Wait for the process to exit, then kill it; free its resources here."""
        if self.ended:
            return
        self.process.join(polite_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.ended = True  # only now: an interrupted wait may be repeated
        self.process.close()
        self.wire.close()
