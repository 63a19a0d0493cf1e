"""Where what was compiled for this machine is stored for the next run."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

__all__ = ["cache_dir", "store", "stored"]


def cache_dir() -> Path:
    """Return the folder of what fastdqn compiles itself, `$XDG_CACHE_HOME/fastdqn` as a rule."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fastdqn"


def stored(name: str) -> bytes | None:
    """Return what was stored under a name, or None."""
    try:
        return (cache_dir() / name).read_bytes()
    except OSError:
        return None


def store(name: str, content: bytes) -> None:
    """Keep something under a name, whole or not at all; a folder that cannot be written is fine."""
    folder = cache_dir()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=folder, suffix=".draft")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(draft).replace(folder / name)
        finally:
            Path(draft).unlink(missing_ok=True)
