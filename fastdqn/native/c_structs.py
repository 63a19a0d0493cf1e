"""What the C sees: plain structs of numbers and addresses, and the memory that it works in."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastdqn.foundation.copying import Whole
from fastdqn.native.c_library import load_library
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import BEYOND_ONE_HOT, MLP

__all__ = [
    "DTYPES",
    "MAX_LAYERS",
    "RING_FIELDS",
    "ROW_FIELDS",
    "Plan",
    "RingAddresses",
    "Settings",
    "StartsAddresses",
    "settings_of",
    "wrong",
]

WRONG = {
    1: "an index does not lie in the ring",
    2: "an action is none of the network's, or a next index does not lie in the ring",
    3: BEYOND_ONE_HOT,
}
"""Error codes of the C functions."""

MAX_LAYERS = 16
DTYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.uint8: 2,
    torch.bool: 2,
    torch.int8: 3,
    torch.int16: 4,
    torch.int32: 5,
    torch.int64: 6,
}
"""Dtype of stored observations -> its number in the C."""

RING_FIELDS = ("frames", "next_index", "action", "reward", "terminated", "masks")
ROW_FIELDS = ("discount", "weight")
"""Of a batch with factors of its own; null for a ring."""


class Settings(ctypes.Structure):
    """`Settings` of mlp.c, field by field."""

    _fields_ = (
        ("num_layers", ctypes.c_int64),
        ("sizes", ctypes.c_int64 * (MAX_LAYERS + 1)),
        *((name, ctypes.c_int64) for name in ("batch", "one_hot", "offset", "dtype")),
        *((name, ctypes.c_float) for name in ("scale", "gamma", "tau")),
        *((name, ctypes.c_int64) for name in ("double_dqn", "loss", "optimizer")),
        *(
            (name, ctypes.c_int64)
            for name in ("target", "target_period", "target_phase", "amsgrad")
        ),
        *((name, ctypes.c_float) for name in ("clip_norm", "clip_value")),
        *((name, ctypes.c_float) for name in ("beta1", "beta2", "eps", "weight_decay")),
        *((name, ctypes.c_void_p) for name in ("online", "bootstrap")),
        ("slots", ctypes.c_void_p * 3),
        *((name, ctypes.c_void_p) for name in ("updates", "skipped", "learning_rate", "metrics")),
    )


class RingAddresses(ctypes.Structure):
    """`Ring` of mlp.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*RING_FIELDS, *ROW_FIELDS)),
        *((name, ctypes.c_int64) for name in ("num_transitions", "num_frames", "frame_bytes")),
    )


class StartsAddresses(ctypes.Structure):
    """`ValidTransitions` of mlp.c, field by field."""

    _fields_ = (
        ("order", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("size", "first", "count", "newest")),
    )


def settings_of(network: FlatNetwork, batch: int, dtype: torch.dtype) -> Settings:
    """Return the settings that acting needs; an update sets the others.

    Args:
        network: Of an MLP on the CPU; its `flat` is what the C reads and writes.
        batch: Rows of a batch.
        dtype: Of the observations.
    """
    module = network.module
    assert isinstance(module, MLP)
    settings, sizes = Settings(), module.sizes
    settings.num_layers = len(module.layers)
    settings.sizes[: len(sizes)] = sizes
    settings.batch, settings.dtype = batch, DTYPES[dtype]
    settings.one_hot, settings.offset, settings.scale = module.one_hot, module.offset, module.scale
    settings.online = settings.bootstrap = network.flat.data_ptr()
    return settings


def wrong(answer: int) -> IndexError:
    """Return the error of a code other than 0."""
    return IndexError(WRONG[answer])


class Plan(Whole):
    """The memory of one kind of call, freed with this object; never copied.

    Args:
        settings: Copied.
        kept: Tensors whose addresses the settings hold.

    Attributes:
        address: What the C's functions take first.
    """

    def __init__(self, settings: Settings, *kept: Tensor) -> None:
        library = load_library()
        self.address: int | None = library.fastdqn_open(ctypes.byref(settings))
        if self.address is None:
            raise MemoryError(f"a batch of {settings.batch} rows")
        self._kept = kept
        weakref.finalize(self, library.fastdqn_close, self.address)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refuse: an owner that is copied opens a plan of its own."""
        raise TypeError("the memory of a native call is not copied")
