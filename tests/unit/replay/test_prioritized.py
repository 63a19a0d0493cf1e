"""Prioritized replay: what is drawn, what it weighs, what is fed back, and what is refused."""

from __future__ import annotations

import copy
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdqn.errors import UsageError
from fastdqn.foundation.copying import snapshot
from fastdqn.replay import ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.prioritized import PrioritizedSampler
from tests.small_learners import filled_ring
from tests.unit.replay.test_sum_tree import bits_of, deviation

NONE = torch.zeros(2, dtype=torch.bool)


def write(ring: ReplayBuffer | FunctionalRing, number: int) -> None:
    """Write a vector step of two environments, known by its number."""
    obs, action = torch.full((2, 1), float(number)), torch.zeros(2, dtype=torch.int64)
    if isinstance(ring, ReplayBuffer):
        ring.write(action, torch.full((2,), float(number)), NONE, NONE, obs)
    else:
        ring.write(action, torch.full((2,), float(number)), NONE, NONE, obs, obs)


def sampler_over(priorities: list[float], **settings: Any) -> PrioritizedSampler:
    """Return a sampler over one environment's transitions with these |TD errors|."""
    replay = ReplayBuffer(len(priorities), 1, (1,))
    replay.begin(torch.zeros(1, 1))
    for _ in priorities:
        none = torch.zeros(1, dtype=torch.bool)
        replay.write(torch.zeros(1), torch.zeros(1), none, none, torch.zeros(1, 1))
    sampler = PrioritizedSampler(replay, 4, **settings)
    sampler.follow()
    sampler.feedback(torch.arange(len(priorities)), torch.tensor(priorities))
    return sampler


def test_probabilities_and_weights_equal_the_closed_form() -> None:
    """Decoys: alpha left out, weights of P instead of 1 / P, eps left out where it decides."""
    errors = [0.0, -3.0, 1.0, 7.0]
    sampler = sampler_over(errors, alpha=0.5, eps=1.0, beta_start=0.5, beta_end=0.5)
    shares = (torch.tensor([1.0, 4.0, 2.0, 8.0]) ** 0.5).double()
    rows, weights = sampler.draw(bits_of(40_000))
    assert abs(deviation(rows, shares)) < 5
    assert weights is not None
    chances = shares / shares.sum()
    closed = (4 * chances) ** -0.5
    closed = (closed / closed.max()).float()
    torch.testing.assert_close(weights, closed[rows])
    assert closed.tolist() == pytest.approx([1.0, 0.7071068, 0.8408964, 0.5946036])


def test_alpha_0_draws_uniformly_and_beta_0_weighs_alike() -> None:
    sampler = sampler_over([0.0, 5.0, 100.0], alpha=0.0, beta_start=0.0, beta_end=0.0)
    rows, weights = sampler.draw(bits_of(30_000))
    assert abs(deviation(rows, torch.ones(3, dtype=torch.float64))) < 5
    assert weights is not None
    assert (weights == 1).all()


def drawn_both(sampler: PrioritizedSampler, bits: Tensor) -> bool:
    return set(sampler.tree.draw(bits).tolist()) == {0, 1}


@pytest.mark.parametrize("in_c", [False, True])
def test_beta_is_annealed_over_the_batches_and_then_stays(in_c: bool) -> None:
    sampler = sampler_over([1.0, 3.0], alpha=1.0, beta_start=0.2, beta_end=1.0, anneal=4, eps=1e-9)
    bits = next(bits for bits in map(partial(bits_of, 4), count()) if drawn_both(sampler, bits))
    seen = []
    for _ in range(6):
        assert sampler.in_c is not None
        rows, weights = sampler.in_c.draw(bits) if in_c else sampler.draw(bits)
        assert weights is not None
        seen.append(float(-weights[rows == 1][0].log() / torch.tensor(3.0).log()))
    assert seen == pytest.approx([0.2, 0.2 + 0.8 / 3, 0.2 + 1.6 / 3, 1.0, 1.0, 1.0], abs=1e-5)


def test_new_rows_have_the_largest_priority_of_the_buffer_and_1_at_first() -> None:
    replay = ReplayBuffer(8, 2, (1,))
    replay.begin(torch.zeros(2, 1))
    sampler = PrioritizedSampler(replay, 4, alpha=1.0, eps=1e-12)
    write(replay, 0)
    sampler.follow()
    assert sampler.tree.leaves[:10].tolist() == [1, 1, *[0] * 8]
    sampler.feedback(torch.tensor([0, 1]), torch.tensor([0.25, 3.0]))
    write(replay, 1)
    sampler.follow()
    assert sampler.tree.leaves[:4].tolist() == pytest.approx([0.25, 3.0, 3.0, 3.0])
    sampler.feedback(torch.tensor([1, 2, 3]), torch.tensor([0.5, 0.125, 0.125]))
    write(replay, 2)
    sampler.follow()
    assert sampler.tree.leaves[4:6].tolist() == pytest.approx([0.5, 0.5])


