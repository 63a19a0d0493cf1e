"""The lines of `benchmarks.signalling`: one signal each way between a parent and one worker.

All are made before the fork, so that both sides hold the same descriptors, semaphores and memory.
Steps have serial numbers from 1; only the flags in shared memory carry them.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import select
import socket
import time
from typing import Protocol

__all__ = ["Cells", "EventfdLine", "Line", "PipeLine", "SemaphoreLine", "SocketLine", "SpinLine"]

CELLS_PER_LINE = 8
"""64-bit cells on one cache line of 64 bytes."""
FLAGS = 4
"""Of one worker: woken, worker asleep, answered, parent asleep."""
SAFETY_MS = 10
"""A sleeper looks again after so long: without a memory fence a signal may be missed."""


class Line(Protocol):
    """One worker's signals, both ways."""

    def wake(self, step: int) -> None:
        """Parent: tell the worker to take a step."""

    def await_wake(self, step: int) -> None:
        """Worker: wait for that."""

    def answer(self, step: int) -> None:
        """Worker: tell that it is done."""

    def await_answer(self, step: int) -> None:
        """Parent: wait for that."""

    def fileno(self) -> int:
        """Return what an epoll of the parent can wait for; -1 if there is none."""

    def close(self) -> None:
        """Give the descriptors of this process back."""


class Cells:
    """64-bit cells in anonymous shared memory: the work to do, then the flags of all workers.

    Args:
        num_workers: Workers; there is room for each flag on a cache line of its own.
    """

    def __init__(self, num_workers: int) -> None:
        count = CELLS_PER_LINE * (1 + FLAGS * num_workers)
        self.memory = memoryview(mmap.mmap(-1, 8 * count)).cast("q")

    @property
    def work_ns(self) -> int:
        """Nanoseconds of CPU that each worker burns in a step."""
        return self.memory[0]

    @work_ns.setter
    def work_ns(self, value: int) -> None:
        self.memory[0] = value

    def places(self, worker: int, apart: bool) -> list[int]:
        """Return where a worker's flags lie: side by side, or each on a line of its own."""
        stride = CELLS_PER_LINE if apart else 1
        first = CELLS_PER_LINE + worker * FLAGS * stride
        return [first + flag * stride for flag in range(FLAGS)]


class PipeLine:
    """What fastdqn's workers use: a connection of multiprocessing, and a poll before the answer."""

    def __init__(self) -> None:
        self.ours, self.theirs = multiprocessing.Pipe()
        self.poller = select.poll()
        self.poller.register(self.ours.fileno(), select.POLLIN)

    def wake(self, step: int) -> None:  # noqa: ARG002 - only flags carry it
        self.ours.send_bytes(b"s")

    def await_wake(self, step: int) -> None:  # noqa: ARG002
        self.theirs.recv_bytes()

    def answer(self, step: int) -> None:  # noqa: ARG002
        self.theirs.send_bytes(b"d")

    def await_answer(self, step: int) -> None:  # noqa: ARG002
        self.poller.poll(1000)
        self.ours.recv_bytes()

    def fileno(self) -> int:
        return self.ours.fileno()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class SocketLine:
    """A pair of Unix sockets, one byte each way, blocking."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()

    def wake(self, step: int) -> None:  # noqa: ARG002
        self.ours.send(b"s")

    def await_wake(self, step: int) -> None:  # noqa: ARG002
        self.theirs.recv(1)

    def answer(self, step: int) -> None:  # noqa: ARG002
        self.theirs.send(b"d")

    def await_answer(self, step: int) -> None:  # noqa: ARG002
        self.ours.recv(1)

    def fileno(self) -> int:
        return self.ours.fileno()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class EventfdLine:
    """Two eventfds, blocking."""

    def __init__(self) -> None:
        self.woken, self.answered = os.eventfd(0), os.eventfd(0)

    def wake(self, step: int) -> None:  # noqa: ARG002
        os.eventfd_write(self.woken, 1)

    def await_wake(self, step: int) -> None:  # noqa: ARG002
        os.eventfd_read(self.woken)

    def answer(self, step: int) -> None:  # noqa: ARG002
        os.eventfd_write(self.answered, 1)

    def await_answer(self, step: int) -> None:  # noqa: ARG002
        os.eventfd_read(self.answered)

    def fileno(self) -> int:
        return self.answered

    def close(self) -> None:
        os.close(self.woken)
        os.close(self.answered)


class SemaphoreLine:
    """Two POSIX semaphores of multiprocessing: futexes, no system call where nobody sleeps."""

    def __init__(self) -> None:
        self.woken, self.answered = multiprocessing.Semaphore(0), multiprocessing.Semaphore(0)

    def wake(self, step: int) -> None:  # noqa: ARG002
        self.woken.release()

    def await_wake(self, step: int) -> None:  # noqa: ARG002
        self.woken.acquire()

    def answer(self, step: int) -> None:  # noqa: ARG002
        self.answered.release()

    def await_answer(self, step: int) -> None:  # noqa: ARG002
        self.answered.acquire()

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Nothing to do: the system gives them back with the last process."""


class SpinLine:
    """Flags in shared memory: look at them for a while, then sleep on an eventfd.

    Args:
        cells: The shared memory.
        worker: Which worker, from 0.
        spin_us: Microseconds of looking before sleep.
        apart: Whether each flag has a cache line of its own.
    """

    def __init__(self, cells: Cells, worker: int, spin_us: float, apart: bool) -> None:
        self.memory, self.spin_ns = cells.memory, int(spin_us * 1000)
        self.woken, self.worker_sleeps, self.answered, self.parent_sleeps = cells.places(
            worker, apart
        )
        flags = os.EFD_NONBLOCK
        self.to_worker, self.to_parent = os.eventfd(0, flags), os.eventfd(0, flags)
        self.pollers = {fd: select.poll() for fd in (self.to_worker, self.to_parent)}
        for fd, poller in self.pollers.items():
            poller.register(fd, select.POLLIN)

    def wake(self, step: int) -> None:
        self._raise(self.woken, self.worker_sleeps, self.to_worker, step)

    def await_wake(self, step: int) -> None:
        self._await(self.woken, self.worker_sleeps, self.to_worker, step)

    def answer(self, step: int) -> None:
        self._raise(self.answered, self.parent_sleeps, self.to_parent, step)

    def await_answer(self, step: int) -> None:
        self._await(self.answered, self.parent_sleeps, self.to_parent, step)

    def _raise(self, flag: int, sleeps: int, fd: int, step: int) -> None:
        self.memory[flag] = step
        if self.memory[sleeps]:
            os.eventfd_write(fd, 1)

    def _await(self, flag: int, sleeps: int, fd: int, step: int) -> None:
        memory, end = self.memory, time.perf_counter_ns() + self.spin_ns
        while memory[flag] < step:
            if time.perf_counter_ns() > end:
                self._sleep(flag, sleeps, fd, step)

    def _sleep(self, flag: int, sleeps: int, fd: int, step: int) -> None:
        self.memory[sleeps] = 1
        while self.memory[flag] < step:  # the signal may have come in between
            self.pollers[fd].poll(SAFETY_MS)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
        self.memory[sleeps] = 0

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        os.close(self.to_worker)
        os.close(self.to_parent)
