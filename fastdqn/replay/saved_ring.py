"""What a replay ring consists of beside its large tensors, and back, checked with them.

The large tensors, `Ring.cells()`, are written into the ring before `restore_ring`, which looks at
them piece by piece: afterwards no row that may be drawn points outside of the ring, to another
row's observation, or across an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdqn.foundation.saved_generators import generator_state, restore_generator
from fastdqn.foundation.state import LARGEST, PartState
from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.saved_list import refuse_other_lists
from fastdqn.replay.skipping_ring import SkippingRing
from fastdqn.replay.storage import Ring

__all__ = ["restore_ring", "ring_state"]

AT_A_TIME_BYTES = 2**24
"""Of a field that is looked at in one go, so that looking takes little memory."""
FLAGS = ("terminated", "truncated", "continues", "masks")

Holds = Callable[[Tensor], Tensor]
"""Returns of observations [B, *O] which ones there may be, [B] bool."""


def ring_state(replay: ReplayBuffer | FunctionalRing) -> PartState:
    """Return counts, generator, and what of the ring may be drawn; not `Ring.cells()`."""
    if isinstance(replay, FunctionalRing):
        listed = replay.listed if isinstance(replay, SkippingRing) else {}
        return PartState({}, {"row": replay.row, **listed})
    rows = replay._rows
    named = {f"apart{group}": each for group, each in enumerate(rows.apart)}
    apart = {name: torch.from_numpy(each) for name, each in named.items() if each is not None}
    values = {"row": replay._row, "apart": [each is not None for each in rows.apart]}
    own = {"valid": replay.valid.state(), "finals": rows.finals.state()}
    own["generator"] = generator_state(replay.generator)
    return PartState(values, apart).with_parts(own)


def restore_ring(
    replay: ReplayBuffer | FunctionalRing,
    state: PartState,
    *,
    num_actions: int,
    holds: Holds,
) -> None:
    """Go on from a state, with the large tensors that were written into the ring before.

    Args:
        replay: Of the same sizes; written in place.
        state: From `ring_state`.
        num_actions: A.
        holds: Which observations there may be.

    Raises:
        CheckpointError: Names what is none, or does not fit the tensors; the ring may hold a part
            of the state.
    """
    if isinstance(replay, FunctionalRing):
        row = state.scalar("row", replay.row, 0, LARGEST // replay.num_envs)
        if isinstance(replay, SkippingRing):
            refuse_other_lists(state, replay, row)
            state.copy_into(replay.listed)
        replay.row.fill_(row)
        _refuse_other_cells(state, _functional(replay, row), num_actions, holds)
        if isinstance(replay, SkippingRing):
            _refuse_learnable(state, replay)
        return
    _restore_buffer(replay, state)
    _refuse_other_cells(state, _served(replay), num_actions, holds)


def _restore_buffer(replay: ReplayBuffer, state: PartState) -> None:
    rows, groups = replay._rows, replay.num_groups
    row, there = state.whole("row", 0, LARGEST // replay.num_envs), state.values.get("apart")
    if not isinstance(there, list) or [*map(type, there)] != [bool] * groups:
        raise state.refusal("apart", f"no list of {groups} flags")
    like = torch.empty(replay.row_size, dtype=torch.bool)
    apart = [state.tensor(f"apart{group}", like) for group, some in enumerate(there) if some]
    valid = state.part("valid")
    if valid.whole("rows", row, row) - valid.whole("oldest", 0, row) > replay.num_rows - groups:
        raise valid.refusal("oldest", "a row that has been overwritten")
    restore_generator(replay.generator, state.part("generator"))
    replay.valid.restore(valid)
    rows.finals.restore(state.part("finals"), row)
    taken = iter(apart)
    rows.apart = [next(taken).cpu().numpy().copy() if some else None for some in there]
    replay._row = row


@dataclass(frozen=True)
class _Filled:
    """What a ring says of its rows.

    Attributes:
        ring: Its tensors.
        num_rows: Rows, T.
        row_size: Transitions of a row, M.
        newest: The row that was written last; -1 is none.
        drawn: [T * M] bool, what may be drawn.
        served: [F] int64, the row that each frame behind the ring serves; None where each place
            has one of its own.
        away: [T] bool, rows that point to frames behind the ring; None is any.
    """

    ring: Ring
    num_rows: int
    row_size: int
    newest: int
    drawn: Tensor
    served: Tensor | None = None
    away: Tensor | None = None

    def row_of(self, places: Tensor) -> Tensor:
        """Return the row that lies at each of the flat places now."""
        return self.newest - (self.newest - places // self.row_size) % self.num_rows

    def own(self, places: Tensor, numbers: Tensor) -> Tensor:
        """Return whether frames behind the ring, by their numbers, are those of the places."""
        if self.served is None:
            return numbers == places
        return self.served[numbers] == self.row_of(places)


def _functional(replay: FunctionalRing, row: int) -> _Filled:
    return _Filled(replay.ring, replay.num_rows, replay.num_envs, row - 1, replay.drawable())


def _served(replay: ReplayBuffer) -> _Filled:
    valid, device, each = replay.valid, replay.device, AT_A_TIME_BYTES // 8
    drawn = torch.zeros_like(replay.ring.terminated)
    for start in range(0, len(valid), each):
        stop = min(start + each, len(valid))
        drawn[valid.nth(torch.arange(start, stop, device=device))] = True
    finals = replay._rows.finals.state().tensors
    more = finals["served"].to(device), finals["points_away"].to(device)
    return _Filled(replay.ring, replay.num_rows, replay.row_size, replay._row - 1, drawn, *more)


def _refuse_other_cells(state: PartState, filled: _Filled, num_actions: int, holds: Holds) -> None:
    """Refuse tensors of a ring that point elsewhere, or hold what no environment shows."""
    ring = filled.ring
    for name, cells in ring.cells().items():
        if name in FLAGS and any(
            bool((part > 1).any()) for part in _parts(cells.view(torch.uint8))
        ):
            raise state.refusal(name, "not of flags throughout")
    frame_bytes = ring.frames[0].numel() * ring.frames.element_size()
    each = max(AT_A_TIME_BYTES // max(frame_bytes, 32), 1)
    for start in range(0, len(ring.action), each):
        stop = min(start + each, len(ring.action))
        places = torch.arange(start, stop, device=ring.action.device)
        _refuse_other_places(state, filled, places)
        drawn = places[filled.drawn[start:stop]]
        action, reward = ring.action[start:stop], ring.reward[drawn]
        if not 0 <= int(action.min()) <= int(action.max()) < num_actions:
            raise state.refusal("action", f"not in [0, {num_actions}) throughout")
        if not bool(reward.isfinite().all()):
            raise state.refusal("reward", "not finite throughout")
        for frames in (drawn, ring.next_index[drawn]):
            if len(frames) and not bool(holds(ring.frames[frames]).all()):
                raise state.refusal("frames", "none that the environment may show")


def _refuse_other_places(state: PartState, filled: _Filled, places: Tensor) -> None:
    """Refuse next observations and continuations that are not those of the transition."""
    ring, size = filled.ring, len(filled.ring.action)
    following = (places + ring.stride) % size
    pointed, drawn = ring.next_index[places], filled.drawn[places]
    away = pointed != following
    if bool((away & ((pointed < size) | (pointed >= len(ring.frames)))).any()):
        raise state.refusal("next_index", "outside of the frames behind the ring")
    if filled.away is not None and bool((away & ~filled.away[places // filled.row_size]).any()):
        raise state.refusal("next_index", "elsewhere in a row that points to no such frame")
    ended = away & drawn
    if not bool(filled.own(places[ended], pointed[ended] - size).all()):
        raise state.refusal("next_index", "the frame of another row")
    goes_on = ring.continues[places] & drawn
    ends = ring.terminated[places] | ring.truncated[places] | away
    step = ring.stride // filled.row_size
    next_row = filled.row_of(following) == filled.row_of(places) + step
    if bool((goes_on & (ends | ~next_row | ~filled.drawn[following])).any()):
        raise state.refusal("continues", "true where nothing goes on")


def _refuse_learnable(state: PartState, replay: SkippingRing) -> None:
    """Refuse a reward where a step was skipped: draws find such a step where the list is empty."""
    rows = replay.row - 1 - torch.arange(replay.num_rows, device=replay.row.device)
    written = (rows >= max(int(replay.row) - replay.num_rows + 1, 0)).repeat_interleave(
        replay.num_envs
    )
    columns = torch.arange(replay.num_envs, device=rows.device)
    places = (rows[:, None] % replay.num_rows * replay.num_envs + columns).ravel()[written]
    skipped = places[~replay.drawable()[places]]
    if not bool(replay.ring.reward[skipped].isnan().all()):
        raise state.refusal("reward", "a number where a step was skipped")


def _parts(cells: Tensor) -> Iterator[Tensor]:
    """Return a tensor in pieces that are small enough to be looked at."""
    return iter(torch.split(cells.reshape(-1), AT_A_TIME_BYTES))
