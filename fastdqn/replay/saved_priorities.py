"""The saved priorities of a ring, checked: what may be drawn has one, and nothing else has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdqn.foundation.state import PartState
from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.sum_tree import SumTree
from fastdqn.replay.valid_transitions import ValidTransitions

__all__ = ["Mark", "priorities_state", "read_mark", "refuse_other_priorities"]

Mark = tuple[int, int]
"""Oldest row that may be drawn, and rows so far; see `ValidTransitions.mark`."""
ROUNDING = 1e-4
"""By which sums differ that were added in another order."""


def priorities_state(tree: SumTree, draws: Tensor, anneal: Tensor, mark: Mark) -> PartState:
    """Return the tensors themselves, and up to where the tree follows the ring."""
    levels = {f"level{number}": level for number, level in enumerate(tree.levels)}
    named = {"leaves": tree.leaves, **levels, "draws": draws, "anneal": anneal}
    return PartState({"mark": list(mark)}, named)


def read_mark(state: PartState, valid: ValidTransitions | None) -> Mark:
    """Return up to where the tree followed a ring, which is restored; of a functional one, (0, 0).

    Raises:
        CheckpointError: It is beyond the ring's own.
    """
    if valid is None:
        state.wholes("mark", 2, 0, 0)
        return 0, 0
    oldest, rows = state.wholes("mark", 2)
    if not (oldest <= rows <= valid.mark[1] and oldest <= valid.mark[0]):
        raise state.refusal("mark", f"{[oldest, rows]}, beyond that of the ring")
    return oldest, rows


def refuse_other_priorities(
    state: PartState, tree: SumTree, replay: ReplayBuffer | FunctionalRing, mark: Mark, most: float
) -> None:
    """Refuse leaves of what may not be drawn, missing ones, and sums that are not theirs.

    Args:
        state: From `priorities_state`.
        tree: Of the same size; not written.
        replay: The ring, restored.
        mark: From `read_mark`.
        most: Largest leaf.

    Raises:
        CheckpointError: Names the tensor.
    """
    here, size = tree.leaves.device, len(replay.ring.action)
    leaves = state.finite("leaves", tree.leaves).to(here)
    if not 0.0 <= float(leaves.min()) <= float(leaves.max()) <= most:
        raise state.refusal("leaves", f"not in [0, {most:g}] throughout")
    known = torch.zeros(len(leaves), dtype=torch.bool, device=leaves.device)
    free = _listed(replay, known, mark)
    if bool((((leaves > 0) != known) & ~free).any()) or bool((leaves[size:] > 0).any()):
        raise state.refusal("leaves", "0 for what may be drawn, or above 0 for anything else")
    levels = [state.tensor(f"level{n}", level).to(here) for n, level in enumerate(tree.levels)]
    below = leaves.expand(2, -1)
    for number, (level, width) in enumerate(zip(levels, tree.widths, strict=True)):
        parts = below.reshape(2, -1, width)
        sums, largest = parts[0].sum(1), parts[1].amax(1)
        count = len(sums)  # a level may be longer: then nothing lies below its end
        wanted = torch.zeros_like(level)
        wanted[0, :count], wanted[1, :count] = sums, largest
        same = torch.allclose(level[0], wanted[0], rtol=ROUNDING, atol=0.0)
        if not same or not torch.equal(level[1], wanted[1]):
            raise state.refusal(f"level{number}", "not the sums of what lies below")
        below = level


def _listed(replay: ReplayBuffer | FunctionalRing, known: Tensor, mark: Mark) -> Tensor:
    """Mark in `known` what may be drawn; return what the tree has yet to follow, likewise."""
    free = torch.zeros_like(known)
    if isinstance(replay, FunctionalRing):
        known[: len(replay.ring.action)] = replay.drawable()
        return free
    valid = replay.valid
    known[valid.nth(torch.arange(len(valid), device=known.device))] = True
    left, entered = valid.changes(mark)
    _fill(free, [*left, *entered])
    return free


def _fill(flags: Tensor, places: Sequence[range | Tensor]) -> None:
    for some in places:
        if isinstance(some, Tensor):
            flags[some] = True
        else:
            flags[some.start : some.stop] = True
