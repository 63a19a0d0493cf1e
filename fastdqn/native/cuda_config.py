"""What the kernels of mlp.cu are compiled for: sizes, choices, and how the work is dealt out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from fastdqn.native.c_structs import DTYPES
from fastdqn.networks.mlp import MLP
from fastdqn.toolchain.nvrtc import FREE_SHARED, KernelError

__all__ = ["TILE_THREADS", "Shape", "fitted", "rows_for", "shared_memory_of", "why_not_on"]

TILE, TILE_THREADS, MOST_GROUPS = 32, 256, 32
"""As in mlp.cu."""
MAX_UPDATES = 16
"""Updates whose batches are gathered together."""
GATHERED_BYTES = 2**28
"""Memory that they may take."""
MAX_ROWS = 8
"""Rows of a batch that one block takes at most."""
FEWEST_THREADS = 128
"""Of such a block."""
SPREAD_OVER = 128
"""Blocks over which a batch is spread before a block takes more rows; a large card has as many
processors."""
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
        """Macros of the kernels, name -> value."""
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
        sizes = module.sizes
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
