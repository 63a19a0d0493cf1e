"""A worker process as its parent sees it: signals out, answers in, and how it ended."""

from __future__ import annotations

import contextlib
import pickle
import select
import signal
import socket
import struct
from collections.abc import Sequence
from typing import Any

from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.worker import CLOSE, DONE, FAILED, Wire, hear
from fastdqn.errors import WorkerError

__all__ = ["LOOK_INTERVAL_S", "WorkerProcess"]

LOOK_INTERVAL_S = 1.0
"""Whoever waits for one worker looks after the others as often as this."""


class WorkerProcess:
    """A worker as its parent sees it.

    Args:
        index: Which worker.
        spans: Its environments by group.
        process: The process.
        wire: The parent's end of the line to it.
        spin_s: Seconds to stay awake for its answers.

    Attributes:
        signal: Sends a signal of one byte; an OSError says that the worker has gone.
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
        """Return how to name it in a message."""
        envs = ", ".join(f"{a} to {b - 1}" for a, b in self.spans)
        return f"worker {self.index} (pid {self.pid}, environments {envs})"

    def send(self, signal_: bytes, message: bytes | None = None) -> None:
        """Send a signal and what it announces.

        Raises:
            WorkerError: The worker has gone.
        """
        try:
            self.wire.send(signal_, message)
        except OSError as error:
            raise self.gone() from error

    def answered(self, timeout_s: float) -> bool:
        """Wait until a signal, or the end of the process, is there to be received."""
        return bool(self._poller.poll(timeout_s * 1000))

    def hear(self) -> bytes:
        """Wait for the next signal, for a second at most; hot path.

        Returns:
            The signal; nothing where none came, or the worker has gone.
        """
        try:
            return hear(self.wire.signals, self._spin_s)
        except OSError:
            return b""

    def receive(self, heard: bytes = b"") -> Any:
        """Return what the worker answered: None, or an object.

        Args:
            heard: What `hear` returned; nothing waits for the signal here.

        Raises:
            WorkerError: The worker has gone.
            EnvFailures: Environments raised.
        """
        try:
            signal_ = heard or self.wire.receive()
            if signal_ == DONE:
                return None
            answer = pickle.loads(self.wire.messages.recv_bytes())  # noqa: S301 - our own worker's
        except (EOFError, OSError) as error:
            raise self.gone() from error
        if signal_ == FAILED:
            raise EnvFailures(answer)
        return answer

    def gone(self) -> WorkerError:
        """Say how the process ended."""
        self.process.join(1.0)
        code = self.process.exitcode
        how = "does not answer" if code is None else f"ended with {_describe_exit(code)}"
        return WorkerError(f"{self} {how}")

    def dismiss(self) -> None:
        """Ask the process to close its environments and to leave, if it still hears that."""
        with contextlib.suppress(OSError):
            self.wire.send(CLOSE)

    def end(self, polite_s: float = 0.0) -> None:
        """Wait for the process to leave, then make it leave; free what it held here."""
        if self.ended:
            return
        self.process.join(polite_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.ended = True  # only now: whoever interrupts the waiting may come back to it
        self.process.close()
        self.wire.close()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    hint = " (often out of memory)" if -code == signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"
