"""From rows in host memory to tensors on the device: nothing on the CPU, one copy elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.envs.workers.shared_block import SharedBlock
from fastdqn.transition import storage_dtype

__all__ = [
    "DeviceRows",
    "HostRows",
    "PackedTransfer",
    "SharedTransfer",
    "Transfer",
    "host_rows",
    "transfer_to",
]

ALIGNMENT_BYTES = 16
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """The rows of one vector step as tensors; N environments.

    Attributes:
        obs: [N, *O].
        final_obs: [N, *O].
        reward: [N] float64 on the CPU, float32 elsewhere.
        terminated: [N] bool.
        truncated: [N] bool.
        action_mask: [N, A] bool, of `obs`; None where environments give no masks.
        final_action_mask: [N, A] bool, of `final_obs`; None likewise.
    """

    obs: Tensor
    final_obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    action_mask: Tensor | None = None
    final_action_mask: Tensor | None = None

    @property
    def shown(self) -> tuple[Tensor, Tensor | None]:
        """Observations and masks for the policy."""
        return self.obs, self.action_mask


@dataclass(frozen=True, slots=True)
class HostRows:
    """The same rows as NumPy arrays; masks are None without masks."""

    obs: Array
    final_obs: Array
    reward: Array
    terminated: Array
    truncated: Array
    action_mask: Array | None = None
    final_action_mask: Array | None = None


def host_rows(rows: SharedBlock) -> HostRows:
    """Return the arrays of `rows` that a replay stores; they alias it."""
    arrays = [rows.obs, rows.final_obs, rows.reward, rows.terminated, rows.truncated]
    if rows.action_mask.shape[1]:
        arrays += [rows.action_mask, rows.final_action_mask]
    return HostRows(*arrays)


class SharedTransfer:
    """Transfer on the CPU: tensors over the rows' own memory, made once."""

    def __init__(self, rows: SharedBlock) -> None:
        self._tensors = _tensors_over(rows)

    def load(self) -> DeviceRows:
        """Return tensors that alias the rows."""
        return self._tensors


class PackedTransfer:
    """Transfer to CUDA and MPS: packed in (pinned) host memory, sent as one copy.

    Args:
        rows: The rows.
        device: The device; it never gets a float64.

    Attributes:
        rows: Views of the device's memory, at fixed addresses; `load` overwrites them.
    """

    def __init__(self, rows: SharedBlock, device: torch.device) -> None:
        sources = _tensors_over(rows)
        kept = storage_dtype(rows.obs.dtype)
        parts = [sources.obs, sources.final_obs, sources.reward]
        parts += [sources.terminated, sources.truncated]
        parts += [m for m in (sources.action_mask, sources.final_action_mask) if m is not None]
        dtypes = [kept, kept, torch.float32] + [torch.bool] * (len(parts) - 3)
        nbytes = [_padded(part.numel() * d.itemsize) for part, d in zip(parts, dtypes, strict=True)]
        pinned = device.type == "cuda"
        self._host = torch.zeros(sum(nbytes), dtype=torch.uint8, pin_memory=pinned)
        self._device = torch.zeros(sum(nbytes), dtype=torch.uint8, device=device)
        self._parts = parts
        shapes = [part.shape for part in parts]
        self._host_views = _views(self._host, shapes, dtypes, nbytes)
        self.rows = DeviceRows(*_views(self._device, shapes, dtypes, nbytes))

    def load(self) -> DeviceRows:
        """Pack, copy, and return views of the device's memory; the next call overwrites them.

        The copy is queued, not waited for. The host waits for the device when it gets the next
        actions, and so for this copy; then its memory may be packed again.
        """
        for view, part in zip(self._host_views, self._parts, strict=True):
            view.copy_(part)
        self._device.copy_(self._host, non_blocking=True)
        return self.rows


Transfer = SharedTransfer | PackedTransfer


def transfer_to(rows: SharedBlock, device: torch.device) -> Transfer:
    """Return the transfer from `rows` to `device`."""
    return SharedTransfer(rows) if device.type == "cpu" else PackedTransfer(rows, device)


def _tensors_over(rows: SharedBlock) -> DeviceRows:
    arrays = [getattr(host_rows(rows), field.name) for field in fields(HostRows)]
    return DeviceRows(*(torch.from_numpy(np.asarray(a)) for a in arrays if a is not None))


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _views(
    memory: Tensor, shapes: list[torch.Size], dtypes: list[torch.dtype], nbytes: list[int]
) -> list[Tensor]:
    views = []
    for part, shape, dtype in zip(torch.split(memory, nbytes), shapes, dtypes, strict=True):
        views.append(part.view(dtype)[: shape.numel()].view(shape))
    return views
