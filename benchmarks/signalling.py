"""`python -m benchmarks.signalling`: which signal between parent and workers costs least. A study.

A vector step is a signal to each worker, work there, and a signal back. Here the work is nothing
but m x t microseconds of CPU, where t is about what LunarLander-v3 takes for a step and m the
environments of a worker; what a step takes beyond m x t is what the signals cost: system calls,
waking up, and waiting for a core. It is run by hand when somebody wants to change how workers are
woken; nothing in the package depends on it, and it needs Linux (eventfd, epoll).

How to read it: work is counted in CPU time, so that a worker that loses its core to somebody who
spins pays for it here as it would in a run. With as many workers as cores the parent has no core
of its own. Pinned: worker i may run on core i alone, the parent anywhere. The lines of signals are
`benchmarks.signal_lines`. Every case has its own two workers, asleep while others are timed; all
cases are timed in turn, round after round.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from benchmarks.provenance import as_markdown, provenance, save_result
from benchmarks.signal_lines import (
    Cells,
    EventfdLine,
    Line,
    PipeLine,
    SemaphoreLine,
    SocketLine,
    SpinLine,
)
from fastdqn.device import available_cores

LEAVE = -1
"""In the place of the work: the worker ends."""
PR_SET_PDEATHSIG = 1
SPINS_US = (20, 50, 100)


@dataclass(frozen=True)
class Arguments:
    """Time a vector step of workers that only burn CPU, for each kind of signal in turn."""

    rounds: int = 7
    """Rounds in which every case is timed once, in turn."""
    seconds: float = 0.15
    """Seconds of each timing."""
    step_us: float = 31.0
    """CPU time of one environment's step, t."""
    num_per_worker: tuple[int, ...] = (1, 4, 16)
    """Environments of a worker, m."""
    num_workers: int = 2
    """Worker processes of each case."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.json and NAME.md."""


@dataclass(frozen=True)
class Case:
    """One way of signalling.

    Attributes:
        name: Of the signal.
        make: Builds one worker's line, given its number and that of all workers.
        by_epoll: Whether the parent waits for all at once; if not, for each in turn.
        pinned: Whether each worker has a core of its own.
    """

    name: str
    make: Callable[[int, Cells], Line]
    by_epoll: bool = False
    pinned: bool = False


def cases() -> list[Case]:
    """Return every way, first unpinned and then pinned."""
    found = []
    for pinned in (False, True):
        for by_epoll in (False, True):
            found += [
                Case("pipe of multiprocessing", lambda _i, _c: PipeLine(), by_epoll, pinned),
                Case("socketpair", lambda _i, _c: SocketLine(), by_epoll, pinned),
                Case("eventfd", lambda _i, _c: EventfdLine(), by_epoll, pinned),
            ]
        found.append(Case("semaphore", lambda _i, _c: SemaphoreLine(), pinned=pinned))
        found += [_spinning(us, apart, pinned) for us in SPINS_US for apart in (False, True)]
    return found


def _spinning(spin_us: int, apart: bool, pinned: bool) -> Case:
    where = "lines of their own" if apart else "one line"
    name = f"flag on {where}, spin {spin_us} us, then eventfd"
    return Case(name, lambda i, cells: SpinLine(cells, i, spin_us, apart), pinned=pinned)


class Crew:
    """The parent's view of the workers of one case.

    Args:
        case: How they are signalled.
        num_workers: Processes, forked here; `close` ends them.
    """

    def __init__(self, case: Case, num_workers: int) -> None:
        self.case = case
        self.cells = Cells(num_workers)
        self.lines = [case.make(i, self.cells) for i in range(num_workers)]
        self.step_number = 0
        self._epoll = select.epoll()
        self._by_fd: dict[int, Line] = {}
        if case.by_epoll:
            self._by_fd = {line.fileno(): line for line in self.lines}
            for fd in self._by_fd:
                self._epoll.register(fd, select.EPOLLIN)
        cores = sorted(os.sched_getaffinity(0))
        context = multiprocessing.get_context("fork")  # the descriptors go along
        self.processes = [
            context.Process(
                target=_work,
                args=(line, self.cells, cores[i % len(cores)] if case.pinned else None),
                daemon=True,
            )
            for i, line in enumerate(self.lines)
        ]
        for process in self.processes:
            process.start()

    def step(self) -> None:
        """Wake all workers and wait until all have answered."""
        self.step_number += 1
        for line in self.lines:
            line.wake(self.step_number)
        if not self.case.by_epoll:
            for line in self.lines:
                line.await_answer(self.step_number)
            return
        missing = len(self.lines)
        while missing:
            for fd, _ in self._epoll.poll():
                self._by_fd[fd].await_answer(self.step_number)
                missing -= 1

    def time_step(self, work_us: float, seconds: float) -> float:
        """Return the microseconds of a vector step, the mean over so many seconds."""
        self.cells.work_ns = int(work_us * 1000)
        for _ in range(3):
            self.step()
        steps, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            self.step()
            steps += 1
        return elapsed / steps * 1e6

    def close(self) -> None:
        """End the workers."""
        self.cells.work_ns = LEAVE
        self.step_number += 1
        for line in self.lines:
            line.wake(self.step_number)
        for process in self.processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._epoll.close()
        for line in self.lines:
            line.close()


