"""The ring of tensor environments some of whose steps are no transitions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdqn.replay import PrioritizedSampler, UniformSampler, gather
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
    """Also where a lap ago there were transitions."""
    ring, (prioritized, uniform), _ = _written(10)
    never = torch.zeros(N, dtype=torch.bool)
    frames = torch.zeros(N, 1)
    for _ in range(ring.num_rows):
        ring.write_some(never, (torch.zeros(N).long(), torch.ones(N), never, never, frames, frames))
        prioritized.wrote()
    bits = torch.randint(0, 2**62, (1, 64))
    assert torch.isnan(ring.ring.reward[uniform.draw(bits)[0]]).all()
    rows, weights = prioritized.draw(bits[0])
    assert weights is not None
    assert torch.isnan(weights * ring.ring.reward[rows]).all()


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