def test_rows_that_are_pushed_out_leave_the_draw_however_late_it_is_asked() -> None:
    replay = ReplayBuffer(8, 2, (1,))
    replay.begin(torch.zeros(2, 1))
    sampler = PrioritizedSampler(replay, 4)
    for number in range(23):
        write(replay, number)
        if number in {0, 3, 4, 11, 22}:
            sampler.follow()
            live = sorted(replay.newest(1, len(replay))[0].tolist())
            assert torch.nonzero(sampler.tree.leaves)[:, 0].tolist() == live


@pytest.mark.parametrize("in_c", [False, True])
def test_a_row_that_was_drawn_twice_takes_its_larger_priority(in_c: bool) -> None:
    sampler = sampler_over([1.0, 1.0], alpha=1.0, eps=1e-9)
    rows, priority = torch.tensor([1, 0, 1]), torch.tensor([3.0, 5.0, 2.0])
    assert sampler.in_c is not None
    (sampler.in_c.feed if in_c else sampler.feedback)(rows, priority)
    assert sampler.tree.leaves[:2].tolist() == pytest.approx([5.0, 3.0])


def test_skipped_updates_write_no_priority() -> None:
    sampler = sampler_over([1.0, 2.0, 3.0])
    before = [tensor.clone() for tensor in sampler.tree.written()]
    sampler.feedback(torch.tensor([0, 2, 2]), torch.full((3,), torch.nan))
    for old, new in zip(before, sampler.tree.written(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("capacity", [2, 4, 10])
def test_both_rings_are_followed_alike(capacity: int) -> None:
    replay, ring = ReplayBuffer(capacity, 2, (1,)), FunctionalRing(capacity, 2, (1,))
    host, device = PrioritizedSampler(replay, 4), PrioritizedSampler(ring, 4)
    replay.begin(torch.zeros(2, 1))
    ring.begin(torch.zeros(2, 1))
    for number in range(14):
        write(replay, number)
        write(ring, number)
        host.follow()
        device.wrote()
        for mine, theirs in zip(host.tree.written(), device.tree.written(), strict=True):
            torch.testing.assert_close(mine, theirs)
        rows = replay.newest(1, 2)[0]
        errors = torch.tensor([number % 5 + 0.5, number % 3 + 0.25])
        host.feedback(rows, errors)
        device.feedback(rows, errors)


def test_a_copy_goes_on_alike_and_apart() -> None:
    sampler = PrioritizedSampler(filled_ring(), 8)
    sampler.sample()
    twin = copy.deepcopy(sampler)
    (mine, index), (theirs, other) = sampler.sample(), twin.sample()
    assert torch.equal(index, other)
    assert torch.equal(mine.obs, theirs.obs)
    twin.update_priorities(other, torch.full((8,), 9.0))
    assert not torch.equal(twin.tree.leaves, sampler.tree.leaves)
    sampler.update_priorities(index, torch.full((8,), 9.0))
    assert torch.equal(twin.tree.leaves, sampler.tree.leaves)


@pytest.mark.parametrize("in_c", [False, True])
def test_rows_that_were_written_before_a_measurement_may_be_drawn_after_it(in_c: bool) -> None:
    replay = ReplayBuffer(16, 2, (1,))
    replay.begin(torch.zeros(2, 1))
    sampler = PrioritizedSampler(replay, 4)
    sampler.in_c = sampler.in_c if in_c else None
    for number in range(11):
        write(replay, number)
        if number == 3:
            sampler.sample()
    with sampler.rehearsal():
        restore = snapshot(sampler.written())
        for _ in range(3):
            assert float(sampler.tree.total()) > 0
            sampler.feedback(sampler.draw(sampler.fill(1)[0])[0], torch.rand(4))
            restore()
    sampler.fill(1)
    live = sorted(replay.newest(1, len(replay))[0].tolist())
    assert sampler.tree.leaves.nonzero()[:, 0].tolist() == live


@pytest.mark.parametrize("in_c", [False, True])
def test_errors_that_carry_a_gradient_leave_none_in_the_tree(in_c: bool) -> None:
    sampler = PrioritizedSampler(filled_ring(), 8)
    sampler.in_c = sampler.in_c if in_c else None
    _, index = sampler.sample()
    sampler.update_priorities(index, 2 * torch.ones(8, requires_grad=True))
    assert not any(tensor.requires_grad for tensor in sampler.written())
    batch, _ = sampler.sample()
    assert batch.weight is not None
    assert not batch.weight.requires_grad


def test_a_tree_that_holds_nothing_gives_no_row() -> None:
    sampler = PrioritizedSampler(ReplayBuffer(20_000, 2, (1,)), 8)
    assert sampler.in_c is not None
    rows, _ = sampler.in_c.draw(bits_of(8))
    assert rows.tolist() == [-1] * 8


def test_measurements_leave_the_priorities_as_they_were() -> None:
    sampler = PrioritizedSampler(filled_ring(), 8)
    sampler.sample()
    before = [tensor.clone() for tensor in sampler.written()]
    with sampler.rehearsal():
        rows, weights = sampler.draw(sampler.fill(1)[0])
        assert weights is not None
        assert torch.isfinite(weights).all()
        sampler.feedback(rows, torch.rand(8))
    for old, new in zip(before, sampler.written(), strict=True):
        assert torch.equal(old, new)


def test_as_a_part_it_needs_what_was_stored() -> None:
    with pytest.raises(UsageError, match="it is empty"):
        PrioritizedSampler(ReplayBuffer(8, 2, (1,)), 4).sample()


@pytest.mark.parametrize(
    ("index", "priority", "match"),
    [
        (torch.zeros(4), torch.ones(4), r"index \[4\] torch.float32"),
        (torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1), r"index \[4, 1\]"),
        (torch.zeros(4, dtype=torch.int64), torch.ones(4, 1), r"priority \[4, 1\]"),
        (torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, torch.nan]), "priority .*nan"),
        (torch.zeros(1, dtype=torch.int64), torch.tensor([torch.inf]), "priority .*inf"),
    ],
)
def test_other_priorities_are_refused(index: Tensor, priority: Tensor, match: str) -> None:
    sampler = PrioritizedSampler(filled_ring(), 8)
    with pytest.raises(UsageError, match=match):
        sampler.update_priorities(index, priority)


