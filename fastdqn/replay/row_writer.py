"""Writing a vector step into a ring on a card by one kernel, where PyTorch would launch a dozen.

A launch takes the host 4 us, and on virtual machines 30: as much as everything else of a vector
step together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.replay.storage import Ring
from fastdqn.toolchain.nvrtc import KernelError, Kernels, Nvrtc, why_no_nvrtc

__all__ = ["SOURCE", "Call", "RowWriter", "macros_of", "writer_for"]

SOURCE = Path(__file__).with_name("ring.cu")
THREADS = 32
MOST_ENDED = 192
"""As in ring.cu."""
WORDS = {"float4": 16, "unsigned": 4, "unsigned char": 1}
"""Type that is copied at a time -> its bytes, which are its alignment, too."""
FIELDS = ("frames", "next_index", "action", "reward", "terminated", "truncated", "continues")
"""Of the ring, in the order of `Call`; masks come last, where there are any."""
NEW_FIELDS = ("new_action", "new_reward", "new_terminated", "new_truncated", "obs")
"""In the order of `ReplayBuffer.write`."""

_pointer = ctypes.c_void_p
_number = ctypes.c_int64


class Call(ctypes.Structure):
    """`Call` of ring.cu, field by field."""

    _fields_ = (
        *((name, _pointer) for name in (*FIELDS, "masks", "window")),
        *((name, _pointer) for name in ("obs", "final_obs", "new_action", "new_reward")),
        *((name, _pointer) for name in ("new_terminated", "new_truncated")),
        *((name, _pointer) for name in ("new_mask", "final_mask")),
        *((name, _number) for name in ("here", "after", "before", "first", "count")),
        *((name, _number) for name in ("num_masked", "num_ended")),
        ("ended", ctypes.c_int * MOST_ENDED),
        ("final_place", _number * MOST_ENDED),
    )


Make = Callable[[dict[str, str], torch.device], Kernels]


def macros_of(ring: Ring) -> dict[str, str]:
    """Return what the kernel is compiled with for a ring."""
    nbytes = ring.frames[0].numel() * ring.frames.element_size()
    word = next(name for name, size in WORDS.items() if nbytes % size == 0)
    return {"BYTES": str(nbytes), "WORD": word, "THREADS": str(THREADS)}


def on_the_card(macros: dict[str, str], device: torch.device) -> Kernels:
    """Compile the kernel for a card."""
    return Nvrtc(SOURCE, macros, ("write_row",), device)


class RowWriter:
    """Writes whole rows into a ring.

    Args:
        ring: On a card.
        window: [2] int64 there: what may be drawn, written after each row.
        make: Compiles.
    """

    def __init__(self, ring: Ring, window: Tensor, make: Make = on_the_card) -> None:
        self._alive = ring, window  # the kernel reads their addresses
        macros = macros_of(ring)
        self._word = WORDS[macros["WORD"]]
        self._device, self._frame = ring.frames.device, ring.frames.dtype
        flag, masks = torch.bool, ring.masks
        masked = () if masks is None else tuple(masks.shape[1:])
        frame = self._frame, tuple(ring.frames.shape[1:])
        one = (torch.int64, ()), (torch.float32, ()), (flag, ()), (flag, ())
        self._wanted = *one, frame, frame, (flag, masked), (flag, masked)
        self._kernels = make(macros, ring.frames.device)
        self._call = Call(window=window.data_ptr())
        for name in FIELDS:
            setattr(self._call, name, getattr(ring, name).data_ptr())
        if ring.masks is not None:
            self._call.masks = ring.masks.data_ptr()
            self._call.num_masked = ring.masks.shape[1]

    def takes(self, step: tuple[Any, ...], num_ended: int, rows: int) -> bool:
        """Return whether a row can be written here: it lies on the card as the ring stores it.

        What does not is left to PyTorch, which converts it or says what is wrong.

        Args:
            step: Action, reward, terminated, truncated, obs, and more or None.
            num_ended: Final observations that are stored.
            rows: Transitions of a row of the ring, M.
        """
        frame = self._frame
        return num_ended <= MOST_ENDED and all(
            value is None
            or (
                isinstance(value, Tensor)
                and value.dtype is dtype
                and value.shape == (rows, *shape)
                and value.device == self._device
                and value.is_contiguous()
                and (dtype is not frame or value.data_ptr() % self._word == 0)
            )
            for value, (dtype, shape) in zip(step, self._wanted, strict=True)
        )

    def __call__(
        self,
        step: tuple[Tensor | None, ...],
        places: tuple[int, int, int],
        window: tuple[int, int],
        ended: npt.NDArray[np.int64],
        final_places: npt.NDArray[np.int64],
    ) -> None:
        """Queue the writing of a row. Hot path; never waits.

        Args:
            step: Action, reward, terminated, truncated, obs, final obs, mask and final mask.
            places: Of its first transition, of the first frame that is shown now, and of the first
                transition that it may continue, or -1.
            window: What may be drawn afterwards.
            ended: Environments whose last observation is stored.
            final_places: The frames that take them.
        """
        call = self._call
        names = (*NEW_FIELDS, "final_obs", "new_mask", "final_mask")
        for name, value in zip(names, step, strict=True):
            setattr(call, name, None if value is None else value.data_ptr())
        call.here, call.after, call.before = places
        call.first, call.count = window
        call.num_ended = len(ended)
        for number, (env, place) in enumerate(
            zip(ended.tolist(), final_places.tolist(), strict=True)
        ):
            call.ended[number], call.final_place[number] = env, place
        action = step[0]
        assert action is not None
        self._kernels.launch("write_row", call, len(action), THREADS, 0)


def writer_for(ring: Ring, window: Tensor) -> RowWriter | None:
    """Return what writes rows into a ring, or None where PyTorch has to."""
    if ring.frames.device.type != "cuda" or why_no_nvrtc() is not None:
        return None
    try:
        return RowWriter(ring, window)
    except KernelError:
        return None
