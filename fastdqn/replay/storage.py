"""The tensors of the replay ring, and how transitions are copied out of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.algorithms.td_losses import discount_of
from fastdqn.replay.sizes import RingSizes
from fastdqn.transition import Transitions

__all__ = ["Ring", "Values", "allocate", "as_index", "gather", "queued", "writable"]

Values = Tensor | npt.NDArray[Any]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Ring:
    """The tensors of the ring that a learner reads.

    T rows of M transitions, A actions.

    Attributes:
        frames: [T * M + F, *O] observations, then final observations.
        next_index: [T * M] int64, frame of the next observation.
        action: [T * M] int64.
        reward: [T * M] float32.
        terminated: [T * M] bool.
        truncated: [T * M] bool.
        continues: [T * M] bool, whether the next transition of the column, G rows later, begins
            where this one ends. False at the ends of episodes, at cuts, before rows that are no
            transitions, and at the write head, whose successors are not written.
        masks: [T * M + F, A] bool, what may be done in each frame; None without masks.
    """

    frames: Tensor
    next_index: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    continues: Tensor
    masks: Tensor | None = None


def writable(ring: Ring) -> Any:
    """Return the same memory as arrays where the CPU holds it, since they take less time to write.

    Elsewhere it is the ring itself.
    """
    if ring.frames.device.type != "cpu":
        return ring
    tensors = (getattr(ring, field.name) for field in fields(ring))
    return Ring(*(None if tensor is None else tensor.numpy() for tensor in tensors))  # type: ignore[arg-type]


def gather(
    ring: Ring, index: Tensor, gamma: float | None = None, weight: Tensor | None = None
) -> Transitions:
    """Copy the transitions at flat `index` [B] int64 out of the ring.

    Args:
        ring: Read.
        index: [B] int64.
        gamma: Discount per env step, of which the batch's `discount` is made; None makes none.
        weight: [B] float32, becomes that of the batch; or None.
    """
    take = torch.index_select  # half the time of indexing with a tensor
    following, terminated = take(ring.next_index, 0, index), take(ring.terminated, 0, index)
    return Transitions(
        take(ring.frames, 0, index),
        take(ring.action, 0, index),
        take(ring.reward, 0, index),
        take(ring.frames, 0, following),
        terminated,
        take(ring.truncated, 0, index),
        None if ring.masks is None else take(ring.masks, 0, following),
        None if gamma is None else discount_of(terminated, gamma),
        weight,
    )


def allocate(sizes: RingSizes, device: torch.device) -> Ring:
    """Allocate a ring whose next frames are those of the same environments' next row."""
    slots, frames, num_envs = sizes.slots, sizes.slots + sizes.finals, sizes.num_envs
    masks = torch.ones(frames, sizes.num_masked, dtype=torch.bool, device=device)
    return Ring(
        torch.zeros(frames, *sizes.obs_shape, dtype=sizes.obs_dtype, device=device),
        torch.arange(num_envs, slots + num_envs, device=device).remainder_(slots),
        torch.zeros(slots, dtype=torch.int64, device=device),
        torch.zeros(slots, dtype=torch.float32, device=device),
        torch.zeros(slots, dtype=torch.bool, device=device),
        torch.zeros(slots, dtype=torch.bool, device=device),
        torch.zeros(slots, dtype=torch.bool, device=device),
        masks if sizes.num_masked else None,
    )


def queued(indices: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Send indices without waiting for the device; only MPS reads the host's memory later."""
    return torch.from_numpy(indices).to(device, non_blocking=device.type != "mps")


def as_index(indices: npt.NDArray[np.int64], device: torch.device) -> Values:
    """Return indices as what `writable` returns takes them."""
    return indices if device.type == "cpu" else queued(indices, device)
