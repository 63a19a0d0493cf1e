"""What the kernels of mlp.cu take, and the memory that they work in."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdqn.native.c_structs import ROW_FIELDS
from fastdqn.native.cuda_config import TILE_THREADS, Shape, fitted, shared_memory_of
from fastdqn.toolchain.nvrtc import Kernels, Nvrtc

__all__ = ["GATHERED", "SOURCE", "Call", "CudaPlan", "Make", "on_the_card"]

SOURCE = Path(__file__).with_name("mlp.cu")
KERNELS = ("prepare", "learn", "gradients", "commit", "act")
GATHERED = TILE_THREADS // 32
"""Rows that a block of `prepare` gathers."""

_pointers = ctypes.c_void_p
_numbers = ctypes.c_int64


class Call(ctypes.Structure):
    """`Call` of mlp.cu, field by field."""

    _fields_ = (
        *((name, _pointers) for name in ("online", "bootstrap")),
        ("slots", _pointers * 3),
        *((name, _pointers) for name in ("updates", "skipped", "learning_rate", "metrics")),
        *((name, _pointers) for name in ("frames", "next_index", "action", "reward")),
        *((name, _pointers) for name in ("terminated", "masks", *ROW_FIELDS)),
        *((name, _numbers) for name in ("num_transitions", "num_frames")),
        *((name, _pointers) for name in ("numbers", "order", "first", "count")),
        *((name, _numbers) for name in ("order_size", "newest")),
        ("turned", _pointers * 2),
        ("given", _pointers * 2),
        *((name, _pointers) for name in ("rewards", "discounts", "weights", "actions", "next")),
        *((name, _pointers) for name in ("units", "slopes")),
        *((name, _pointers) for name in ("by_row", "gradient", "squares")),
        *((name, ctypes.c_float) for name in ("scale", "gamma", "tau", "clip_norm", "clip_value")),
        *((name, ctypes.c_float) for name in ("beta1", "beta2", "rest1", "rest2", "eps")),
        ("weight_decay", ctypes.c_float),
        *((name, _numbers) for name in ("offset", "target_period", "target_phase")),
        *((name, _numbers) for name in ("num_rows", "update")),
        *((name, _pointers) for name in ("epsilon", "uniform")),
        ("uniform_row", _numbers),
        ("chosen", _pointers),
    )


Make = Callable[[Shape, torch.device], Kernels]
"""Compiles the kernels for a shape."""


def on_the_card(shape: Shape, device: torch.device) -> Kernels:
    """Compile the kernels for a card.

    Raises:
        KernelError: They cannot be, or need more shared memory than the card has.
    """
    kernels = Nvrtc(SOURCE, shape.macros, KERNELS, device)
    for name, shared in shape.shared_bytes.items():
        kernels.allow(name, shared)
    return kernels


class CudaPlan:
    """Compiled kernels with the memory that they work in; it stays where it is, for graphs.

    Args:
        shape: What they are compiled for.
        device: Where everything lives.
        make: Compiles.

    Raises:
        KernelError: See `on_the_card` and `fitted`.

    Attributes:
        shape: What they are compiled for, with as many rows and threads as fit.
    """

    def __init__(self, shape: Shape, device: torch.device, make: Make = on_the_card) -> None:
        self.shape = shape = fitted(shape, shared_memory_of(device))
        self._device, self._shared = device, shape.shared_bytes
        self._kernels = make(shape, device)
        self._kept: list[Tensor] = []

    def launch(self, name: str, call: Call, blocks: int) -> None:
        """Queue a kernel."""
        threads = self.shape.threads if name in {"learn", "act"} else TILE_THREADS
        self._kernels.launch(name, call, blocks, threads, self._shared[name])

    @cached_property
    def scratch(self) -> Mapping[str, Any]:
        """Fields of `Call` for updates: the addresses of memory of their own."""
        shape = self.shape
        rows, units = shape.together * shape.batch, sum(shape.sizes)
        num_parameters = sum((k + 1) * n for k, n in pairwise(shape.sizes))
        return {
            "turned": (_pointers * 2)(self._new(shape.turned), self._new(shape.turned)),
            "given": (_pointers * 2)(*(self._new(rows * shape.sizes[0]) for _ in range(2))),
            **{name: self._new(rows) for name in ("rewards", "discounts", "weights")},
            "actions": self._new(rows, torch.int32),
            "next": self._new(rows, torch.int64),
            "units": self._new(shape.batch * units),
            "slopes": self._new(shape.batch * units),
            "by_row": self._new(3 * shape.batch),
            "gradient": self._new(num_parameters),
            "squares": self._new(shape.tiles),
        }

    @cached_property
    def turned(self) -> Mapping[str, Any]:
        """Fields of `Call` for acting."""
        return {"turned": (_pointers * 2)(self._new(self.shape.turned), None)}

    def _new(self, count: int, dtype: torch.dtype = torch.float32) -> int:
        memory = torch.zeros(count, dtype=dtype, device=self._device)
        self._kept.append(memory)
        return memory.data_ptr()
