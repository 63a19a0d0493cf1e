"""The sampler: its two halves choose what the ring itself would draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdqn.errors import UsageError
from fastdqn.replay import NewestSampler, ReplayBuffer, UniformSampler, gather, uniform_of
from fastdqn.replay.buffer import MAX_DRAW
from fastdqn.replay.functional_ring import FunctionalRing
from tests.learner_settings import nothing_left_in
from tests.small_learners import filled_ring, random_batch

BATCH = 8


def grow(replay: ReplayBuffer, seed: int, *, partial: bool) -> None:
    """Write a row; of partial ones the first environment only reset."""
    row = random_batch(seed, 2)
    real = np.array([False, True]) if partial else None
    replay.write(row.action, row.reward, row.terminated, row.truncated, row.obs, real=real)


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("partial_every", [0, 1, 5])
def test_the_halves_together_choose_what_the_ring_draws(newest: bool, partial_every: int) -> None:
    """At every fill of the ring, over its wrap, whole rows and partial ones."""
    rings = [ReplayBuffer(20, 2, (4,), seed=5) for _ in range(3)]
    one_by_one, together = (
        (NewestSampler if newest else UniformSampler)(ring, BATCH) for ring in rings[1:]
    )
    for step in range(45):
        for ring in rings:
            grow(ring, step, partial=bool(partial_every) and step % partial_every == 0)
        for count in (1, 3, 4):
            ring = rings[0]
            expected = ring.newest(count, BATCH) if newest else ring.draw(count, BATCH)
            apart = [one_by_one.draw(bits)[0] for bits in one_by_one.fill(count)]
            assert torch.equal(torch.stack(apart), expected)
            assert torch.equal(together.draw(together.fill(count))[0], expected)


def test_a_ring_filled_partly_is_drawn_as_far_as_it_is_filled() -> None:
    replay = ReplayBuffer(1000, 2, (4,))
    sampler = UniformSampler(replay, 64)
    grow(replay, 0, partial=False)
    assert set(sampler.draw(sampler.fill(4))[0].flatten().tolist()) == {0, 1}
    grow(replay, 1, partial=False)
    assert set(sampler.draw(sampler.fill(4))[0].flatten().tolist()) == {0, 1, 2, 3}


def test_memory_and_scalars_stay_where_graphs_read_them() -> None:
    replay = filled_ring()
    sampler = UniformSampler(replay, BATCH)
    places = set()
    for step in range(50):
        places.add((sampler.fill(4).data_ptr(), sampler.fill(2).data_ptr()))
        grow(replay, step, partial=step % 3 == 0)
        places.add((sampler.place(4).data_ptr(), sampler.place(2).data_ptr()))
    assert len(places) == 1


def test_an_empty_ring_is_refused() -> None:
    sampler = UniformSampler(ReplayBuffer(20, 2, (4,)), BATCH)
    with pytest.raises(UsageError, match="it is empty"):
        sampler.fill(1)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("newest", [False, True])
def test_a_rehearsal_draws_from_the_whole_ring_and_leaves_no_trace(
    filled: bool, newest: bool
) -> None:
    replay = filled_ring() if filled else ReplayBuffer(64, 2, (4,))
    sampler = (NewestSampler if newest else UniformSampler)(replay, BATCH)
    with nothing_left_in(sampler):
        with sampler.rehearsal():
            index, _ = sampler.draw(sampler.fill(8))
        assert index.min() >= 0
        assert index.max() < len(replay.ring.action)
    if filled:
        expected = filled_ring()
        drawn = expected.newest(2, BATCH) if newest else expected.draw(2, BATCH)
        assert torch.equal(sampler.draw(sampler.fill(2))[0], drawn)


def test_numbers_of_the_update_are_drawn_beside_those_of_the_batches() -> None:
    """For uniform draws and for the newest rows, whose own numbers stay as they are."""
    for kind in (UniformSampler, NewestSampler):
        sampler = kind(filled_ring(), BATCH)
        filled = [sampler.fill(3, 100).clone() for _ in range(2)]
        assert filled[0].shape == (3, BATCH + 100)
        uniform = torch.stack([uniform_of(bits[:, BATCH:]) for bits in filled])
        assert uniform.dtype is torch.float32
        assert 0.0 <= float(uniform.min()) < 0.05
        assert 0.95 < float(uniform.max()) < 1.0
        assert not torch.equal(uniform[0], uniform[1])
        rows = [sampler.draw(bits[:, :BATCH])[0] for bits in filled]
        assert torch.equal(*rows) == (kind is NewestSampler)
        assert rows[0].shape == (3, BATCH)


def test_bits_become_numbers_below_one() -> None:
    bits = torch.tensor([0, 1, 2**37, 2**38, 2**61, MAX_DRAW - 1])
    assert uniform_of(bits).tolist() == [0.0, 0.0, 0.0, 2.0**-24, 0.5, 1 - 2.0**-24]


def test_the_discount_of_a_batch_is_that_of_one_step_and_its_weight_goes_along() -> None:
    replay = filled_ring()
    rows = replay.newest(1, len(replay))[0]
    weight = torch.rand(len(rows))
    batch = gather(replay.ring, rows, 0.9, weight)
    assert batch.discount is not None
    assert batch.weight is weight
    expected = [0.0 if over else pytest.approx(0.9) for over in batch.terminated.tolist()]
    assert batch.discount.tolist() == expected
    plain = gather(replay.ring, rows)
    assert plain.discount is plain.weight is None


def test_the_numbers_of_a_ring_on_the_device_are_not_drawn_by_the_host() -> None:
    sampler = UniformSampler(FunctionalRing(6, 2, (1,)), BATCH)
    with pytest.raises(UsageError, match="tensor environments fill its ring"):
        sampler.fill(1)
