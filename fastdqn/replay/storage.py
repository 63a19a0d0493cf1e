"""The tensors of the replay ring, and how transitions are copied out of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.algorithms.td_losses import discount_of
from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import refuse_unless_finite
from fastdqn.replay.sizes import RingSizes
from fastdqn.transition import Transitions

__all__ = ["Ring", "Values", "allocate", "as_index", "gather", "queued", "refuse_gamma", "writable"]

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
        n_step: Rewards that `gather` adds up, n.
        stride: Flat transitions from one to the next of its environment, N.
    """

    frames: Tensor
    next_index: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    continues: Tensor
    masks: Tensor | None = None
    n_step: int = 1
    stride: int = 0

    def cells(self) -> dict[str, Any]:
        """Return the tensors that there are, or arrays in their place, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: cells for name, cells in named.items() if hasattr(cells, "shape")}


def writable(ring: Ring) -> Any:
    """Return the same memory as arrays where the CPU holds it, since they take less time to write.

    Elsewhere it is the ring itself.
    """
    if ring.frames.device.type != "cpu":
        return ring
    return replace(ring, **{name: tensor.numpy() for name, tensor in ring.cells().items()})


def gather(
    ring: Ring,
    index: Tensor,
    gamma: float | None = None,
    weight: Tensor | None = None,
    *,
    both_masks: bool = True,
) -> Transitions:
    """Copy the transitions at flat `index` [B] int64 out of the ring.

    Args:
        ring: Read.
        index: [B] int64.
        gamma: Discount per env step, of which the batch's `discount` is made; None makes none.
            A ring of n steps needs it.
        weight: [B] float32, becomes that of the batch; or None.
        both_masks: Copy the action masks of `obs`, too, and not of `next_obs` alone. Objectives
            without a pass over `obs` do not read them.

    Raises:
        UsageError: A ring of n steps without gamma.

    Returns:
        Transitions; of n steps, with the rewards added up, and what the last of them led to.
    """
    take = torch.index_select  # half the time of indexing with a tensor
    last, reward, factor = index, take(ring.reward, 0, index), None
    if ring.n_step > 1:
        last, reward, factor = _returns(ring, index, reward, gamma)
    following, terminated = take(ring.next_index, 0, last), take(ring.terminated, 0, last)
    return Transitions(
        take(ring.frames, 0, index),
        take(ring.action, 0, index),
        reward,
        take(ring.frames, 0, following),
        terminated,
        take(ring.truncated, 0, last),
        None if ring.masks is None else take(ring.masks, 0, following),
        _discount(terminated, gamma, factor),
        weight,
        take(ring.masks, 0, index) if both_masks and ring.masks is not None else None,
    )


def refuse_gamma(gamma: float | None) -> None:
    """Refuse what is no discount, by a UsageError; None is none."""
    if gamma is not None:
        refuse_unless_finite("gamma", gamma, "Try 0.99.")
        if not 0 <= gamma <= 1:
            raise UsageError(f"gamma {gamma}", "it is a discount in [0, 1]", "Try 0.99.")


def _discount(terminated: Tensor, gamma: float | None, factor: Tensor | None) -> Tensor | None:
    if factor is not None:
        return factor.masked_fill(terminated, 0.0)
    return None if gamma is None else discount_of(terminated, gamma)


def _returns(
    ring: Ring, index: Tensor, reward: Tensor, gamma: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up the rewards of n transitions, or of as many as continue each other.

        R = sum over k < m of gamma^k r_k,    m = n, or fewer at an end, a cut or the write head

    Returns:
        [B] int64 the last transition of each, [B] float32 R, and [B] float32 gamma^m.

    Raises:
        UsageError: Without gamma there is no such sum.

    Source:
        Sutton (1988), Learning to predict by the methods of temporal differences; Hessel et al.
        (2018), Rainbow, arXiv:1710.02298, section 3.
    """
    if gamma is None:
        reason = "the rewards of its transitions are discounted"
        raise UsageError(f"n-step {ring.n_step} without gamma", reason, "Pass gamma=0.99.")
    last, factor = index, torch.full_like(reward, gamma)
    for _ in range(ring.n_step - 1):
        goes_on = ring.continues.index_select(0, last)
        last = torch.where(goes_on, (last + ring.stride) % len(ring.action), last)
        following = ring.reward.index_select(0, last)
        reward = reward + torch.where(goes_on, factor * following, 0.0)
        factor = torch.where(goes_on, factor * gamma, factor)
    return last, reward, factor


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
        n_step=sizes.n_step,
        stride=num_envs,
    )


def queued(indices: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Send indices without waiting for the device; only MPS reads the host's memory later."""
    return torch.from_numpy(indices).to(device, non_blocking=device.type != "mps")


def as_index(indices: npt.NDArray[np.int64], device: torch.device) -> Values:
    """Return indices as what `writable` returns takes them."""
    return indices if device.type == "cpu" else queued(indices, device)
