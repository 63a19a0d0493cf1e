"""A card that there is not: its kernels as C++ on one core, over tensors of the CPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fastdqn.execution.modes import mode_of
from fastdqn.learner.learner import Learner
from fastdqn.native import CudaUpdate, cuda_plan
from fastdqn.native.cuda_plan import Shape
from fastdqn.replay import row_writer
from fastdqn.toolchain.disk_cache import cache_dir, store, stored

__all__ = ["EmulatedKernels", "has_compiler", "make", "make_writer", "on_emulated_card"]

THREADS = 64
RUN = Path(__file__).with_name("run.cpp")
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
"""Added where FASTDQN_SANITIZED is set, in a process that has the sanitizers' libraries loaded."""
QUIET = ("unknown-pragmas", "unused-function", "unused-variable")
"""Warnings that say nothing of a kernel: of CUDA's pragmas, and of what a shape does not use."""


def has_compiler() -> bool:
    """Return whether kernels can be emulated here."""
    return shutil.which("g++") is not None


@functools.cache
def _library(source: Path, macros: tuple[tuple[str, str], ...]) -> ctypes.CDLL:
    """Compile kernels, or load what an equal call compiled, in this process or another one."""
    flags = (
        *FLAGS,
        *(SANITIZED if os.environ.get("FASTDQN_SANITIZED") else ()),
        *(f"-Wno-{name}" for name in QUIET),
        *(f"-D{name}={value}" for name, value in macros),
    )
    texts = (source.read_bytes(), RUN.read_bytes(), repr(flags).encode())
    name = f"emulated-{hashlib.sha256(b'|'.join(texts)).hexdigest()[:16]}.so"
    if stored(name) is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            command = ["g++", *flags, f'-DSOURCE="{source}"', str(RUN), "-o", str(path)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            store(name, path.read_bytes())
    return ctypes.CDLL(str(cache_dir() / name))


class EmulatedKernels:
    """Runs a kernel when it is launched, with few threads, since each takes its turn.

    Args:
        source: A file of CUDA C.
        macros: What it is compiled with.
        call: The struct that its kernels take.
        shared: Bytes of shared memory by kernel, beyond which nothing may be written.

    Attributes:
        launched: Names so far.
    """

    def __init__(
        self,
        source: Path,
        macros: dict[str, str],
        call: type[ctypes.Structure],
        shared: dict[str, int],
    ) -> None:
        self.library = _library(source, tuple(macros.items()))
        assert self.library.call_bytes() == ctypes.sizeof(call)
        self._threads, self._shared = int(macros["THREADS"]), shared
        self.launched: list[str] = []

    def launch(
        self, name: str, call: ctypes.Structure, blocks: int, threads: int, shared: int
    ) -> None:
        self.launched.append(name)
        kernel = ctypes.cast(getattr(self.library, name), ctypes.c_void_p)
        threads = self._threads if name in {"learn", "act"} else threads
        shared = self._shared.get(name, 0)
        wrong = self.library.launch(kernel, ctypes.byref(call), blocks, threads, shared)
        assert wrong == 0, f"{name}: {wrong} threads wait for others; -1 is memory overrun"


def make(shape: Shape, device: torch.device) -> EmulatedKernels:
    """Compile the kernels of a network for one core."""
    assert device.type == "cpu"
    small = replace(shape, threads=THREADS)
    return EmulatedKernels(cuda_plan.SOURCE, small.macros, cuda_plan.Call, small.shared_bytes)


def make_writer(macros: dict[str, str], device: torch.device) -> EmulatedKernels:
    """Compile the kernel that writes rows for one core."""
    assert device.type == "cpu"
    return EmulatedKernels(row_writer.SOURCE, macros, row_writer.Call, {})


def on_emulated_card(learner: Learner) -> Learner:
    """Let a learner on the CPU update by the kernels of the card."""
    native = learner.natively(learner.state, partial(CudaUpdate, make=make))
    assert isinstance(native, CudaUpdate)

    learner._modes["native"] = learner._steps_in(mode_of("native", learner.device), native=native)
    learner.execute_as("native")
    return learner
