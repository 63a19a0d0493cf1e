"""The kernels of mlp.cu: what they are compiled for, what they take, the memory they work in."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdqn.native.c_library import DTYPES, RING_FIELDS, ROW_FIELDS, TARGETS, members
from fastdqn.networks.mlp import MLP
from fastdqn.toolchain.nvrtc import FREE_SHARED, KernelError, Kernels, Nvrtc

__all__ = [
    "GATHERED",
    "SOURCE",
    "Call",
    "CudaPlan",
    "Make",
    "Shape",
    "fitted",
    "on_the_card",
    "why_not_on",
]

SOURCE = Path(__file__).with_name("mlp.cu")
KERNELS = ("prepare", "learn", "gradients", "commit", "act")
TILE, TILE_THREADS, MOST_GROUPS = 32, 256, 32
"""As in mlp.cu."""
GATHERED = TILE_THREADS // 32
"""Rows that a block of `prepare` gathers."""
MAX_UPDATES = 16
"""Updates whose batches are gathered together."""
GATHERED_BYTES = 2**28
"""Memory that they may take."""
FEWEST_THREADS = 128
"""Of such a block."""
FLOAT = 4


@dataclass(frozen=True)
class Shape:
    """What the kernels know when they are compiled.

    Attributes:
        sizes: Inputs, units of each hidden layer, actions.
        batch: Rows of a batch; of `act` it means nothing.
        dtype: Of the observations.
        rows: Rows of a batch that one block of `learn` or `act` takes.
        threads: Of such a block.
        frame_size: Numbers of one observation as it is stored.
        one_hot: Whether observations are whole numbers that become one-hot vectors.
        masked: Whether actions are masked.
        double_dqn: Whether the online network chooses the next action.
        loss: As numbered in mlp.cu, like those that follow.
        optimizer: See there.
        amsgrad: Whether Adam divides by the largest second moment.
        target: See there.
    """

    sizes: tuple[int, ...]
    batch: int
    dtype: torch.dtype
    rows: int
    threads: int
    frame_size: int = 1
    one_hot: bool = False
    masked: bool = False
    double_dqn: bool = True
    loss: int = 0
    optimizer: int = 0
    amsgrad: bool = False
    target: int = 0

    @property
    def macros(self) -> dict[str, str]:
        """Macros of the kernels, name -> value."""
        own = {"layers": len(self.sizes) - 1, "frame": DTYPES[self.dtype], "parts": self.parts}
        numbers = {**vars(self), **own, "shared": self.target == TARGETS["none"]}
        sizes, _ = numbers.pop("sizes"), numbers.pop("dtype")
        macros = {name.upper(): str(int(number)) for name, number in numbers.items()}
        return {"SIZES": ",".join(map(str, sizes)), **macros}

    @property
    def passed(self) -> int:
        """Rows of the online network's pass: with Double DQN the next observations, too."""
        return 2 * self.rows if self.double_dqn else self.rows

    @property
    def parts(self) -> int:
        """Floats that the partial sums of the largest product take."""
        forward = (self._parts(k, n, self.passed) for k, n in pairwise(self.sizes))
        backward = (self._parts(k, n, self.rows) for n, k in pairwise(self.sizes))
        return max(*forward, *backward)

    def _parts(self, k: int, n: int, rows: int) -> int:
        at_once = 1 if n % 4 else 4
        groups = max(1, min(self.threads // (n // at_once), k, MOST_GROUPS))
        return groups * rows * (n + (4 if at_once == 4 else 1))

    @property
    def tiles(self) -> int:
        """Tiles of all weights."""
        return sum(-(-k // TILE) * -(-n // TILE) for k, n in pairwise(self.sizes))

    @property
    def shared_bytes(self) -> dict[str, int]:
        """Bytes of shared memory by kernel."""
        units, at_once = sum(self.sizes), min(self.batch, 128)
        stacked = max(2 * at_once * (TILE + 4), 4 * TILE * (TILE + 1))
        floats = {
            "prepare": TILE * (TILE + 1),
            "learn": (self.passed + self.rows) * units
            + self.rows * self.sizes[-1]
            + 4
            + self.parts,
            "gradients": stacked + 4 * TILE + TILE_THREADS,
            "commit": 2 * TILE * (TILE + 1) + 4 * TILE_THREADS,
            "act": self.rows * units + 4 + self.parts,
        }
        return {name: FLOAT * count for name, count in floats.items()}

    @property
    def turned(self) -> int:
        """Floats of all weights turned over, each layer's begin a multiple of four."""
        return sum(-(-k * n // 4) * 4 for k, n in pairwise(self.sizes))

    @property
    def together(self) -> int:
        """Updates whose batches are gathered together."""
        bytes_each = 2 * FLOAT * self.batch * self.sizes[0]
        return max(1, min(MAX_UPDATES, GATHERED_BYTES // bytes_each))

    @classmethod
    def of(cls, module: MLP, batch: int, dtype: torch.dtype, rows: int, **choices: Any) -> Shape:
        """Return the shape for an MLP; `choices` are other fields."""
        sizes, one_hot = module.sizes, bool(module.one_hot)
        plain: dict[str, Any] = {"frame_size": 1 if one_hot else sizes[0], "one_hot": one_hot}
        return cls(sizes, batch, dtype, rows, threads_for(sizes, rows), **plain, **choices)


def threads_for(sizes: Sequence[int], rows: int) -> int:
    """Return how many threads a block should have: enough to ask for all weights in time.

    As measured: benchmarks/results/h200.md.
    """
    widest = max(sizes)
    if widest < 128:
        return 256
    return 1024 if widest >= 256 and rows <= 2 else 512


def fitted(shape: Shape, limit: int) -> Shape:
    """Return the shape, or one of fewer rows and threads that needs no more shared memory.

    Args:
        shape: What would be quickest.
        limit: Bytes that a block may have.

    Raises:
        KernelError: Not even one row fits.
    """
    while (needed := max(shape.shared_bytes.values())) > limit:
        if shape.rows > 1:
            shape = replace(shape, rows=shape.rows // 2)
        elif shape.threads > FEWEST_THREADS:
            shape = replace(shape, threads=shape.threads // 2)
        else:
            raise KernelError(
                f"layers of {max(shape.sizes)} units need {needed:,} bytes of shared memory, and "
                f"the card has {limit:,}"
            )
    return shape


def shared_memory_of(device: torch.device) -> int:
    """Return the bytes of shared memory that a block may have; only CUDA has a limit."""
    if device.type != "cuda":
        return sys.maxsize
    properties: Any = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", FREE_SHARED))


def why_not_on(module: MLP, device: torch.device) -> str | None:
    """Return why the kernels do not suit a network on a card, or None where they do."""
    try:
        fitted(Shape.of(module, 1, torch.float32, 1), shared_memory_of(device))
    except KernelError as error:
        return str(error)
    return None


# Launching


_pointer, _number, _real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Call(ctypes.Structure):
    """`Call` of mlp.cu, field by field."""

    _fields_ = (
        *members(_pointer, "online", "bootstrap"),
        ("slots", _pointer * 3),
        *members(_pointer, "updates", "skipped", "learning_rate", "metrics"),
        *members(_pointer, *RING_FIELDS, *ROW_FIELDS),
        *members(_number, "num_transitions", "num_frames"),
        *members(_pointer, "numbers", "order", "first", "count"),
        *members(_number, "order_size", "newest"),
        ("turned", _pointer * 2),
        ("inputs", _pointer * 2),
        *members(_pointer, "rewards", "discounts", "weights", "actions", "next"),
        *members(_pointer, "units", "slopes", "by_row", "gradient", "squares"),
        *members(_real, "scale", "gamma", "tau", "clip_norm", "clip_value"),
        *members(_real, "beta1", "beta2", "rest1", "rest2", "eps", "weight_decay"),
        *members(_number, "offset", "target_period", "target_phase", "num_rows", "update"),
        *members(_pointer, "epsilon", "uniform"),
        ("uniform_row", _number),
        ("chosen", _pointer),
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
            "turned": (_pointer * 2)(self._new(shape.turned), self._new(shape.turned)),
            "inputs": (_pointer * 2)(*(self._new(rows * shape.sizes[0]) for _ in range(2))),
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
        return {"turned": (_pointer * 2)(self._new(self.shape.turned), None)}

    def _new(self, count: int, dtype: torch.dtype = torch.float32) -> int:
        memory = torch.zeros(count, dtype=dtype, device=self._device)
        self._kept.append(memory)
        return memory.data_ptr()