@pytest.mark.parametrize("in_c", [False, True])
@pytest.mark.parametrize("bad", [-1, 10**12, -(10**12), 2**63 - 1, -(2**63)])
def test_numbers_that_no_transition_had_are_ignored(bad: int, in_c: bool) -> None:
    sampler = PrioritizedSampler(filled_ring(), 8)
    sampler.in_c = sampler.in_c if in_c else None
    sampler.follow()
    before = sampler.tree.leaves.clone()
    sampler.update_priorities(torch.tensor([bad]), torch.tensor([50.0]))
    assert torch.equal(sampler.tree.leaves, before)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"alpha": 1.5}, "--priority-alpha 1.5"),
        ({"alpha": -0.1}, "--priority-alpha -0.1"),
        ({"alpha": float("nan")}, "--priority-alpha nan"),
        ({"beta_start": 2}, "--priority-beta-start 2"),
        ({"beta_end": -1}, "--priority-beta-end -1"),
        ({"eps": 0.0}, "--priority-eps 0.0"),
        ({"eps": float("inf")}, "--priority-eps inf"),
        ({"anneal": 0}, "anneal 0"),
        ({"alpha": "0.6"}, r"--priority-alpha '0.6': it is a number"),
        ({"due": 1, "batch_size": 0}, "batch_size 0"),
        ({"batch_size": "3"}, "batch_size '3'"),
        ({"replay": None}, "a sampler over NoneType"),
    ],
)
def test_other_numbers_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        PrioritizedSampler(**{"replay": filled_ring(), "batch_size": 8, **settings})


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    numbers: Any = {"alpha": np.float32(0.5), "eps": torch.tensor(0.25), "anneal": np.int64(2**62)}
    sampler = PrioritizedSampler(filled_ring(), int(np.int64(8)), **numbers)
    assert (sampler.alpha, sampler.eps, sampler.batch_size) == (0.5, 0.25, 8)
    PrioritizedSampler(filled_ring(), 8, anneal=2**70)


@pytest.mark.parametrize("gamma", [-0.1, 1.5, float("nan"), "0.9"])
def test_what_is_no_discount_is_refused(gamma: Any) -> None:
    with pytest.raises(UsageError, match="gamma"):
        PrioritizedSampler(filled_ring(), 8).sample(gamma)
    with pytest.raises(UsageError, match="gamma"):
        filled_ring().sample(8, gamma)


def test_priorities_that_are_no_tensors_are_refused() -> None:
    sampler = PrioritizedSampler(filled_ring(), 8)
    with pytest.raises(UsageError, match="priority list"):
        sampler.update_priorities(sampler.sample()[1], [1.0] * 8)  # type: ignore[arg-type]
