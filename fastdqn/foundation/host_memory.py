"""Memory that this process may still take: of the machine, its control groups and ulimits.

A container shows the memory of its machine in /proc/meminfo, and is ended by the kernel at the
limit of its control group. All limits are read, version 1 and 2 of control groups, up the hierarchy
as far as this process sees it. Files that are missing or not readable set no limit.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["MemoryLimit", "available_host_bytes", "memory_limits", "tightest"]

ROOT = Path("/")
RLIMITS = {"VmSize": ("RLIMIT_AS", "ulimit -v"), "VmData": ("RLIMIT_DATA", "ulimit -d")}
"""What counts against a limit, in /proc/self/status; its name in `resource`, and in a shell."""
RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
"""In memory.stat: what the kernel gives up for a process that asks for memory."""
CGROUPS = {
    "cgroup2": (("memory.max", "memory.high"), "memory.current", ""),
    "cgroup": (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"),
}
"""File system of control groups -> files of limits, of what is taken, prefix in memory.stat."""
MOUNTED = {"cgroup2": "sys/fs/cgroup", "cgroup": "sys/fs/cgroup/memory"}
"""Where they usually are, for systems that do not list their mounts."""
NO_LIMIT = 2**60
"""Version 1 spells no limit as the largest multiple of a page."""

Rlimit = Callable[[int], tuple[int, int]]


@dataclass(frozen=True)
class MemoryLimit:
    """One bound on the memory of this process.

    Attributes:
        name: What sets it, for messages.
        free: Bytes until it is reached.
        of_process: Whether it bounds each process by itself, and not all together.
    """

    name: str
    free: int
    of_process: bool = False


def available_host_bytes(root: Path = ROOT, rlimit: Rlimit = resource.getrlimit) -> int:
    """Return the bytes that this process can still take; see `memory_limits`."""
    return tightest(memory_limits(root, rlimit)).free


def tightest(limits: list[MemoryLimit]) -> MemoryLimit:
    """Return the limit with the fewest bytes left; the first of equal ones."""
    return min(limits, key=lambda limit: limit.free)


def memory_limits(root: Path = ROOT, rlimit: Rlimit = resource.getrlimit) -> list[MemoryLimit]:
    """Return every limit there is; the machine's memory is the first.

    Args:
        root: The folder that has proc and sys.
        rlimit: Returns the soft and the hard limit of a number in `resource`, bytes.
    """
    machine = MemoryLimit("memory of the machine", _machine_bytes(root))
    return [machine, *_of_cgroups(root), *_of_the_process(root, rlimit)]


def _machine_bytes(root: Path) -> int:
    available = _table(root / "proc/meminfo").get("MemAvailable")
    if available is not None:
        return available * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Control groups


def _of_cgroups(root: Path) -> Iterator[MemoryLimit]:
    """Yield the limits of this process's control groups, the innermost first."""
    groups, mounts = _groups(root), _mounts(root)
    for kind, (limits, taken, prefix) in CGROUPS.items():
        if kind in groups and kind in mounts:
            mounted_root, mount = mounts[kind]
            inner = _inside(groups[kind], mounted_root)
            for folder in (inner, *inner.parents):
                yield from _of_folder(root / mount / folder, limits, taken, prefix)


def _groups(root: Path) -> dict[str, str]:
    """Return the path of this process's group in each file system of control groups."""
    groups = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            groups["cgroup2"] = path
        elif "memory" in controllers.split(","):
            groups["cgroup"] = path
    return groups


def _mounts(root: Path) -> dict[str, tuple[str, str]]:
    """Return where control groups of memory are mounted: (their folder that is shown, where)."""
    mounts: dict[str, tuple[str, str]] = {}
    lines = _lines(root / "proc/self/mountinfo")
    for line in lines:
        before, _, after = line.partition(" - ")
        kind, *_, options = [*after.split(" "), ""][:3]
        places = before.split(" ")
        of_memory = kind == "cgroup2" or "memory" in options.split(",")
        if kind in CGROUPS and of_memory and len(places) > 4:
            shown, mount = (place.replace("\\040", " ") for place in places[3:5])
            mounts.setdefault(kind, (shown, mount.lstrip("/")))
    return mounts if lines else {kind: ("/", mount) for kind, mount in MOUNTED.items()}


def _inside(group: str, shown: str) -> PurePosixPath:
    """Return the path of a group below the mount.

    A container that does not see its path, as in `docker run --cgroupns=host`, has its own group
    mounted; one in a name space may be outside of what it sees ("/../x").
    """
    path = PurePosixPath(group)
    with suppress(ValueError):
        path = path.relative_to(shown)
    parts = [part for part in path.parts if part != "/"]
    return PurePosixPath(*(() if ".." in parts else parts))


def _of_folder(
    folder: Path, limits: tuple[str, ...], taken: str, prefix: str
) -> Iterator[MemoryLimit]:
    used = _number(folder / taken)
    if used is None:
        return
    for name in limits:
        limit = _number(folder / name)
        if limit is not None and limit < NO_LIMIT:
            stat = _table(folder / "memory.stat")
            kept = used - sum(stat.get(prefix + part, 0) for part in RECLAIMABLE)
            yield MemoryLimit(f"control group, {folder / name}", max(limit - max(kept, 0), 0))


# ulimit


def _of_the_process(root: Path, rlimit: Rlimit) -> Iterator[MemoryLimit]:
    taken = _table(root / "proc/self/status")
    for field, (name, command) in RLIMITS.items():
        limit = rlimit(getattr(resource, name))[0]
        if field in taken and limit != resource.RLIM_INFINITY:
            free = max(limit - taken[field] * 1024, 0)
            yield MemoryLimit(f"limit of a process, {command}", free, of_process=True)


# Files of the system


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text(errors="replace").splitlines()
    return []


def _number(path: Path) -> int | None:
    """Return the number that a file holds; None for none, and for "max"."""
    text = "".join(_lines(path)[:1]).strip()
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Return the numbers of lines such as "MemAvailable:  17 kB" and "active_file 17"."""
    words = [line.split() for line in _lines(path)]
    return {w[0].rstrip(":"): int(w[1]) for w in words if len(w) > 1 and w[1].isdecimal()}