def _work(line: Line, cells: Cells, core: int | None) -> None:
    """Burn CPU at each signal; end with the parent, who may be killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if core is not None:
        os.sched_setaffinity(0, {core})
    step_number = 0
    while True:
        step_number += 1
        line.await_wake(step_number)
        work_ns = cells.work_ns
        if work_ns == LEAVE:
            return
        _burn(work_ns)
        line.answer(step_number)


def _burn(work_ns: int) -> None:
    end = time.thread_time_ns() + work_ns
    while time.thread_time_ns() < end:
        pass


@contextmanager
def open_crews(num_workers: int) -> Iterator[list[Crew]]:
    """Start the workers of every case."""
    with ExitStack() as stack:
        crews = []
        for case in cases():
            crews.append(Crew(case, num_workers))
            stack.callback(crews[-1].close)
        yield crews


def main() -> None:
    """Measure, print, save."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__)
    with open_crews(arguments.num_workers) as crews:
        entries = measure(crews, arguments)
    header = provenance("python -m benchmarks.signalling")
    text = "\n\n".join([as_markdown(header), _told(arguments), table(entries)])
    sys.stdout.write(text + "\n")
    save_result(arguments.save, {"provenance": header, "cases": entries}, text)


def measure(crews: Sequence[Crew], arguments: Arguments) -> list[dict[str, Any]]:
    """Time every case with every m in turn; return overheads in microseconds."""
    took: dict[tuple[int, int], list[float]] = {}
    for number in range(arguments.rounds):
        for m in arguments.num_per_worker:
            for index, crew in enumerate(crews):
                step_us = crew.time_step(m * arguments.step_us, arguments.seconds)
                took.setdefault((index, m), []).append(step_us)
        sys.stderr.write(f"round {number + 1} of {arguments.rounds}\n")
    shares = -(-arguments.num_workers // available_cores())  # turns on a core, at best
    return [
        {
            "signal": crew.case.name,
            "waiting": "epoll" if crew.case.by_epoll else "in turn",
            "pinned": crew.case.pinned,
            "overhead_us": {
                str(m): overhead(took[index, m], shares * m * arguments.step_us)
                for m in arguments.num_per_worker
            },
        }
        for index, crew in enumerate(crews)
    ]


def overhead(took_us: Sequence[float], ideal_us: float) -> dict[str, float]:
    """Return median, lowest and highest of what steps took beyond the ideal, in microseconds."""
    return {
        "median": statistics.median(took_us) - ideal_us,
        "lowest": min(took_us) - ideal_us,
        "highest": max(took_us) - ideal_us,
    }


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Return the overheads as a Markdown table."""
    numbers = list(entries[0]["overhead_us"])
    names = ["signal", "parent waits", "workers", *(f"m = {m}" for m in numbers)]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for entry in entries:
        pinned = "pinned" if entry["pinned"] else "free"
        cells = [entry["signal"], entry["waiting"], pinned]
        cells += [_cell(entry["overhead_us"][m]) for m in numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: dict[str, float]) -> str:
    return f"{value['median']:.1f} ({value['lowest']:.1f} to {value['highest']:.1f})"


def _told(arguments: Arguments) -> str:
    return (
        f"Microseconds of a vector step beyond the work itself, {arguments.num_workers} workers, "
        f"m x {arguments.step_us:g} us of CPU each: median of {arguments.rounds} interleaved "
        f"rounds of {arguments.seconds:g} s (lowest to highest)."
    )


if __name__ == "__main__":
    main()
