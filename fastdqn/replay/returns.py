"""Discounted returns of what a ring holds, for reports; not on the hot path."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.storage import Ring

__all__ = ["discounted_returns", "stored"]


def discounted_returns(ring: Ring, gamma: float) -> tuple[Tensor, Tensor]:
    """Add up the discounted rewards from every transition of a ring to the end of its episode.

        G_t = r_t + gamma G_(t+1)

    Each pass doubles the length of the sums, so that few are needed. Copies rewards and flags to
    the host, and waits for the device.

    Args:
        ring: Read.
        gamma: Discount per env step, in [0, 1].

    Returns:
        [T * M] float64 on the host, the sums as far as transitions continue each other, and [T * M]
        float64, the discount of what follows them: 0 where the episode has terminated; gamma^m of m
        steps where it was truncated or cut, or goes on beyond the write head.
    """
    total = ring.reward.cpu().double()
    terminated, truncated = ring.terminated.cpu(), ring.truncated.cpu()
    factor = torch.full_like(total, gamma).masked_fill_(terminated, 0.0)
    goes_on = ring.continues.cpu() & ~(terminated | truncated)
    following = (torch.arange(len(total)) + ring.stride) % len(total)
    for _ in range(len(total).bit_length() + 1):
        if not bool(goes_on.any()):
            break
        total = torch.where(goes_on, total + factor * total[following], total)
        factor = torch.where(goes_on, factor * factor[following], factor)
        further = torch.where(goes_on, following[following], following)
        goes_on, following = goes_on & goes_on[following], further
    return total, factor


def stored(replay: ReplayBuffer | FunctionalRing) -> Tensor:
    """Return the flat transitions that may be drawn now, oldest first, on the host."""
    if isinstance(replay, ReplayBuffer):
        count = len(replay)
        return replay.valid.nth(torch.arange(count, device=replay.device)).cpu()
    first, number = replay.span()
    places = torch.arange(int(number), device=replay.ring.action.device)
    return replay.nth(places, first).cpu()
