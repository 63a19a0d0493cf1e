"""What the host does for the card's kernels: compile once, store, report errors."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdqn.toolchain import nvrtc
from fastdqn.toolchain.disk_cache import cache_dir, store, stored
from fastdqn.toolchain.nvrtc import KernelError, why_no_nvrtc


class FakeNvrtc:
    """A compiler that counts, and refuses what holds `wrong`."""

    def __init__(self, version: int = 13) -> None:
        self.version, self.compiled = version, 0
        self.options: list[bytes] = []
        self.text = b""

    def nvrtcVersion(self, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = self.version, 0
        return 0

    def nvrtcCreateProgram(self, program: Any, text: bytes, *_given: Any) -> int:
        self.text = text
        return 0

    def nvrtcCompileProgram(self, program: Any, count: int, options: Any) -> int:
        self.compiled += 1
        self.options = list(options)
        return 6 if b"wrong" in self.text else 0

    def nvrtcGetProgramLogSize(self, program: Any, size: Any) -> None:
        size._obj.value = 30

    def nvrtcGetProgramLog(self, program: Any, log: Any) -> None:
        log.value = b"a.cu(3): error: so wrong\nmore"

    def nvrtcGetCUBINSize(self, program: Any, size: Any) -> None:
        size._obj.value = 7

    def nvrtcGetCUBIN(self, program: Any, code: Any) -> None:
        ctypes.memmove(code, b"co\0de" + b"%02d" % self.compiled, 7)

    def nvrtcDestroyProgram(self, program: Any) -> None:
        return


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvrtc:
    """A compiler in the place of PyTorch's, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake = FakeNvrtc()
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: fake)
    return fake


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.cu"
    path.write_text("right")
    return path


def test_equal_kernels_are_compiled_once_and_found_by_the_next_run(
    compiler: FakeNvrtc, source: Path
) -> None:
    for _ in range(2):
        assert nvrtc._found(source, ["-DA=1"]) == b"co\0de01"
    assert nvrtc._found(source, ["-DA=2"]) == b"co\0de02"
    source.write_text("right again")
    assert nvrtc._found(source, ["-DA=2"]) == b"co\0de03"
    compiler.version = 14
    assert nvrtc._found(source, ["-DA=2"]) == b"co\0de04"
    assert compiler.options == [b"-DA=2"]
    assert len(list(cache_dir().iterdir())) == 4


def test_the_first_error_of_the_compiler_is_reported_and_nothing_is_stored(
    compiler: FakeNvrtc, source: Path
) -> None:
    source.write_text("wrong")
    with pytest.raises(KernelError, match=r"NVRTC cannot compile it: a.cu\(3\): error: so wrong$"):
        nvrtc._found(source, [])
    assert not cache_dir().exists()


def test_a_cache_that_cannot_be_written_costs_a_compile_and_nothing_else(
    compiler: FakeNvrtc, source: Path
) -> None:
    cache_dir().parent.mkdir(parents=True, exist_ok=True)
    cache_dir().write_text("a file in the place of a folder")
    for number in (1, 2):
        assert nvrtc._found(source, []) == b"co\0de%02d" % number


def test_what_is_kept_is_whole_and_found_by_its_name(compiler: FakeNvrtc) -> None:
    assert stored("one") is None
    store("one", b"content")
    assert stored("one") == b"content"
    assert [path.name for path in cache_dir().iterdir()] == ["one"]


def test_a_pytorch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    uncached: Any = why_no_nvrtc.__wrapped__
    monkeypatch.setattr(torch.version, "cuda", None)
    assert uncached() == "this PyTorch has no CUDA compiler"
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def missing() -> None:
        raise OSError("libnvrtc.so.13: no such file")

    monkeypatch.setattr(nvrtc, "_nvrtc", missing)
    assert uncached() == ("PyTorch's CUDA compiler cannot be loaded: libnvrtc.so.13: no such file")
