"""Files of tensors are those of the safetensors format, in both directions."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load, save, save_file

from fastdqn.checkpoint.tensor_file import DTYPES, TensorFile, contents
from fastdqn.errors import CheckpointError
from tests.ring_histories import same

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def tensors() -> dict[str, Tensor]:
    """One of every dtype and of odd sizes, so that few would be aligned by chance."""
    found = {
        name: (torch.arange(5 + place) % 2).to(dtype)
        for place, (name, dtype) in enumerate(DTYPES.items())
    }
    return found | {"empty": torch.empty(0, 3), "scalar": torch.tensor(7), "a/b": torch.ones(2, 2)}


def read(content: bytes) -> dict[str, Tensor]:
    stream = io.BytesIO(content)

    def fill(part: memoryview) -> bool:
        return stream.readinto(part) == len(part)

    return TensorFile(fill, len(content), "it").read()


def test_what_is_written_is_read_by_the_library() -> None:
    assert same(load(b"".join(contents(tensors()))), tensors())


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    assert same(read(save(tensors())), tensors())
    save_file(tensors(), tmp_path / "x", metadata={"format": "pt"})
    assert same(read((tmp_path / "x").read_bytes()), tensors())


def test_what_is_written_is_read_back() -> None:
    assert same(read(b"".join(contents(tensors()))), tensors())
    assert read(b"".join(contents({}))) == {}


def test_tensors_that_are_not_aligned_are_read() -> None:
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    header += b'"b":{"dtype":"F64","shape":[1],"data_offsets":[1,9]}}'
    data = b"\x03" + torch.tensor([2.5], dtype=torch.float64).numpy().tobytes()
    found = read(len(header).to_bytes(8, "little") + header + data)
    assert found["a"].tolist() == [3]
    assert found["b"].tolist() == [2.5]


def test_the_data_are_allocated_once_the_header_was_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def allocate(*args: object, **kwargs: object) -> None:
        raise AssertionError("memory was allocated")

    monkeypatch.setattr(torch, "empty", allocate)
    header = b'{"a":{"dtype":"U8","shape":[1000],"data_offsets":[0,1000]}}'
    with pytest.raises(CheckpointError, match="its tensors take 1,000 bytes, and it has 1"):
        read(len(header).to_bytes(8, "little") + header + b"\x00")
