"""The tensors of the replay ring, and how transitions are copied out of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdqn.transition import Transitions

__all__ = ["Ring", "allocate", "gather"]


@dataclass(frozen=True, slots=True)
class Ring:
    """The tensors of the ring that a learner reads.

    Attributes:
        frames: [T * N + F, *O] observations, then final observations.
        next_index: [T * N] int64, frame of the next observation.
        action: [T * N] int64.
        reward: [T * N] float32.
        terminated: [T * N] bool.
        truncated: [T * N] bool.
    """

    frames: Tensor
    next_index: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


def gather(ring: Ring, index: Tensor) -> Transitions:
    """Copy the transitions at flat `index` [B] int64 out of the ring."""
    return Transitions(
        ring.frames[index],
        ring.action[index],
        ring.reward[index],
        ring.frames[ring.next_index[index]],
        ring.terminated[index],
        ring.truncated[index],
    )


def allocate(  # noqa: PLR0917 - called once, with names that are its own
    slots: int,
    finals: int,
    num_envs: int,
    obs_shape: tuple[int, ...],
    obs_dtype: torch.dtype,
    device: torch.device,
) -> Ring:
    """Allocate a ring of `slots` transitions whose next frames are those of the next row.

    Args:
        slots: Places for transitions, T * N.
        finals: Final frames behind them, F.
        num_envs: Environments, N: places of a row.
        obs_shape: Shape of one observation.
        obs_dtype: Dtype in which observations are stored.
        device: Where the tensors live.
    """
    return Ring(
        torch.zeros(slots + finals, *obs_shape, dtype=obs_dtype, device=device),
        torch.arange(num_envs, slots + num_envs, device=device).remainder_(slots),
        torch.zeros(slots, dtype=torch.int64, device=device),
        torch.zeros(slots, dtype=torch.float32, device=device),
        torch.zeros(slots, dtype=torch.bool, device=device),
        torch.zeros(slots, dtype=torch.bool, device=device),
    )
