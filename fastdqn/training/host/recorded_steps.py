"""What the ring and a saved state hold of the steps of open episodes, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.replay import ReplayBuffer

__all__ = ["RecordedInRing"]

Bits = npt.NDArray[np.bool_]


class RecordedInRing:
    """The steps that a replay ring holds, and the last ones, which were saved beside it.

    A ring that nothing was written into, since it was not saved, holds none.

    Args:
        replay: Read.
        last: What the environments showed when they were saved, by name of the block's arrays.
        unread: [N] bool, whether the last step is not written into the ring yet.
        stored: Returns of an array of the block, by name, what is stored of it.
    """

    def __init__(
        self,
        replay: ReplayBuffer,
        last: Mapping[str, npt.NDArray[Any]],
        unread: Bits,
        stored: Callable[[str, npt.NDArray[Any]], npt.NDArray[Any]] = lambda _, values: values,
    ) -> None:
        self._replay, self._last, self._unread, self._stored = replay, last, unread, stored
        groups = np.arange(replay.num_envs) // replay.row_size
        self._column = np.arange(replay.num_envs) % replay.row_size
        self._written = written = replay.valid.mark[1]  # rows so far
        self._next_row = written + (groups - written) % replay.num_groups
        self._oldest = max(written + replay.num_groups - replay.num_rows, 0)

    def differs(
        self,
        rows: SharedBlock,
        envs: npt.NDArray[np.int64],
        back: npt.NDArray[np.int64],
        *,
        stepped: bool,
    ) -> Bits:
        """Return which environments show what they did not show then; see `RecordedSteps`."""
        different = np.zeros(len(envs), np.bool_)
        last = np.flatnonzero(back == 0)
        different[last] |= self._differs_from_last(rows, envs[last], stepped=stepped)
        replay = self._replay
        shown = self._next_row[envs] + (self._unread[envs] - back) * replay.num_groups
        held = (shown >= self._oldest) & (shown <= self._next_row[envs])
        held &= self._written > 0
        frames = np.flatnonzero(held)
        different[frames] |= self._differs_from_frames(rows, envs[frames], shown[frames])
        steps = np.flatnonzero(held & (shown - replay.num_groups >= self._oldest))
        if stepped and steps.size:
            rows_of_steps = shown[steps] - replay.num_groups
            different[steps] |= self._differs_from_steps(rows, envs[steps], rows_of_steps)
        return different

    def _differs_from_last(
        self, rows: SharedBlock, envs: npt.NDArray[np.int64], *, stepped: bool
    ) -> Bits:
        names = ["obs", "action_mask"]
        if stepped:
            names += ["reward", "terminated", "truncated"]
        last = {name: self._stored(name, self._last[name][envs]) for name in names}
        return unlike(len(envs), [(self._now(rows, name, envs), last[name]) for name in names])

    def _now(self, rows: SharedBlock, name: str, envs: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return what is stored of what environments show now."""
        return self._stored(name, getattr(rows, name)[envs])

    def _differs_from_frames(
        self, rows: SharedBlock, envs: npt.NDArray[np.int64], shown: npt.NDArray[np.int64]
    ) -> Bits:
        ring, place = self._replay.ring, self._place(envs, shown)
        pairs = [(self._now(rows, "obs", envs), _taken(ring.frames, place))]
        if ring.masks is not None:
            pairs.append((rows.action_mask[envs], _taken(ring.masks, place)))
        return unlike(len(envs), pairs)

    def _differs_from_steps(
        self, rows: SharedBlock, envs: npt.NDArray[np.int64], written: npt.NDArray[np.int64]
    ) -> Bits:
        ring, place = self._replay.ring, self._place(envs, written)
        names = ("reward", "terminated", "truncated")
        pairs = [
            (self._now(rows, name, envs), _taken(getattr(ring, name), place)) for name in names
        ]
        return unlike(len(envs), pairs)

    def _place(
        self, envs: npt.NDArray[np.int64], row: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return the flat places of environments in rows of the ring."""
        replay = self._replay
        place: npt.NDArray[np.int64] = row % replay.num_rows * replay.row_size + self._column[envs]
        return place


def _taken(cells: torch.Tensor, place: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return cells of the ring on the host."""
    index = torch.from_numpy(place).to(cells.device)
    taken: npt.NDArray[Any] = cells[index].cpu().numpy()
    return taken


def unlike(count: int, pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Bits:
    """Return [E] bool, where the first of any pair, in the dtype of the second, has other bits."""
    different = np.zeros(count, np.bool_)
    for here, there in pairs:
        if not there.size:
            continue
        mine = np.ascontiguousarray(here.astype(there.dtype)).reshape(count, -1)
        other = np.ascontiguousarray(there).reshape(count, -1)
        different |= (mine.view(np.uint8) != other.view(np.uint8)).any(1)
    return different
