"""Compiles ahead: a library for each set of shapes, on disk already or made by another process.

Libraries lie in the folder `fastdqn` of PyTorch's own compile cache, `TORCHINDUCTOR_CACHE_DIR` or
`torchinductor_<user>` in the folder for temporary files. It may be deleted; then
steps are compiled again. The name is a hash of the operations, of the tensors' shapes and
of whatever else decides about the machine code, so that equal steps of any run hit, and a changed
source, version or machine misses.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastdqn.execution.compiler import AHEAD, BACKGROUND, Compiler, Numerics, Request
from fastdqn.execution.in_process import InProcess
from fastdqn.execution.step import PureStep
from fastdqn.execution.trace import CompileError, Source, TensorSpec, Trace
from fastdqn.toolchain.disk_cache import processor

__all__ = ["AheadOfTime", "library_path", "load_library"]

FORMAT = 1
"""Of the libraries; a larger number forgets older ones."""
DECIDING = ("TORCHINDUCTOR_", "AOT_INDUCTOR_", "TORCH_COMPILE_", "CXX", "CFLAGS", "TRITON_")
"""Environment variables that change what PyTorch compiles begin so."""
FOLDERS = ("_DIR", "_THREADS")
"""But those that end so change only where or how fast."""

Library = Callable[[list[Tensor]], object]
"""Runs on the tensors of a trace, in its order; empties the list."""


class AheadOfTime:
    """Loads libraries within milliseconds, or has a process beside this one make them.

    Calls that wait are compiled in this process where no library can be made.

    Args:
        device: Where tensors live.
        background: Whether calls go on while it compiles.
        process: Makes what is not on disk; None is the one that suits `background`.

    Attributes:
        loaded: Libraries that were on disk already.
        made: Libraries that had to be compiled.
        fallback: Why this process compiles instead, or None.
    """

    repeats_rows = True
    """A form is made for each number of rows."""

    def __init__(
        self, device: torch.device, *, background: bool = False, process: Compiler | None = None
    ) -> None:
        self._device, self.background = device, background
        self._process = process or (BACKGROUND if background else AHEAD)
        self._waiting: set[Future[PureStep]] = set()
        self.loaded = self.made = 0
        self.fallback: str | None = None

    def submit(
        self, traced: Callable[[], Trace], tensors: Sequence[Tensor], num_rows: int
    ) -> Future[PureStep]:
        """Ask for the form of a step; never waits for a compiler that works beside the calls.

        Args:
            traced: Traces the step, of a single row if it goes by row; may take a second.
            tensors: Such as those that the form is called with; nothing is read.
            num_rows: How often the step is repeated over rows of its last tensor; 0 is not at all.

        Returns:
            The form, or why there is none; done already if the library is on disk.

        Raises:
            UntraceableError: The step is not one fixed list of operations.
        """
        step = traced()
        found = self._submit(step, tensors, num_rows)
        if self.background:
            return found
        try:
            found.result()
        except CompileError as error:
            self.fallback = str(error)
            found = Future()
            found.set_result(_inside(InProcess(self._device), step, tensors, num_rows))
        finally:
            self.close()  # cancels the request of an interrupted wait
        return found

    def _submit(self, traced: Trace, tensors: Sequence[Tensor], num_rows: int) -> Future[PureStep]:
        path, found = library_path(traced, num_rows), Future[PureStep]()
        form = self._form_at(path, traced)
        if form is not None:
            self.loaded += 1
            found.set_result(form)
            return found
        last, specs = len(tensors) - 1, list(traced.specs)
        if num_rows:
            specs[last] = TensorSpec.of(tensors[-1])
        numerics = Numerics.current()
        source = Source.of(traced.graph)
        request = Request(source, tuple(specs), num_rows, last, numerics, path)
        found = self._process.submit(request, partial(self._made, path, traced))
        self._waiting.add(found)
        found.add_done_callback(self._waiting.discard)
        return found

    def _made(self, path: Path, traced: Trace) -> PureStep:
        form = self._form_at(path, traced)
        if form is None:
            raise CompileError(f"what was compiled cannot be loaded: {path.name}")
        self.made += 1
        return form

    def _form_at(self, path: Path, traced: Trace) -> PureStep | None:
        library, constants = load_library(path, self._device), traced.constants
        if library is None:
            return None

        def run(*tensors: Tensor) -> None:
            library([*tensors, *constants])

        return run

    def close(self) -> None:
        """Cancel what is pending."""
        for future in list(self._waiting):
            self._process.withdraw(future)


def _inside(
    compiler: InProcess, traced: Trace, tensors: Sequence[Tensor], num_rows: int
) -> PureStep:
    """Compile in this process; a step by row is compiled for a single row."""
    if not num_rows:
        return compiler.compile(traced, tensors)
    form = compiler.compile(traced, (*tensors[:-1], tensors[-1][:1]))

    def run(*tensors: Tensor) -> None:
        *others, rows = tensors
        for row in range(len(rows)):
            form(*others, rows[row : row + 1])

    return run


# The libraries on disk


def library_path(trace: Trace, num_rows: int) -> Path:
    """Return where the library of a step lies, or will lie.

    Args:
        trace: The step.
        num_rows: How often it is repeated over rows of its last argument; 0 is not at all.
    """
    device = torch.device(trace.specs[0].device)
    parts = (
        FORMAT,
        trace.graph.code,
        trace.specs,
        num_rows,
        Numerics.current(),
        (torch.__version__, torch.version.git_version, torch.version.cuda, torch.version.hip),
        (processor(), torch.backends.cpu.get_cpu_capability()),
        torch.cuda.get_device_properties(device) if device.type == "cuda" else None,
        sorted(filter(_decides, os.environ.items())),
    )
    name = hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:40]
    return Path(cache_dir()) / "fastdqn" / f"{name}.pt2"


def cache_dir() -> str:
    """Return PyTorch's folder for what it compiles."""
    from torch._inductor.runtime import cache_dir_utils  # noqa: PLC0415 - takes 1.5 s to load

    return cache_dir_utils.cache_dir()


def _decides(variable: tuple[str, str]) -> bool:
    return variable[0].startswith(DECIDING) and not variable[0].endswith(FOLDERS)


def load_library(path: Path, device: torch.device) -> Library | None:
    """Load a library within milliseconds; a broken file is deleted.

    Returns:
        The library, or None where there is no whole one.
    """
    if not path.exists():
        return None
    index = -1 if device.index is None else device.index
    try:
        # What torch._inductor.aoti_load_package does, but for its check, with a C++ compiler and
        # for a second, that this is the processor of the name: it is.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, index)
    except RuntimeError:
        path.unlink(missing_ok=True)
        return None
    run: Library = loader.boxed_run
    return run
