"""The ring of tensor environments some of whose steps are no transitions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdqn.errors import CheckpointError
from fastdqn.foundation.state import PartState
from fastdqn.replay import PrioritizedSampler, UniformSampler, gather
from fastdqn.replay.chunks import RingChunks
from fastdqn.replay.saved_ring import restore_ring, ring_state
from fastdqn.replay.skipping_ring import SkippingRing

N, GAMMA = 3, 0.5


def _written(rows: int, capacity: int = 12, n_step: int = 1, chance: float = 0.6) -> Any:
    """Return a ring after some rows, its samplers, and the serial numbers of what is real."""
    ring = SkippingRing(capacity, N, (1,), n_step=n_step)
    samplers = PrioritizedSampler(ring, 4), UniformSampler(ring, 4)
    ring.begin(torch.zeros(N, 1))
    rng, real = np.random.default_rng(rows), list[list[int]]()
    for row in range(rows):
        flags = torch.from_numpy(rng.random(N) < chance)
        serial = torch.arange(N) + row * N
        frames = (serial + N).float().view(N, 1)
        never = torch.zeros(N, dtype=torch.bool)
        step = serial % 2, serial.float() + 1.0, never, never, frames, frames
        ring.write_some(flags, step)
        for sampler in samplers:
            sampler.wrote()
        real.append(serial[flags].tolist())
    return ring, samplers, real


def _flat(rows: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(rows))


def _listed(ring: SkippingRing) -> Tensor:
    first, count = ring.span()
    return ring.nth(torch.arange(int(count)), first)


@pytest.mark.parametrize("capacity", [1, 3, 4, 12])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 40])
def test_the_list_holds_the_real_steps_of_the_newest_rows_oldest_first(
    rows: int, capacity: int
) -> None:
    ring, (prioritized, _), real = _written(rows, capacity)
    kept = _flat(real[-(ring.num_rows - 1) :])
    if not kept:
        assert torch.isnan(ring.ring.reward[_listed(ring)]).all()
        return
    batch = gather(ring.ring, _listed(ring))
    assert batch.reward.tolist() == [number + 1.0 for number in kept]
    assert batch.next_obs[:, 0].tolist() == [number + N for number in kept]
    assert torch.isfinite(batch.reward).all()
    leaves = prioritized.tree.leaves[: len(ring.ring.action)]
    assert sorted(leaves.nonzero()[:, 0].tolist()) == sorted(_listed(ring).tolist())


def test_draws_are_uniform_over_the_list() -> None:
    ring, (_, uniform), real = _written(40)
    kept = _flat(real[-(ring.num_rows - 1) :])
    bits = torch.randint(0, 2**62, (1, 40_000), generator=torch.Generator().manual_seed(0))
    drawn = gather(ring.ring, uniform.draw(bits)[0][0]).reward
    numbers, counts = torch.unique(drawn, return_counts=True)
    assert numbers.tolist() == [number + 1.0 for number in kept]
    expected = 40_000 / len(kept)
    assert (((counts - expected) ** 2) / expected).sum() < 40.0  # chi-square, at most 11 degrees


@pytest.mark.parametrize("rows", [2, 9, 40])
def test_rewards_of_n_steps_stop_before_a_skipped_step(rows: int) -> None:
    ring, _, real = _written(rows, n_step=3)
    there = set(_flat(real))
    batch = gather(ring.ring, _listed(ring), GAMMA)
    for number, total in zip(_flat(real[-(ring.num_rows - 1) :]), batch.reward, strict=True):
        expected, factor = number + 1.0, 1.0
        for following in (number + N, number + 2 * N):
            if following not in there:
                break
            factor *= GAMMA
            expected += factor * (following + 1.0)
        assert float(total) == expected


def test_where_everything_was_skipped_draws_find_what_cannot_be_learned() -> None:
    """Also where the row at the write head still holds transitions, of a lap ago."""
    for rows in range(5, 25):
        _draw_of_nothing(rows)


def _draw_of_nothing(rows: int) -> None:
    ring, (prioritized, uniform), _ = _written(rows)
    never = torch.zeros(N, dtype=torch.bool)
    frames = torch.zeros(N, 1)
    for _ in range(ring.num_rows - 1):
        ring.write_some(never, (torch.zeros(N).long(), torch.ones(N), never, never, frames, frames))
        prioritized.wrote()
    bits = torch.randint(0, 2**62, (1, 64))
    assert torch.isnan(ring.ring.reward[uniform.draw(bits)[0]]).all()
    drawn, weights = prioritized.draw(bits[0])
    assert weights is not None
    assert torch.isnan(weights * ring.ring.reward[drawn]).all()


@pytest.mark.parametrize("rows", [0, 3, 30])
def test_a_snapshot_undoes_the_writes_after_it(rows: int) -> None:
    ring, _, _ = _written(rows)
    before = [t.clone() for t in (*ring.ring.cells().values(), ring.row, *ring.listed.values())]
    restore = ring.snapshot(2)
    real = torch.tensor([True, False, True])
    never = torch.zeros(N, dtype=torch.bool)
    frames = torch.ones(N, 1)
    for _ in range(2):
        ring.write_some(real, (torch.zeros(N).long(), torch.ones(N), never, never, frames, frames))
    restore()
    after = *ring.ring.cells().values(), ring.row, *ring.listed.values()
    assert all(torch.allclose(a, b, equal_nan=True) for a, b in zip(before, after, strict=True))


# Saved


def _state(ring: SkippingRing) -> PartState:
    """Return a copy of the state, with the tensors of the ring as CELLS/NAME."""
    cells = {f"cells/{name}": cell for name, cell in ring.ring.cells().items()}
    state = ring_state(ring)
    return PartState(state.values, {k: t.clone() for k, t in (state.tensors | cells).items()})


def _restored(state: PartState, capacity: int = 12) -> SkippingRing:
    ring = SkippingRing(capacity, N, (1,))
    for name, cell in ring.ring.cells().items():
        cell.copy_(state.tensors[f"cells/{name}"])
    holds = lambda frames: frames.isfinite().all(1)  # noqa: E731
    restore_ring(ring, state, num_actions=2, holds=holds)
    return ring


@pytest.mark.parametrize("chance", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("rows", [0, 1, 4, 5, 30])
def test_a_ring_that_was_saved_lists_the_same(rows: int, chance: float) -> None:
    """Also where nothing may be drawn; its sampler is then one of no priorities."""
    ring, (prioritized, _), _ = _written(rows, chance=chance)
    assert int(ring.drawable().sum()) == int(ring.entered - ring.left)
    again = _restored(_state(ring))
    sampler = PrioritizedSampler(again, 4)
    sampler.restore(prioritized.state())
    for name, tensor in ring.listed.items():
        assert torch.equal(tensor, again.listed[name]), name
    assert torch.equal(_listed(ring), _listed(again))
    assert torch.equal(ring.drawable(), again.drawable())
    assert torch.equal(prioritized.tree.leaves, sampler.tree.leaves)


LIES: dict[str, tuple[str, Any, str]] = {
    "more than there were": ("entered", 91, r"entered is 91, not in \[0, 90\]"),
    "more left than entered": ("left", 90, "left is 90, not in"),
    "fewer listed": ("left", 0, "row_counts is of"),
    "too many in a row": ("row_counts", 4, r"row_counts is not in \[0, 3\]"),
    "outside of the ring": ("order", 15, r"order is not in \[0, 15\)"),
    "before the ring": ("order", -1, "order is not in"),
    "one for all": ("order", 0, "order is not what was written into these rows"),
    "all real": ("real", True, "real is not what is listed of the last row"),
    "rewards everywhere": ("cells/reward", 1.0, "reward is a number where a step was skipped"),
    "rewards nowhere": ("cells/reward", torch.nan, "reward is not finite"),
    "on through a skipped step": ("cells/continues", True, "continues is true where"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_forged_list_is_refused_by_name(name: str) -> None:
    tensor, value, message = LIES[name]
    state = _state(_written(30)[0])
    state.tensors[tensor].fill_(value)
    with pytest.raises(CheckpointError, match=f"its {message}"):
        _restored(state)


def test_a_byte_that_is_no_flag_is_refused() -> None:
    state = _state(_written(30)[0])
    state.tensors["real"].view(torch.uint8).mul_(7)
    with pytest.raises(CheckpointError, match="real is not what is listed"):
        _restored(state)


def test_a_step_changes_no_other_chunks_than_those_that_are_named() -> None:
    for rows in range(12):
        ring, _, _ = _written(rows)
        chunks = RingChunks(ring, chunk_bytes=100)
        named = chunks.next_written(1)
        assert named < set(range(chunks.num_chunks))
        before = [
            {k: t.clone() for k, t in chunks.chunk(n).items()} for n in range(chunks.num_chunks)
        ]
        frames = torch.ones(N, 1)
        never = torch.zeros(N, dtype=torch.bool)
        step = torch.ones(N).long(), torch.ones(N), never, never, frames, frames
        ring.write_some(torch.tensor([True, False, True]), step)
        for number in set(range(chunks.num_chunks)) - named:
            for name, cells in chunks.chunk(number).items():
                assert torch.equal(cells.nan_to_num(), before[number][name].nan_to_num())


def test_its_sizes_are_the_bytes_of_its_tensors() -> None:
    ring = SkippingRing(12, N, (1,))
    held = [*ring.ring.cells().values(), ring.row, ring._columns, *ring.listed.values()]
    sizes = ring.sizes(12, N, (1,), torch.float32)
    assert sizes.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in held)
