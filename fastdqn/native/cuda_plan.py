"""What the kernels of mlp.cu are compiled for, what they take, and the memory that they work in."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdqn.native.plan import DTYPES
from fastdqn.networks import MLP
from fastdqn.nvrtc import Kernels, Nvrtc

__all__ = [
    "GATHERED",
    "KERNELS",
    "MAX_UPDATES",
    "SOURCE",
    "Call",
    "CudaPlan",
    "Make",
    "Shape",
    "on_the_card",
    "rows_for",
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
MAX_ROWS = 8
"""Rows of a batch that one block takes at most."""
SPREAD_OVER = 128
"""Blocks over which a batch is spread before a block takes more rows; a large card has as many
processors."""
FLOAT = 4

_pointers = ctypes.c_void_p
_numbers = ctypes.c_int64


class Call(ctypes.Structure):
    """`Call` of mlp.cu, field by field."""

    _fields_ = (
        *((name, _pointers) for name in ("online", "bootstrap")),
        ("slots", _pointers * 3),
        *((name, _pointers) for name in ("updates", "skipped", "learning_rate", "metrics")),
        *((name, _pointers) for name in ("frames", "next_index", "action", "reward")),
        *((name, _pointers) for name in ("terminated", "masks")),
        *((name, _numbers) for name in ("num_transitions", "num_frames")),
        *((name, _pointers) for name in ("numbers", "order", "first", "count")),
        *((name, _numbers) for name in ("order_size", "newest")),
        ("turned", _pointers * 2),
        ("given", _pointers * 2),
        *((name, _pointers) for name in ("rewards", "actions", "next", "units", "slopes")),
        *((name, _pointers) for name in ("by_row", "gradient", "squares")),
        *((name, ctypes.c_float) for name in ("scale", "gamma", "tau", "clip_norm", "clip_value")),
        *((name, ctypes.c_float) for name in ("beta1", "beta2", "rest1", "rest2", "eps")),
        ("weight_decay", ctypes.c_float),
        *((name, _numbers) for name in ("offset", "target_period", "num_rows", "update")),
        *((name, _pointers) for name in ("epsilon", "uniform")),
        ("uniform_row", _numbers),
        ("chosen", _pointers),
    )


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
        double: As in Double DQN.
        shared: Whether next values come from the online network.
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
    double: bool = True
    shared: bool = False
    loss: int = 0
    optimizer: int = 0
    amsgrad: bool = False
    target: int = 0

    @property
    def macros(self) -> dict[str, str]:
        """What the compiler is given."""
        numbers = {
            "LAYERS": len(self.sizes) - 1,
            "BATCH": self.batch,
            "ROWS": self.rows,
            "THREADS": self.threads,
            "FRAME": DTYPES[self.dtype],
            "FRAME_SIZE": self.frame_size,
            "ONE_HOT": self.one_hot,
            "MASKED": self.masked,
            "DOUBLE_DQN": self.double,
            "SHARED": self.shared,
            "LOSS": self.loss,
            "OPTIMIZER": self.optimizer,
            "AMSGRAD": self.amsgrad,
            "TARGET": self.target,
            "PARTS": self.parts,
        }
        return {
            "SIZES": ",".join(map(str, self.sizes)),
            **{name: str(int(number)) for name, number in numbers.items()},
        }

    @property
    def passed(self) -> int:
        """Rows of the online network's pass: with Double DQN the next observations, too."""
        return 2 * self.rows if self.double else self.rows

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
        layers: Any = module.layers
        sizes = (layers[0].in_features, *(layer.out_features for layer in layers))
        one_hot = bool(module.one_hot)
        frame_size = 1 if one_hot else sizes[0]
        threads = threads_for(sizes, rows)
        plain: dict[str, Any] = {"frame_size": frame_size, "one_hot": one_hot, **choices}
        return cls(sizes, batch, dtype, rows, threads, **plain)


def rows_for(batch: int) -> int:
    """Return how many rows of a batch one block should take."""
    rows = 1
    while rows < MAX_ROWS and batch > rows * SPREAD_OVER:
        rows *= 2
    return rows


def threads_for(sizes: Sequence[int], rows: int) -> int:
    """Return how many threads a block should have: enough to ask for all weights in time.

    As measured: benchmarks/results/update-h200.md.
    """
    widest = max(sizes)
    if widest < 128:
        return 256
    return 1024 if widest >= 256 and rows <= 2 else 512


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
        KernelError: See `on_the_card`.
    """

    def __init__(self, shape: Shape, device: torch.device, make: Make = on_the_card) -> None:
        self.shape, self._device = shape, device
        self._shared = shape.shared_bytes
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
            "rewards": self._new(rows),
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
