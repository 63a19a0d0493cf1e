"""The C of this room, compiled for this machine by its own compiler and kept for the next run."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from fastdqn.caches import cache_dir
from fastdqn.errors import UsageError

__all__ = ["find_compiler", "load_library", "why_no_library"]

SOURCE = Path(__file__).with_name("mlp.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")
TUNINGS = (("-march=native",), ("-mcpu=native",), ())
"""What makes a compiler use all of this processor; the first that it accepts is taken."""
COMPILE_TIMEOUT_S = 120


def find_compiler() -> str | None:
    """Return the path of the C compiler: that of the environment variable CC, or a usual name."""
    asked = os.environ.get("CC", "").split()
    found = (shutil.which(name) for name in (*asked[:1], *COMPILERS))
    return next((path for path in found if path), None)


def why_no_library() -> str | None:
    """Return why the library cannot be had here, or None; compiles it if nobody has yet."""
    try:
        load_library()
    except UsageError as error:
        return error.reason
    return None


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the library, compiling it first where this machine has not got it.

    That takes about two seconds, once for each version of fastdqn, compiler and processor.

    Raises:
        UsageError: There is no C compiler, or it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise UsageError(
            "--execution native",
            "it is compiled by a C compiler, and none is on the PATH",
            "Install gcc or clang, or use --execution eager.",
        )
    name = f"mlp-{_fingerprint(compiler)}.so"
    path = cache_dir() / name
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, path)
        return _declared(ctypes.CDLL(str(path)))
    except OSError:  # a home that is read-only or full, or a file that is not what it was
        with tempfile.TemporaryDirectory() as folder:
            _compile(compiler, Path(folder) / name)
            return _declared(ctypes.CDLL(str(Path(folder) / name)))


def _fingerprint(compiler: str) -> str:
    """Return what tells apart libraries that must not be exchanged."""
    told = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    parts = (SOURCE.read_bytes(), repr((FLAGS, TUNINGS)).encode(), told, _processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """Return the processor's kind and abilities, so that no library meets one that lacks some."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return " ".join([platform.machine(), platform.processor(), *sorted(set(told))])


def _compile(compiler: str, path: Path) -> None:
    """Compile the source into `path`, whole or not at all, also where others do the same."""
    errors = ""
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".so.draft")
    os.close(handle)
    try:
        for tuning in TUNINGS:
            command = [compiler, *FLAGS, *tuning, str(SOURCE), "-o", draft, "-lm"]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S
            )
            if done.returncode == 0:
                Path(draft).replace(path)
                return
            errors = errors or done.stderr
    finally:
        Path(draft).unlink(missing_ok=True)
    first = next(iter(errors.strip().splitlines()), "it gives no reason")
    raise UsageError(
        "--execution native", f"{compiler} cannot compile it: {first}", "Use --execution eager."
    )


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes what the functions take."""
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.fastdqn_open.restype = pointer
    library.fastdqn_open.argtypes = [pointer]
    library.fastdqn_close.restype = None
    library.fastdqn_close.argtypes = [pointer]
    library.fastdqn_update.restype = number
    library.fastdqn_update.argtypes = [*[pointer] * 4, number]
    library.fastdqn_act.restype = None
    library.fastdqn_act.argtypes = [*[pointer] * 4, number, real, pointer]
    return library
