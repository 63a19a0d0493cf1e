"""The lock of a run directory: one process at a time writes there.

The operating system holds it (`flock`) and gives it up when the process ends, however it ends, so
that no lock outlives its process and no reused process id is taken for it. Where a file system
has no such locks, as some network ones, the process that the file names decides.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastdqn.errors import UsageError

__all__ = ["LOCK", "locked"]

LOCK = ".lock"
MOST_BYTES = 4_096
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Errors of a file system that has no such locks."""


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which exists.

    Raises:
        UsageError: Another living process holds it; names the process.
        OSError: The lock cannot be written.
    """
    path = run_dir / LOCK
    descriptor = _opened(path, run_dir)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_own_mark()).encode(), 0)
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            path.unlink()
        os.close(descriptor)


def _opened(path: Path, run_dir: Path) -> int:
    """Return the open file whose lock is held, and which is the one that the folder has."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            _take(descriptor, run_dir)
            if _is_still_there(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process before has removed it meanwhile


def _take(descriptor: int, run_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(run_dir, _mark_in(descriptor)) from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        mark = _mark_in(descriptor)
        if mark and _may_live(mark):
            raise _refusal(run_dir, mark) from None


def _refusal(run_dir: Path, mark: dict[str, Any]) -> UsageError:
    process = f"process {mark.get('pid', '?')} on {mark.get('host', 'a machine')}"
    return UsageError(
        str(run_dir),
        f"{process} writes there",
        f"Wait until it ends, or stop it; if there is none, delete {run_dir / LOCK}.",
    )


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _own_mark() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "started": _started(pid)}


def _mark_in(descriptor: int) -> dict[str, Any]:
    """Return what the process wrote that made the lock; empty if that is unreadable."""
    try:
        mark = json.loads(os.pread(descriptor, MOST_BYTES, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    known = isinstance(mark, dict) and type(mark.get("pid")) is int and mark["pid"] > 0
    return mark if known and isinstance(mark.get("host"), str) else {}


def _may_live(mark: dict[str, Any]) -> bool:
    """Return whether the process may be alive: of another machine nothing is known."""
    if mark["host"] != socket.gethostname():
        return True
    try:
        os.kill(mark["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    started = _started(mark["pid"])
    return started is None or mark.get("started") in {None, started}


def _started(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did; None where that is unknown.

    A later process with the same id has another one.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat.rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
