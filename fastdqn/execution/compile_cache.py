"""The disk cache of compiled steps: libraries, named by a hash of what they compute.

They lie in the folder `fastdqn` of PyTorch's own compile cache, `TORCHINDUCTOR_CACHE_DIR` or
`torchinductor_<user>` in the folder for temporary files. It may be deleted; then
steps are compiled again. The name is a hash of the operations, of the tensors' shapes and
of whatever else decides about the machine code, so that equal steps of any run hit, and a changed
source, version or machine misses.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastdqn.execution.trace import Trace

__all__ = ["Library", "Numerics", "library_path", "load_library"]

FORMAT = 1
"""Of the libraries; a larger number forgets older ones."""
DECIDING = ("TORCHINDUCTOR_", "AOT_INDUCTOR_", "TORCH_COMPILE_", "CXX", "CFLAGS", "TRITON_")
"""Environment variables that change what PyTorch compiles begin so."""
FOLDERS = ("_DIR", "_THREADS")
"""But those that end so change only where or how fast."""

Library = Callable[[list[Tensor]], object]
"""Runs on the tensors of a trace, in its order; empties the list."""


class Numerics(NamedTuple):
    """How PyTorch computes in this process; compiled into machine code.

    Attributes:
        threads: Intra-op threads.
        precision: Of float32 products, as in `torch.set_float32_matmul_precision`.
        deterministic: As in `torch.use_deterministic_algorithms`.
    """

    threads: int
    precision: str
    deterministic: bool

    @classmethod
    def current(cls) -> Numerics:
        """Return those of this process."""
        return cls(
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        )

    def apply(self) -> None:
        """Let this process compute so."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(self.deterministic)


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
        _processor(),
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


@cache
def _processor() -> tuple[str, ...]:
    """Return what decides which instructions may be used."""
    cpuinfo = Path("/proc/cpuinfo")
    known: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().partition("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            known[key.strip()] = value.strip()
    kind = platform.machine(), platform.system(), platform.processor()
    names = ("model name", "flags", "Features", "isa")
    return (*kind, torch.backends.cpu.get_cpu_capability(), *(known.get(n, "") for n in names))


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
