"""From rows in host memory to tensors on the device: nothing on the CPU, one copy elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.transition import storage_dtype

__all__ = ["PackedTransfer", "Rows", "arrays_over", "tensors_over", "transfer_to"]

ALIGNMENT_BYTES = 16
Column = TypeVar("Column")


class Rows(NamedTuple, Generic[Column]):
    """The rows of one vector step, as arrays or tensors; N environments.

    Attributes:
        obs: [N, *O].
        final_obs: [N, *O].
        reward: [N] float64 on the CPU, float32 elsewhere.
        terminated: [N] bool.
        truncated: [N] bool.
        action_mask: [N, A] bool, of `obs`; None where environments give no masks.
        final_action_mask: [N, A] bool, of `final_obs`; None likewise.
    """

    obs: Column
    final_obs: Column
    reward: Column
    terminated: Column
    truncated: Column
    action_mask: Column | None = None
    final_action_mask: Column | None = None

    @property
    def shown(self) -> tuple[Column, Column | None]:
        """Observations and masks for the policy."""
        return self.obs, self.action_mask


def arrays_over(rows: SharedBlock) -> Rows[npt.NDArray[Any]]:
    """Return the arrays of `rows` that a replay stores; they alias it."""
    arrays = [rows.obs, rows.final_obs, rows.reward, rows.terminated, rows.truncated]
    if rows.action_mask.shape[1]:
        arrays += [rows.action_mask, rows.final_action_mask]
    return Rows(*arrays)


def tensors_over(rows: SharedBlock) -> Rows[Tensor]:
    """Return the same as tensors on the CPU; they alias it, too."""
    arrays = arrays_over(rows)
    return Rows(*(torch.from_numpy(np.asarray(array)) for array in arrays if array is not None))


class PackedTransfer:
    """Transfer to CUDA and MPS: packed in (pinned) host memory, sent as one copy.

    Args:
        rows: The rows.
        device: The device; it never gets a float64.

    Attributes:
        rows: Views of the device's memory, at fixed addresses; `load` overwrites them.
    """

    def __init__(self, rows: SharedBlock, device: torch.device) -> None:
        parts = [part for part in tensors_over(rows) if part is not None]
        kept = storage_dtype(rows.obs.dtype)
        dtypes = [kept, kept, torch.float32] + [torch.bool] * (len(parts) - 3)
        nbytes = [_padded(part.numel() * d.itemsize) for part, d in zip(parts, dtypes, strict=True)]
        pinned = device.type == "cuda"
        self._host = torch.zeros(sum(nbytes), dtype=torch.uint8, pin_memory=pinned)
        self._device = torch.zeros(sum(nbytes), dtype=torch.uint8, device=device)
        self._parts = parts
        shapes = [part.shape for part in parts]
        self._host_views = _views(self._host, shapes, dtypes, nbytes)
        self.rows = Rows(*_views(self._device, shapes, dtypes, nbytes))

    def load(self) -> Rows[Tensor]:
        """Pack, copy, and return views of the device's memory; the next call overwrites them.

        The copy is queued, not waited for. The host waits for the device when it gets the next
        actions, and so for this copy; then its memory may be packed again.
        """
        for view, part in zip(self._host_views, self._parts, strict=True):
            view.copy_(part)
        self._device.copy_(self._host, non_blocking=True)
        return self.rows


def transfer_to(rows: SharedBlock, device: torch.device) -> Callable[[], Rows[Tensor]]:
    """Return what brings `rows` to `device` at each call: nothing to do on the CPU."""
    if device.type != "cpu":
        return PackedTransfer(rows, device).load
    tensors = tensors_over(rows)
    return lambda: tensors


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _views(
    memory: Tensor, shapes: list[torch.Size], dtypes: list[torch.dtype], nbytes: list[int]
) -> list[Tensor]:
    parts = zip(torch.split(memory, nbytes), shapes, dtypes, strict=True)
    return [part.view(dtype)[: shape.numel()].view(shape) for part, shape, dtype in parts]
