"""Compiles CUDA C for this card with the compiler that comes with PyTorch, and launches kernels.

No toolkit is needed: NVRTC and the driver are libraries that PyTorch has loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from fastdqn.toolchain.disk_cache import store, stored

__all__ = ["FREE_SHARED", "KernelError", "Kernels", "Nvrtc", "why_no_nvrtc"]

OPTIONS = ("-std=c++17", "-default-device")
MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""
FREE_SHARED = 48 * 1024
"""Bytes of shared memory that a kernel may have without asking."""


class KernelError(RuntimeError):
    """A kernel could not be compiled or launched; the message says why."""


class Kernels(Protocol):
    """Kernels that all take one struct, compiled with certain macros defined."""

    def launch(
        self, name: str, call: ctypes.Structure, blocks: int, threads: int, shared: int
    ) -> None:
        """Queue a kernel; `call` is copied."""


@functools.cache
def why_no_nvrtc() -> str | None:
    """Return why CUDA C cannot be compiled here, or None."""
    if sys.platform != "linux" or torch.version.cuda is None:
        return "this PyTorch has no CUDA compiler"
    try:
        _nvrtc()
    except OSError as error:
        return f"PyTorch's CUDA compiler cannot be loaded: {error}"
    return None


class Nvrtc:
    """Kernels of one source, compiled for a card within a second, and cached on disk.

    Args:
        source: A file of CUDA C; its kernels are `extern "C"`.
        macros: Values by name.
        names: Kernels that will be launched.
        device: The card.

    Raises:
        KernelError: The compiler's first error.
    """

    def __init__(
        self, source: Path, macros: dict[str, str], names: Sequence[str], device: torch.device
    ) -> None:
        self._device = device
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # the context exists from now on
            major, minor = torch.cuda.get_device_capability()
            given = [f"-D{name}={value}" for name, value in macros.items()]
            code = _found(source, [*OPTIONS, f"--gpu-architecture=sm_{major}{minor}", *given])
            self._module = ctypes.c_void_p()
            _check(_cuda().cuModuleLoadData(ctypes.byref(self._module), code), "load the kernels")
            self._functions = {name: self._function(name) for name in names}

    def _function(self, name: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        found = _cuda().cuModuleGetFunction(ctypes.byref(function), self._module, name.encode())
        _check(found, f"find {name}")
        return function

    def allow(self, name: str, shared: int) -> None:
        """Allow a kernel so many bytes of shared memory.

        Raises:
            KernelError: The card has fewer.
        """
        if shared > FREE_SHARED:
            function = self._functions[name]
            given = _cuda().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared)
            _check(given, f"give {name} {shared:,} bytes of shared memory")

    def launch(
        self, name: str, call: ctypes.Structure, blocks: int, threads: int, shared: int
    ) -> None:
        """Queue a kernel on the current stream. Hot path; never waits.

        Raises:
            KernelError: The driver refuses it.
        """
        given = (ctypes.c_void_p * 1)(ctypes.addressof(call))
        sizes = (blocks, 1, 1, threads, 1, 1, shared)
        with torch.cuda.device(self._device):  # the driver launches in the current context
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            queued = _cuda().cuLaunchKernel(self._functions[name], *sizes, stream, given, None)
        if queued:
            _check(queued, f"launch {name}")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    assert torch.version.cuda is not None
    major = torch.version.cuda.partition(".")[0]
    try:
        return ctypes.CDLL(f"libnvrtc.so.{major}")
    except OSError:
        for folder in map(Path, sys.path):  # as NVIDIA's wheels lay it out
            for path in folder.glob(f"nvidia/*/lib/libnvrtc.so.{major}"):
                return ctypes.CDLL(str(path))
        raise


@functools.cache
def _cuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _found(source: Path, options: Sequence[str]) -> bytes:
    """Return machine code, from the cache if it was compiled before.

    Raises:
        KernelError: The compiler's first error.
    """
    numbers = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(*map(ctypes.byref, numbers))
    parts = source.read_bytes(), repr(options).encode(), repr([n.value for n in numbers]).encode()
    name = f"{source.stem}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:32]}.cubin"
    code = stored(name)
    if code is None:
        code = _compiled(source, options)
        store(name, code)
    return code


def _compiled(source: Path, options: Sequence[str]) -> bytes:
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    text, name = source.read_bytes(), source.name.encode()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None):
        raise KernelError("NVRTC takes no program")
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), given)
        if failed:
            log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            first = log.decode(errors="replace").strip("\0\n ").partition("\n")[0]
            raise KernelError(f"NVRTC cannot compile it: {first or f'error {failed}'}")
        return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(ask_size: Any, ask: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    ask_size(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    ask(program, text)
    return text.raw


def _check(answer: int, what: str) -> None:
    if not answer:
        return
    message = ctypes.c_char_p()
    _cuda().cuGetErrorString(answer, ctypes.byref(message))
    reason = message.value.decode() if message.value else f"error {answer}"
    raise KernelError(f"the driver cannot {what}: {reason}")
