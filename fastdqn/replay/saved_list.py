"""Saved lists of the transitions that may be drawn, checked: a stranger may have written them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdqn.foundation.state import LARGEST, PartState

if TYPE_CHECKING:
    from fastdqn.replay.skipping_ring import SkippingRing

__all__ = ["Listed", "read_listed", "refuse_other_lists"]


@dataclass(frozen=True)
class Listed:
    """Checked values of a `ValidTransitions`, by the names of its attributes.

    `listed` is None while the list is in order; `count` is how many may be drawn.
    """

    oldest: int
    rows: int
    first: int
    count: int
    newest_partial: int
    counts: list[int]
    published: tuple[int, int]
    listed: Tensor | None


def read_listed(state: PartState, num_rows: int, row_size: int, like: Tensor) -> Listed:
    """Read the state of a list of T rows of M transitions.

    Args:
        state: Of `ValidTransitions`.
        num_rows: Rows of the ring, T.
        row_size: Transitions of a row, M.
        like: [T * M] int64, the list that it is for; not read.

    Raises:
        CheckpointError: Names what is none, or what does not add up: the numbers of transitions,
            rows that are not whole, transitions of other rows or out of their order.
    """
    rows = state.whole("rows")
    oldest = state.whole("oldest", max(rows - num_rows, 0), rows)
    counts = state.tensor("counts", torch.empty(num_rows, dtype=torch.int64)).tolist()
    if not all(0 <= count <= row_size for count in counts):
        raise state.refusal("counts", f"not in [0, {row_size}] throughout")
    there = [counts[row % num_rows] for row in range(oldest, rows)]
    first, count = state.whole("first"), sum(there)
    if state.whole("last") != first + count:
        raise state.refusal("last", f"{state.values['last']}, not {first} and {count} more")
    partial = state.whole("newest_partial", -1, max(rows - 1, -1))
    late = [row for row, own in enumerate(there, oldest) if own < row_size and row > partial]
    if late:
        raise state.refusal("newest_partial", f"{partial}, and row {late[0]} is not whole either")
    begun, shown = state.wholes("published", 2, 0, LARGEST)
    published = begun, min(shown, len(like))
    listed = None
    if state.flag("in_order"):
        if first != oldest * row_size or count != len(there) * row_size:
            raise state.refusal("in_order", "true, and some rows are not whole")
    else:
        listed = state.tensor("list", like).cpu()
        _refuse_other_places(state, "list", listed, first, [oldest, num_rows, row_size], there)
    return Listed(oldest, rows, first, count, partial, counts, published, listed)


def refuse_other_lists(state: PartState, ring: SkippingRing, rows: int) -> None:
    """Refuse a list that is none of so many rows of a ring; nothing is written.

    Raises:
        CheckpointError: Names what is none, or what does not add up.
    """
    num_rows, row_size = ring.num_rows, ring.num_envs
    entered = state.scalar("entered", ring.entered, 0, rows * row_size)
    left = state.scalar("left", ring.left, 0, entered)
    counts = state.tensor("row_counts", ring.row_counts).tolist()
    oldest = max(rows - num_rows + 1, 0)
    there = [counts[row % num_rows] for row in range(oldest, rows)]
    if not all(0 <= count <= row_size for count in counts):
        raise state.refusal("row_counts", f"not in [0, {row_size}] throughout")
    if not sum(there) == sum(counts) == entered - left:
        raise state.refusal("row_counts", f"of {sum(counts)} in all, not {entered - left}")
    listed = state.tensor("order", ring.order)[:-1].cpu()  # the last place is never read
    _refuse_other_places(state, "order", listed, left, [oldest, num_rows, row_size], there)
    newest = torch.zeros(row_size, dtype=torch.bool)
    numbers = torch.arange(entered - there[-1], entered) if there else torch.arange(0)
    newest[listed[numbers % len(listed)] % row_size] = True
    real = state.tensor("real", ring.real).cpu()
    if there and not torch.equal(real.view(torch.uint8), newest.view(torch.uint8)):
        raise state.refusal("real", "not what is listed of the last row")


def _refuse_other_places(  # noqa: PLR0917 - called in two places, with names that are its own
    state: PartState, name: str, listed: Tensor, first: int, sizes: list[int], there: list[int]
) -> None:
    """Refuse places outside of the ring, or other ones than those of each row, in order."""
    oldest, num_rows, row_size = sizes
    if not 0 <= int(listed.min()) <= int(listed.max()) < len(listed):
        raise state.refusal(name, f"not in [0, {len(listed)}) throughout")
    numbers = torch.arange(sum(there), device=listed.device) + first % len(listed)
    places = listed[numbers % len(listed)]
    rows = torch.arange(len(there), device=listed.device)
    counts = torch.tensor(there, dtype=torch.int64, device=listed.device)  # also of no rows
    row = rows.repeat_interleave(counts)
    in_turn = row * row_size + places % row_size
    wrong = places // row_size != (row + oldest) % num_rows
    if bool(wrong.any()) or not bool((in_turn.diff() > 0).all()):
        raise state.refusal(name, "not what was written into these rows, in order")
