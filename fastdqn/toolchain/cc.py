"""Compiles C for this machine with its own compiler, and caches the library on disk.

PyTorch is not needed here: a command compiles while PyTorch is being loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from fastdqn.errors import UsageError
from fastdqn.toolchain.disk_cache import cache_dir, processor

__all__ = ["MLP", "begin_to_compile", "compile_c", "compiled", "find_compiler", "loaded"]

PACKAGE = Path(__file__).parents[1]
MLP = PACKAGE / "native" / "mlp.c"
"""The C of the room `native`."""
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")
TUNINGS = (("-march=native",), ("-mcpu=native",), ())
"""Options that make a compiler use all of this processor; the first accepted one is taken."""
COMPILE_TIMEOUT_S = 120
_ONE_AT_A_TIME = threading.Lock()


def find_compiler() -> str:
    """Return the path of the C compiler: that of the environment variable CC, or a usual name.

    Raises:
        UsageError: There is none.
    """
    asked = os.environ.get("CC", "").split()
    for name in (*asked[:1], *COMPILERS):
        if path := shutil.which(name):
            return path
    raise UsageError(
        "--execution native",
        "it is compiled by a C compiler, and none is on the PATH",
        "Install gcc or clang, or use --execution eager.",
    )


def begin_to_compile(source: Path) -> None:
    """Compile in a thread, so that `compiled` finds its library; `compiled` raises the errors."""

    def work() -> None:
        with contextlib.suppress(UsageError, OSError, subprocess.SubprocessError):
            compiled(source)

    threading.Thread(target=work, name=f"compile {source.name}").start()


def compiled(source: Path) -> Path:
    """Return the library of a source; compile it first if the cache lacks it.

    That takes about two seconds, once for each version of fastdqn, compiler and processor.

    Raises:
        UsageError: There is no C compiler, or it fails.
        OSError: The cache cannot be written.
    """
    with _ONE_AT_A_TIME:
        path = cache_dir() / f"{source.stem}-{_fingerprint(source, find_compiler())}.so"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            compile_c(source, path)
    return path


def loaded(source: Path) -> ctypes.CDLL:
    """Load the library of a source, compiling it first where this machine has not got it.

    Raises:
        UsageError: There is no C compiler, or it fails.
    """
    try:
        return ctypes.CDLL(str(compiled(source)))
    except OSError:  # a home that is read-only or full, or a file that is not what it was
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{source.stem}.so"
            compile_c(source, path)
            return ctypes.CDLL(str(path))


def _fingerprint(source: Path, compiler: str) -> str:
    """Return what identifies a library: source, compiler, options and processor."""
    message = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    texts = [path.read_bytes() for path in (source, *sorted(PACKAGE.glob("*/*.h")))]
    parts = (*texts, repr((FLAGS, TUNINGS)).encode(), message, processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def compile_c(source: Path, path: Path) -> None:
    """Compile a source into `path`, atomically, also while other processes do the same.

    Raises:
        UsageError: There is no C compiler, or it fails.
        OSError: The folder of `path` cannot be written.
    """
    compiler, errors = find_compiler(), ""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        for tuning in TUNINGS:
            command = [compiler, *FLAGS, *tuning, str(source), "-o", str(draft), "-lm"]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S
            )
            if done.returncode == 0:
                draft.replace(path)
                return
            errors = errors or done.stderr
    first = next(iter(errors.strip().splitlines()), "it gives no reason")
    raise UsageError(
        "--execution native", f"{compiler} cannot compile it: {first}", "Use --execution eager."
    )
