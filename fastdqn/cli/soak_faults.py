"""Faults that a soak injects into a running training, as other programs would."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FAULTS", "Fault", "Victim", "alive", "descendants", "full_disk"]

PROC = Path("/proc")
FULL_BYTES = 2_048
"""No file grows beyond it while the disk is "full"; tables and checkpoints are larger."""
FULL_S = 3.0
SAVE_S, LOOK_S = 20.0, 0.001
"""Seconds that a save is waited for, and between two looks."""
WORKER = b"multiprocessing"
TRACKER = b"resource_tracker"


@dataclass(frozen=True)
class Victim:
    """A running training.

    Attributes:
        process: Its process.
        checkpoints: Its folder of checkpoints.
    """

    process: subprocess.Popen[bytes]
    checkpoints: Path

    @property
    def pid(self) -> int:
        """Process id of the trainer."""
        return self.process.pid


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: For the table.
        inject: Does it; returns whether it could be done.
        exit_code: With which the training ends by it; None is not at all.
    """

    name: str
    inject: Callable[[Victim], bool]
    exit_code: int | None = None


def descendants(pid: int, proc: Path = PROC) -> list[int]:
    """Return the processes that a process has started, directly or not."""
    parents: dict[int, int] = {}
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            parent = _parent(folder)
            if parent is not None:
                parents[int(folder.name)] = parent
    found, new = [], {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found += sorted(new)
    return found


def alive(pids: list[int], proc: Path = PROC) -> list[int]:
    """Return those processes that still run; zombies do not."""
    return [pid for pid in pids if _parent(proc / str(pid)) is not None]


def _parent(folder: Path) -> int | None:
    """Return the parent of a process; None if it has ended."""
    try:
        state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in {"Z", "X"} else int(parent)


def _kill_worker(victim: Victim) -> bool:
    for pid in descendants(victim.pid):
        try:
            words = (PROC / str(pid) / "cmdline").read_bytes()
            if WORKER in words and TRACKER not in words:
                os.kill(pid, signal.SIGKILL)
                return True
        except OSError:
            continue
    return False


def _kill_trainer(victim: Victim) -> bool:
    victim.process.kill()
    return True


def _kill_while_saving(victim: Victim) -> bool:
    """Kill the trainer while a checkpoint is being written; not where none is within SAVE_S."""
    until = time.monotonic() + SAVE_S
    while time.monotonic() < until and victim.process.poll() is None:
        if next(victim.checkpoints.glob(".tmp-*"), None) is not None:
            victim.process.kill()
            return True
        time.sleep(LOOK_S)
    return False


def _terminate(victim: Victim) -> bool:
    victim.process.terminate()
    return True


def full_disk(victim: Victim) -> bool:
    """Let no file of the training grow for a while, by its limit of file sizes."""
    kind, pid = resource.RLIMIT_FSIZE, victim.pid
    try:
        soft, hard = resource.prlimit(pid, kind)
        resource.prlimit(pid, kind, (FULL_BYTES, hard))
        try:
            victim.process.wait(FULL_S)
        except subprocess.TimeoutExpired:
            resource.prlimit(pid, kind, (soft, hard))
    except OSError:
        return False
    return True


FAULTS = (
    Fault("worker killed (SIGKILL)", _kill_worker),
    Fault("trainer killed (SIGKILL)", _kill_trainer, -signal.SIGKILL),
    Fault("trainer killed while it saves", _kill_while_saving, -signal.SIGKILL),
    Fault("disk full for some seconds", full_disk),
    Fault("SIGTERM", _terminate, 128 + signal.SIGTERM),
)
"""In turns, those without an exit code leave the training running."""
