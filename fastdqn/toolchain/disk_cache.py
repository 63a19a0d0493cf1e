"""The cache on disk of what was compiled for this machine, and the name of its processor."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import tempfile
from pathlib import Path

__all__ = ["cache_dir", "processor", "store", "stored"]


def cache_dir() -> Path:
    """Return the folder of the cache, by default `$XDG_CACHE_HOME/fastdqn`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fastdqn"


def stored(name: str) -> bytes | None:
    """Return the bytes that were stored under a name, or None."""
    try:
        return (cache_dir() / name).read_bytes()
    except OSError:
        return None


def store(name: str, content: bytes) -> None:
    """Store bytes under a name, atomically; ignores a folder that cannot be written."""
    folder = cache_dir()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as drafts:
            draft = Path(drafts) / name
            draft.write_bytes(content)
            draft.replace(folder / name)


@functools.cache
def processor() -> str:
    """Return the processor's model and instruction sets."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features", "isa"))}
    machine = platform.machine(), platform.system(), platform.processor()
    return " ".join([*machine, *sorted(kinds)])
