"""Tensors as a safetensors file: 8 bytes with the size of a header, the header in JSON, the data.

Written as the format has it. Read strictly, and by this module alone: the header must describe the
file to the last byte before anything is allocated.

Source:
    https://huggingface.co/docs/safetensors, section Format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdqn.errors import CheckpointError
from fastdqn.foundation.saved_files import parse_json

__all__ = ["NAMES", "TensorFile", "brief", "bytes_of", "contents", "in_order"]

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Fill = Callable[[memoryview], bool]
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 4 * 2**20
MAX_NAME, MAX_DIMENSIONS, MAX_ELEMENTS, MAX_NUMBER = 1_000, 64, 2**62, 2**64


def bytes_of(tensor: Tensor) -> int:
    """Return how many bytes the elements of a tensor take."""
    return tensor.numel() * tensor.element_size()


def in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return tensors as a file has them: large elements first, so that all are aligned."""
    return sorted(tensors.items(), key=lambda named: (-named[1].element_size(), named[0]))


def contents(tensors: Mapping[str, Tensor]) -> list[memoryview]:
    """Return the contents of a file in parts, without a copy.

    Args:
        tensors: In the memory of the host, contiguous, by name.
    """
    header, start = {}, 0
    for name, tensor in in_order(tensors):
        stop = start + bytes_of(tensor)
        shape = list(tensor.shape)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    head = len(text).to_bytes(LENGTH_BYTES, "little") + text
    return [memoryview(head), *(_raw(tensor) for _, tensor in in_order(tensors))]


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().reshape(-1)
    if flat.numel() < 2:  # its stride may be 0, which no view as bytes may have
        flat = torch.empty_strided(flat.shape, (1,), dtype=flat.dtype).copy_(flat)
    return flat.view(torch.uint8).numpy().data


def brief(value: object) -> str:
    """Return a value of a file for a message: short, printable, and however deeply it nests."""
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value[:8]))}{', ...' if len(value) > 8 else ''}]"
    return _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, list | dict):
        return "a mapping" if isinstance(value, dict) else "a list"
    if type(value) is int and abs(value) > MAX_NUMBER:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class _Field:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """A file of tensors, whose header was read and describes all of it.

    Args:
        fill: Fills memory with what comes next in the file; returns False where it ends first.
        size: Its bytes.
        where: Its name in messages.

    Attributes:
        data_bytes: All bytes behind the header.

    Raises:
        CheckpointError: The header is damaged, or describes something else than the file.
        OSError: The file cannot be read.
    """

    def __init__(self, fill: Fill, size: int, where: str) -> None:
        self._fill, self._where = fill, where
        length = bytearray(LENGTH_BYTES)
        if size < LENGTH_BYTES or not fill(memoryview(length)):
            raise self._refusal("it ends within its first 8 bytes")
        header_bytes = int.from_bytes(length, "little")
        self.data_bytes = size - LENGTH_BYTES - header_bytes
        if self.data_bytes < 0 or header_bytes > MAX_HEADER_BYTES:
            raise self._refusal(f"its header takes {header_bytes:,} bytes of {size:,}")
        header = bytearray(header_bytes)
        if not fill(memoryview(header)):
            raise self._refusal("it ends within its header")
        self._fields = sorted(
            self._parsed(bytes(header)), key=lambda field: (field.start, field.stop)
        )
        self._refuse_gaps()

    def read(self, memory: Tensor | None = None) -> dict[str, Tensor]:
        """Read the tensors, as views of one memory.

        Args:
            memory: [data_bytes or more] uint8 on the host, written; None allocates it.

        Raises:
            CheckpointError: The file ends early, or a flag is neither 0 nor 1.
        """
        memory = torch.empty(self.data_bytes, dtype=torch.uint8) if memory is None else memory
        memory = memory[: self.data_bytes]
        if not self._fill(memory.numpy().data):
            raise self._refusal("it ends early")
        return {field.name: self._tensor(field, memory) for field in self._fields}

    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the dtypes and shapes of the tensors by name."""
        return {field.name: (field.dtype, field.shape) for field in self._fields}

    def _tensor(self, field: _Field, memory: Tensor) -> Tensor:
        raw = memory[field.start : field.stop]
        if field.dtype == torch.bool and raw.numel() and int(raw.max()) > 1:
            raise self._refusal(f"{field.name[:60]!r} holds flags that are neither 0 nor 1")
        if field.start % field.dtype.itemsize:
            raw = raw.clone()  # of another writer: not aligned
        return raw.view(field.dtype).reshape(field.shape)

    def _parsed(self, header: bytes) -> Iterator[_Field]:
        try:
            described = parse_json(header)
        except ValueError as error:
            raise self._refusal(f"its header is no JSON: {error}") from None
        if not isinstance(described, dict):
            raise self._refusal("its header is no mapping")
        for name, about in described.items():
            if name != "__metadata__":
                yield self._field(name, about)

    def _field(self, name: str, about: Any) -> _Field:
        if len(name) > MAX_NAME or not name.isprintable():
            raise self._refusal(f"it holds a tensor of the name {brief(name)}")
        keys = {"dtype", "shape", "data_offsets"}
        if not isinstance(about, dict) or about.keys() != keys:
            raise self._refusal(f"{brief(name)} is not described by {sorted(keys)}")
        shape, offsets, known = about["shape"], about["data_offsets"], about["dtype"]
        dtype = DTYPES.get(known) if isinstance(known, str) else None
        if dtype is None:
            raise self._refusal(f"{brief(name)} is of dtype {brief(known)}")
        if not _are_sizes(shape, MAX_DIMENSIONS) or math.prod(map(_one, shape)) > MAX_ELEMENTS:
            raise self._refusal(f"{brief(name)} is of shape {brief(shape)}")
        if not _are_sizes(offsets, 2) or len(offsets) != 2:
            raise self._refusal(f"{brief(name)} lies at {brief(offsets)}")
        return _Field(name, dtype, tuple(shape), *offsets)

    def _refuse_gaps(self) -> None:
        """Refuse tensors that overlap, leave gaps, or are not as long as their shapes say."""
        end = 0
        for field in self._fields:
            size = math.prod(field.shape) * field.dtype.itemsize
            if field.start != end or field.stop - field.start != size:
                at = f"bytes {field.start:,} to {field.stop:,}"
                raise self._refusal(f"{field.name[:60]!r} takes {size:,} bytes, and lies at {at}")
            end = field.stop
        if end != self.data_bytes:
            raise self._refusal(f"its tensors take {end:,} bytes, and it has {self.data_bytes:,}")

    def _refusal(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._where} cannot be read: {what}")


def _one(size: int) -> int:
    return max(size, 1)


def _are_sizes(values: Any, most: int) -> bool:
    fine = isinstance(values, list) and len(values) <= most
    return fine and all(type(value) is int and 0 <= value <= MAX_ELEMENTS for value in values)
