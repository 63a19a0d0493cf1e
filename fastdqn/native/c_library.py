"""The C of this room as Python calls it: its functions, their plain structs, and their memory."""

from __future__ import annotations

import ctypes
import functools
import weakref
from typing import Any, NoReturn

import torch

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import Whole
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import BEYOND_ONE_HOT, MLP
from fastdqn.replay import Ring
from fastdqn.toolchain.cc import MLP as SOURCE
from fastdqn.toolchain.cc import loaded

__all__ = [
    "DTYPES",
    "MAX_LAYERS",
    "RING_FIELDS",
    "ROW_FIELDS",
    "TARGETS",
    "Plan",
    "RingAddresses",
    "Settings",
    "ValidAddresses",
    "addresses_of",
    "load_library",
    "members",
    "settings_of",
    "why_no_library",
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
TARGETS = {"soft": 0, "hard": 1, "none": 2}
"""Of the target network -> its number in the C."""


_pointer, _number, _real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def members(kind: Any, *names: str) -> tuple[tuple[str, Any], ...]:
    """Return members of a struct that are all of one type."""
    return tuple((name, kind) for name in names)


class Settings(ctypes.Structure):
    """`Settings` of mlp.c, field by field."""

    _fields_ = (
        ("num_layers", _number),
        ("sizes", _number * (MAX_LAYERS + 1)),
        *members(_number, "layer_norm", "dueling", "divided"),
        *members(_number, "batch", "one_hot", "offset", "dtype"),
        *members(_real, "scale", "gamma", "tau"),
        *members(_number, "double_dqn", "loss", "optimizer"),
        *members(_number, "target", "target_period", "target_phase", "amsgrad"),
        *members(_real, "clip_norm", "clip_value", "beta1", "beta2", "eps", "weight_decay"),
        *members(_pointer, "online", "bootstrap"),
        ("slots", _pointer * 3),
        *members(_pointer, "updates", "skipped", "learning_rate", "metrics"),
    )


class RingAddresses(ctypes.Structure):
    """`Ring` of mlp.c, field by field."""

    _fields_ = (
        *members(_pointer, *RING_FIELDS, "continues", *ROW_FIELDS),
        *members(_number, "num_transitions", "num_frames", "frame_bytes", "n_step", "stride"),
    )


class ValidAddresses(ctypes.Structure):
    """`Valid` of mlp.c, field by field."""

    _fields_ = (("order", _pointer), *members(_number, "size", "first", "count", "newest"))


def why_no_library() -> str | None:
    """Return why the library cannot be had here, or None; compiles it if it is not on disk."""
    try:
        load_library()
    except UsageError as error:
        return error.reason
    return None


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the library, compiling it first where this machine has not got it.

    Raises:
        UsageError: There is no C compiler, or it fails.
    """
    return _declared(loaded(SOURCE))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = _pointer, _number
    library.fastdqn_open.restype = pointer
    library.fastdqn_open.argtypes = [pointer]
    library.fastdqn_close.restype = None
    library.fastdqn_close.argtypes = [pointer]
    library.fastdqn_update.restype = number
    library.fastdqn_update.argtypes = [*[pointer] * 5, number]
    library.fastdqn_act.restype = number
    library.fastdqn_act.argtypes = [*[pointer] * 4, number, _real, pointer]
    return library


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
    settings.layer_norm, settings.dueling = module.layer_norm, module.dueling
    if module.dueling and len(sizes) > 2:
        settings.divided, _ = module.steps[-1]
    settings.batch, settings.dtype = batch, DTYPES[dtype]
    settings.one_hot, settings.offset, settings.scale = module.one_hot, module.offset, module.scale
    settings.online = settings.bootstrap = network.flat.data_ptr()
    return settings


def addresses_of(ring: Ring) -> RingAddresses:
    """Return where the tensors of a ring on the CPU lie."""
    tensors = {name: getattr(ring, name) for name in RING_FIELDS}
    return RingAddresses(
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()},
        continues=ring.continues.data_ptr(),
        num_transitions=len(ring.action),
        num_frames=len(ring.frames),
        frame_bytes=ring.frames[0].numel() * ring.frames.element_size(),
        n_step=ring.n_step,
        stride=ring.stride,
    )


def wrong(answer: int) -> IndexError:
    """Return the error of a code other than 0."""
    return IndexError(WRONG[answer])


class Plan(Whole):
    """The memory of one kind of call, freed with this object; never copied.

    Args:
        settings: Copied.
        kept: Holds the tensors whose addresses the settings have.

    Attributes:
        address: What the C's functions take first.
    """

    def __init__(self, settings: Settings, kept: object) -> None:
        library = load_library()
        self.address: int | None = library.fastdqn_open(ctypes.byref(settings))
        if self.address is None:
            raise MemoryError(f"a batch of {settings.batch} rows")
        self._kept = kept
        weakref.finalize(self, library.fastdqn_close, self.address)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refuse: an owner that is copied opens a plan of its own."""
        raise TypeError("the memory of a native call is not copied")
