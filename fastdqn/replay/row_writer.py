"""Writing a vector step into a ring: field by field, or on a card by one kernel.

PyTorch would launch a dozen kernels there. A launch takes the host 4 us, and on virtual machines
30: as much as everything else of a vector step together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import copied
from fastdqn.replay.storage import Ring, Values, as_index, writable
from fastdqn.replay.valid_transitions import FinalObservations
from fastdqn.toolchain.nvrtc import KernelError, Kernels, Nvrtc, why_no_nvrtc

__all__ = ["SOURCE", "Call", "RowWriter", "Rows", "macros_of", "writer_for"]

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

Apart = npt.NDArray[np.bool_] | None
"""[M] True where a transition does not continue, whatever its flags say; None is nowhere."""


class Rows:
    """Writes vector steps into the tensors of a ring, in place.

    Args:
        ring: Of whole rows; as arrays where the CPU holds it, which takes a third of the time.
        num_rows: Rows of the ring, T.
        num_groups: Groups that are stepped in turn, G.

    Attributes:
        apart: By group, what does not continue its newest row; see `join`.
        finals: The places behind the rows.
    """

    def __init__(self, ring: Ring, num_rows: int, num_groups: int) -> None:
        self.num_rows, self.num_groups = num_rows, num_groups
        self.row_size = len(ring.action) // num_rows
        self.apart: list[Apart] = [None] * num_groups
        self.finals = FinalObservations(len(ring.frames) - len(ring.action), num_rows)
        self._ring = ring
        self._look()

    def _look(self) -> None:
        """Take views of the memory: whole fields, and those of [T, M, ...]."""
        self._cells = writable(self._ring)
        count, rows = len(self._ring.action), (self.num_rows, self.row_size)
        by_row = {
            name: cells[:count].reshape(*rows, *cells.shape[1:])
            for name, cells in self._cells.cells().items()
        }
        self._rows: Any = replace(self._ring, **by_row)
        module: Any = np if self._ring.frames.is_cpu else torch
        self._either, self._negate = module.logical_or, module.logical_not

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the counts; the views are those of the copied ring."""
        twin = copied(self, memo, anew=("_cells", "_rows", "_either", "_negate"))
        twin._look()
        return twin

    def place(self, row: int) -> slice:
        """Return where the transitions of a row lie, and its frames."""
        start = row % self.num_rows * self.row_size
        return slice(start, start + self.row_size)

    def around(self, row: int) -> tuple[int, int, int]:
        """Return where a row lies, its group's next one, and the one before or -1, in [0, T).

        The one before is none at the beginning, and where the next one has its place.
        """
        size, step = self.num_rows, self.num_groups
        before = (row - step) % size if row >= step and size > 2 * step else -1
        return row % size, (row + step) % size, before

    def write(self, row: int, step: tuple[Any, ...]) -> None:
        """Write a vector step, in the order of `NEW_FIELDS`, final obs, masks; not its finals."""
        action, reward, terminated, truncated, obs, _, action_mask, _ = step
        rows, (here, after, before) = self._rows, self.around(row)
        self._show(after, obs, action_mask)
        if before >= 0:
            goes_on = rows.continues[before]
            self._either(rows.terminated[before], rows.truncated[before], out=goes_on)
            self._negate(goes_on, out=goes_on)
        rows.action[here] = action
        rows.reward[here] = reward
        rows.terminated[here] = terminated
        rows.truncated[here] = truncated
        if self.finals.take_back(row):  # an older use of this row pointed there
            first, size = after * self.row_size, self.row_size
            torch.arange(first, first + size, out=self._ring.next_index[self.place(row)])

    def show(self, row: int, obs: Values, action_mask: Values | None) -> None:
        """Write the frames of a row, and what may be done in them; nothing continues from here."""
        self._show(row % self.num_rows, obs, action_mask)

    def _show(self, here: int, obs: Values, action_mask: Values | None) -> None:
        rows = self._rows
        if rows.masks is not None:
            rows.masks[here] = True if action_mask is None else action_mask
        elif action_mask is not None:
            raise UsageError("an action mask", "this ring has none", "Build it with num_masked.")
        rows.frames[here] = obs
        rows.continues[here] = False

    def final_places(self, row: int, count: int) -> tuple[npt.NDArray[np.int64], int]:
        """Return places for last observations of `row`, and the newest row that loses its own."""
        places, lost = self.finals.allocate(row, count)
        return places + len(self._ring.action), lost

    def store_final(
        self, row: int, envs: npt.NDArray[np.int64], frames: Values, masks: Values | None
    ) -> int:
        """Copy the frames of `envs` behind the rows and let their transitions of `row` point there.

        Returns:
            The newest row that loses its own copies to them; -1 is none.
        """
        places, lost = self.final_places(row, len(envs))
        device, cells = self._ring.action.device, self._cells
        index, target = as_index(envs, device), as_index(places, device)
        cells.frames[target] = frames[index]
        cells.next_index[index + self.place(row).start] = target
        if cells.masks is not None:
            cells.masks[target] = True if masks is None else masks[index]
        return lost

    def part(self, row: int, apart: npt.NDArray[np.bool_]) -> None:
        """Let what comes next in the columns `apart` [M] not continue a row, the newest one."""
        group = row % self.num_groups
        before = self.apart[group]
        self.apart[group] = apart if before is None else before | apart

    def join(self, row: int, real: npt.NDArray[np.bool_] | None) -> None:
        """Let nothing continue in `row` that was cut, is no transition, or is followed by none.

        The flags alone, which were read before, let all continue that did not end their episode.
        """
        group = row % self.num_groups
        apart, unreal = self.apart[group], None if real is None else ~real
        self.apart[group], before = unreal, self.around(row)[2]
        either = [envs for envs in (apart, unreal) if envs is not None]
        if before >= 0 and either:
            envs = as_index(np.flatnonzero(np.any(either, 0)), self._ring.action.device)
            self._rows.continues[before][envs] = False


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
        mask = (None, ()) if masks is None else (flag, tuple(masks.shape[1:]))
        frame = self._frame, tuple(ring.frames.shape[1:])
        one = (torch.int64, ()), (torch.float32, ()), (flag, ()), (flag, ())
        self._wanted = *one, frame, frame, mask, mask
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
        step: tuple[Any, ...],
        places: tuple[int, int, int],
        window: tuple[int, int],
        ended: npt.NDArray[np.int64],
        final_places: npt.NDArray[np.int64],
    ) -> None:
        """Queue the writing of a row. Hot path; never waits.

        Args:
            step: Action, reward, terminated, truncated, obs, final obs, mask and final mask.
            places: `Rows.around` it: of the row, of what is shown now, and of the row before.
            window: What may be drawn afterwards.
            ended: Environments whose last observation is stored.
            final_places: The frames that take them.
        """
        call, action = self._call, step[0]
        names = (*NEW_FIELDS, "final_obs", "new_mask", "final_mask")
        for name, value in zip(names, step, strict=True):
            setattr(call, name, None if value is None else value.data_ptr())
        call.here, call.after, call.before = [place * len(action) for place in places]
        call.first, call.count = window
        call.num_ended = len(ended)
        for number, (env, place) in enumerate(
            zip(ended.tolist(), final_places.tolist(), strict=True)
        ):
            call.ended[number], call.final_place[number] = env, place
        self._kernels.launch("write_row", call, len(action), THREADS, 0)


def writer_for(ring: Ring, window: Tensor) -> RowWriter | None:
    """Return what writes rows into a ring, or None where PyTorch has to."""
    if ring.frames.device.type != "cuda" or why_no_nvrtc() is not None:
        return None
    try:
        return RowWriter(ring, window)
    except KernelError:
        return None
