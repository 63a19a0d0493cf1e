"""Files of a checkpoint: written through to the disk and compared, read without following links."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["BLOCK_BYTES", "Entry", "digest", "link", "opened", "read_into", "sync", "write"]

BLOCK_BYTES = 2**20
"""Of a file, in memory at a time."""


@dataclass(frozen=True)
class Entry:
    """What a checkpoint says of a file.

    Attributes:
        bytes: Its size.
        sha256: Of its contents, in hexadecimal.
    """

    bytes: int
    sha256: str


def write(path: Path, parts: Iterable[memoryview]) -> Entry:
    """Write a new file through to the disk, then read and compare it.

    Args:
        path: Nothing may lie there.
        parts: Its contents in turn, each of bytes.

    Raises:
        OSError: It cannot be written, or is not what was written.
    """
    parts, digest_, size = list(parts), hashlib.sha256(), 0
    with _new(path) as descriptor:
        for part in parts:
            digest_.update(part)
            _write_all(descriptor, part)
            size += len(part)
    _compare(path, parts, size)
    return Entry(size, digest_.hexdigest())


def _write_all(descriptor: int, part: memoryview) -> None:
    done = 0
    while done < len(part):
        done += os.write(descriptor, part[done : done + 16 * BLOCK_BYTES])


def _compare(path: Path, parts: Iterable[memoryview], size: int) -> None:
    """Compare a file with what was written."""
    block = memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        same = os.fstat(file.fileno()).st_size == size
        for part in parts:
            for start in range(0, len(part), BLOCK_BYTES):
                wanted = part[start : start + BLOCK_BYTES]
                found = block[: len(wanted)]
                same = same and read_into(file.fileno(), found) and _equal(found, wanted)
    if not same:
        raise OSError(errno.EIO, "the disk does not return what was written", str(path))


def _equal(left: memoryview, right: memoryview) -> bool:
    """Compare bytes while other threads run, which memoryviews do not."""
    return bool((np.frombuffer(left, np.uint8) == np.frombuffer(right, np.uint8)).all())


def link(source: Path, target: Path, entry: Entry, state: os.stat_result) -> os.stat_result:
    """Let a new name show an unchanged file, by a hard link, or by a copy where that is refused.

    Args:
        source: The file.
        target: Nothing may lie there.
        entry: What the file was when it was written.
        state: Its state then; a file that was changed since is not linked.

    Returns:
        The state of the file under its new name.

    Raises:
        OSError: The file is no longer what it was.
    """
    try:
        if _identity(source.lstat()) != _identity(state):
            raise OSError(errno.ESTALE, "it was changed since", str(source))
        os.link(source, target, follow_symlinks=False)
    except OSError:
        _copy(source, target, entry)
    return target.lstat()


def _identity(state: os.stat_result) -> tuple[int, ...]:
    return stat.S_IFMT(state.st_mode), state.st_ino, state.st_size, state.st_mtime_ns


def _copy(source: Path, target: Path, entry: Entry) -> None:
    """Copy a file, a block at a time, and compare it with its hash."""
    found, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with opened(source.parent, source.name, entry.bytes) as there, _new(target) as here:
        while count := os.readv(there, [block]):
            found.update(block[:count])
            _write_all(here, block[:count])
    if found.hexdigest() != entry.sha256:
        raise OSError(errno.ESTALE, "it was changed since it was written", str(source))


@contextmanager
def _new(path: Path) -> Iterator[int]:
    """Open a new file, and write it through to the disk at the end."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def opened(folder: Path, name: str, size: int | None = None) -> Iterator[int]:
    """Open a regular file of a checkpoint for reading.

    Args:
        folder: Of the checkpoint.
        name: The file, within the folder. No link on the way from there is followed, pipes and
            devices are not read.
        size: Its bytes; None is any.

    Raises:
        OSError: It is missing, no regular file, or of another size.
    """
    for place in (folder / name, *(folder / name).parents):
        if place == folder:
            break
        if place.is_symlink():
            raise OSError(f"{name} is or lies behind a link; put the file itself there")
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(folder / name, os.O_RDONLY | careful)
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(f"{name} is no regular file")
        if size is not None and state.st_size != size:
            raise OSError(f"{name} takes {state.st_size:,} bytes, not {size:,}")
        yield descriptor
    finally:
        os.close(descriptor)


def digest(descriptor: int) -> str:
    """Return the sha256 of a file from where it is read next, a block at a time."""
    found, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    while count := os.readv(descriptor, [block]):
        found.update(block[:count])
    return found.hexdigest()


def read_into(descriptor: int, target: memoryview) -> bool:
    """Fill memory from a file; return False where the file ends first."""
    done = 0
    while done < len(target):
        count = os.readv(descriptor, [target[done:]])
        if not count:
            return False
        done += count
    return True
