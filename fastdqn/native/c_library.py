"""The C of this room, as Python calls it."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path

from fastdqn.errors import UsageError
from fastdqn.toolchain.cc import MLP, compile_c, compiled

__all__ = ["load_library", "why_no_library"]

SOURCE = MLP


def why_no_library() -> str | None:
    """Return why the library cannot be had here, or None; compiles it if it is not on disk."""
    try:
        load_library()
    except UsageError as error:
        return error.reason
    return None


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the library, compiling it first where this machine has not got it.

    Raises:
        UsageError: There is no C compiler, or it fails.
    """
    try:
        return _declared(ctypes.CDLL(str(compiled(SOURCE))))
    except OSError:  # a home that is read-only or full, or a file that is not what it was
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{SOURCE.stem}.so"
            compile_c(SOURCE, path)
            return _declared(ctypes.CDLL(str(path)))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the argument types of the functions."""
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.fastdqn_open.restype = pointer
    library.fastdqn_open.argtypes = [pointer]
    library.fastdqn_close.restype = None
    library.fastdqn_close.argtypes = [pointer]
    library.fastdqn_update.restype = number
    library.fastdqn_update.argtypes = [*[pointer] * 4, number]
    library.fastdqn_act.restype = number
    library.fastdqn_act.argtypes = [*[pointer] * 4, number, real, pointer]
    return library
