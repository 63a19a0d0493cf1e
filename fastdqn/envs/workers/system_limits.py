"""Limits of the system that are checked before workers start: open files, shared memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path

from fastdqn.errors import UsageError

__all__ = [
    "FILES_PER_WORKER",
    "may_be_parent",
    "refuse_unless_openable",
    "refuse_unless_parent",
    "refuse_unless_shareable",
]

FILES_PER_WORKER = 8
"""A socket, a connection and a sentinel; and three more for a moment while the worker starts."""
SPARE_FILES = 32
SHARED_MEMORY = Path("/dev/shm")


def may_be_parent() -> bool:
    """Return whether multiprocessing lets this process start others."""
    return not multiprocessing.current_process().daemon


def refuse_unless_parent(got: str, way_out: str) -> None:
    """Refuse to start workers from a process that may start none.

    Args:
        got: The call or flag that needs workers.
        way_out: How to do without.

    Raises:
        UsageError: multiprocessing lets this process start no others.
    """
    if not may_be_parent():
        raise UsageError(
            f"{got} in a daemonic process",
            "multiprocessing lets such a process start no others",
            f"{way_out} Or start this process with daemon=False.",
        )


def refuse_unless_openable(num_workers: int) -> None:
    """Raise this process's limit of open files far enough for its workers.

    Raises:
        UsageError: The system does not let it be raised that far.
    """
    taken = _open_files() + SPARE_FILES
    needed = taken + num_workers * FILES_PER_WORKER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    granted = hard
    if hard == resource.RLIM_INFINITY or needed <= hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except (ValueError, OSError):  # more than the kernel grants
            granted = soft
        else:
            return
    fits = max((granted - taken) // FILES_PER_WORKER, 0)
    raise UsageError(
        f"--num-workers {num_workers}",
        f"they need {needed} open files and this process may have {granted}",
        f"At most {fits} workers fit; let each host more environments, "
        "or ask the administrator for more (ulimit -Hn).",
    )


def refuse_unless_shareable(nbytes: int, num_envs: int) -> None:
    """Refuse a shared block that does not fit into shared memory.

    Raises:
        UsageError: It does not fit.
    """
    if not SHARED_MEMORY.is_dir():
        return
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    if nbytes > free:
        raise UsageError(
            f"--num-envs {num_envs}",
            f"their rows take {nbytes / 2**20:,.1f} MiB of shared memory and {SHARED_MEMORY} "
            f"has {free / 2**20:,.1f} MiB left",
            f"Use fewer environments, or make {SHARED_MEMORY} larger (docker run --shm-size).",
        )


def _open_files() -> int:
    for folder in (Path("/proc/self/fd"), Path("/dev/fd")):
        if folder.is_dir():
            return sum(1 for _ in folder.iterdir())
    return SPARE_FILES
