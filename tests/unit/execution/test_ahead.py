"""Where a library lies: in the same place for equal steps, elsewhere for any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdqn.execution.ahead import library_path
from fastdqn.execution.compiler import Numerics
from fastdqn.execution.trace import trace


def path(
    factor: float = 2.0, size: int = 3, rows: int = 0, dtype: torch.dtype | None = None
) -> Path:
    def step(x: Tensor) -> None:
        x.mul_(factor)

    return library_path(trace(step, (torch.ones(size, dtype=dtype),)), rows)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    before = Numerics.current()
    yield tmp_path
    before.apply()


def test_it_lies_in_the_cache_of_pytorch(folder: Path) -> None:
    assert path().parent == folder / "fastdqn"
    assert path().name == path().name


def test_whatever_decides_about_the_machine_code_is_in_the_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [path(), path(3.0), path(size=4), path(rows=2), path(dtype=torch.float64)]
    now = Numerics.current()
    for numerics in (
        now._replace(threads=now.threads + 1),
        now._replace(precision="medium"),
        now._replace(deterministic=True),
    ):
        numerics.apply()
        names.append(path())
    now.apply()
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")  # only how fast
    assert path() == names[0]
    monkeypatch.setenv("TORCHINDUCTOR_MAX_AUTOTUNE", "1")
    names.append(path())
    monkeypatch.setattr("torch.__version__", "0.0")
    names.append(path())
    assert len(set(names)) == len(names)
