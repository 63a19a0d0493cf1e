"""A group of environments as the rollout sees it: its rows, its buffers, its last actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.envs.sources.protocol import EnvSource
from fastdqn.training.host.guard import NO_ENVS, Guard
from fastdqn.training.transfer import PackedTransfer, Rows, arrays_over, tensors_over
from fastdqn.transition import storage_dtype

__all__ = ["EnvGroup"]

FALSE, TRUE = b"\0", b"\1"

Shown = tuple[Tensor, Tensor | None]
"""Observations [M, *O] and masks [M, A] of a group; None where there are no masks."""


class EnvGroup:
    """A group of environments with its rows and buffers.

    Attributes:
        index: Which group, that of its guard.
        envs: Its environments.
        rows: Its rows.
        device: Of the replay.
        on_host: Whether the replay reads the host's memory.
        guard: Looks at its numbers after each step.
        arrived: Returns the rows of its last step, for the replay.
        shown: Observations and masks at a fixed address on the network's device; None on the host
            if only the replay has them in the dtype that the network takes.
        action: [M] int64, its last actions, for the replay.
        ladder: [M] of its environments, or None.
    """

    def __init__(
        self, source: EnvSource, guard: Guard, device: torch.device, ladder: Tensor | None
    ) -> None:
        self.index, self.guard = guard.group, guard
        self.rows = source.rows_of(guard.group)
        size = len(self.rows.real)
        self.envs = slice(guard.first_env, guard.first_env + size)
        self.ladder = None if ladder is None else ladder[self.envs]
        columns: Any = self.rows  # arrays are buffers, which NumPy's types do not say
        self._terminated = memoryview(columns.terminated)
        self._truncated = memoryview(columns.truncated)
        self._real = memoryview(columns.real)
        self.device, self.on_host = device, device.type == "cpu"
        self.action: Any = np.zeros(size, np.int64)
        arrays = arrays_over(self.rows)
        self.arrived: Callable[[], Rows[Any]] = lambda: arrays
        self.shown: Shown | None = None
        if not self.on_host:
            transfer = PackedTransfer(self.rows, device)
            self.shown, self.arrived = transfer.rows.shown, transfer.load
        elif storage_dtype(self.rows.obs.dtype) is torch.from_numpy(self.rows.obs).dtype:
            self.shown = tensors_over(self.rows).shown

    def take(self, action: npt.NDArray[np.int64]) -> None:
        """Let these be its last actions, [M]."""
        on_device = torch.from_numpy(action).to(self.device)
        self.action = action if self.on_host else on_device

    def all_real(self) -> bool:
        """Return whether every row of its last step is a transition; mostly so."""
        return not _holds(self._real, FALSE)

    def ended(self) -> npt.NDArray[np.int64]:
        """Return the environments whose episode has ended in this step, from 0; mostly none."""
        if _holds(self._terminated, TRUE) or _holds(self._truncated, TRUE):
            return np.flatnonzero(self.rows.terminated | self.rows.truncated)
        return NO_ENVS


def _holds(flags: memoryview, flag: bytes) -> bool:  # faster than `any` for few
    return flag in flags.tobytes()
