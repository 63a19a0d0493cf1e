"""`fastdqn doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import multiprocessing
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from fastdqn.device import available_cores
from fastdqn.execution.modes import choose_execution
from fastdqn.foundation.host_memory import memory_limits, tightest
from fastdqn.native import why_no_library
from fastdqn.reporting.run_directory import describe_machine, versions
from fastdqn.toolchain.disk_cache import cache_dir
from fastdqn.toolchain.nvrtc import why_no_nvrtc

__all__ = ["diagnose"]

LOW_OPEN_FILES = 1024
LOW_SHARED_BYTES = 64 * 2**20


def diagnose() -> list[tuple[str, str, bool]]:
    """Inspect the machine.

    Returns:
        Rows of (what, finding, whether it is fine).
    """
    return [*_software(), *_devices(), *_limits()]


def _software() -> Iterator[tuple[str, str, bool]]:
    for name, found in versions().items():
        yield name, found or "not installed", found is not None
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    missing = "none: --execution compile cannot run on the CPU"
    yield "C++ compiler", compiler or missing, compiler is not None
    why_not = why_no_library()
    yield "C library", why_not or f"compiled, in {cache_dir()}", why_not is None


def _devices() -> Iterator[tuple[str, str, bool]]:
    yield "machine", describe_machine(), True
    yield "cores", str(available_cores()), True
    limit = tightest(memory_limits())
    yield "memory", f"{limit.free / 2**30:.1f} GiB available ({limit.name})", True
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    yield "CUDA", names or "no device", True
    why_no_kernels = why_no_nvrtc()
    if count:
        message = why_no_kernels or f"compiled when needed, kept in {cache_dir()}"
        yield "CUDA kernels", message, why_no_kernels is None
    mps = torch.backends.mps.is_available()
    yield "MPS", "available; small networks are faster on the CPU" if mps else "no device", True
    device = torch.device("cuda" if count else "cpu")
    why_not_native = why_no_nvrtc if count else why_no_library
    mode, reason = choose_execution("auto", device, 10**6, why_not_native=why_not_native)
    yield "--execution auto", f"{mode} for a long run on {device} ({reason})", True


def _limits() -> Iterator[tuple[str, str, bool]]:
    shared = Path("/dev/shm")
    if shared.exists():
        free = shutil.disk_usage(shared).free
        yield "shared memory", f"{free / 2**30:.1f} GiB free", free > LOW_SHARED_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield "open files", f"{soft} (hard limit {hard})", soft >= LOW_OPEN_FILES
    yield "start methods", ", ".join(multiprocessing.get_all_start_methods()), True
