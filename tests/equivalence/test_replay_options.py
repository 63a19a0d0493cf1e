"""Prioritized replay and n-step returns: every mode learns what eager learning does.

Rounding at the boundary of two rows may choose another one, and then the numbers part. So the tree
of a compiled or native learner becomes a copy of the eager one's before each call: the rows that
both draw are compared, and what both write.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import torch

from fastdqn import MLP, Learner
from fastdqn.replay import PrioritizedSampler
from fastdqn.replay.sampler import UniformSampler
from tests.small_learners import filled_ring
from tests.twins import Twins

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES = 200
SLOW = ("both, masked, DQN", "no target, mse")
COMPILE = pytest.param("compile", marks=pytest.mark.slow)
OPTIONS: dict[str, dict[str, Any]] = {
    "prioritized": {"prioritized": True},
    "three steps": {"n_step": 3},
    "both, masked, DQN": {"prioritized": True, "n_step": 5, "num_masked": 3, "double": False},
    "no target, mse": {"prioritized": True, "n_step": 2, "target": "none", "loss": "mse"},
}


def twins_of(
    mode: str, *, prioritized: bool = False, network: Any = MappingProxyType({}), **options: Any
) -> Twins:
    ring = {name: options.pop(name) for name in ("n_step", "num_masked") if name in options}
    kind = PrioritizedSampler if prioritized else UniformSampler
    actions = ring.get("num_masked", 2)
    return Twins(
        mode,
        lambda: Learner(MLP((4,), actions, (16,), **network), learning_rate=1e-3, **options),
        lambda: kind(filled_ring(**ring), 8),
    )


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("mode", ["native", COMPILE])
def test_two_hundred_updates_are_the_eager_ones(mode: str, name: str) -> None:
    twins = twins_of(mode, **OPTIONS[name])
    twins.assert_learn_alike(UPDATES, rtol=2e-4, atol=2e-5)
    twins.assert_learned(UPDATES, 0.05)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OPTIONS],
)
def test_graphs_learn_what_eager_learning_does_to_the_bit(name: str) -> None:
    twins = twins_of("cudagraph", **OPTIONS[name])
    for updates in (4, 1, 16, 8, 2, 4, 5, 16, 27, 1, 16, 100):
        twins.learn(updates)
    twins.assert_learned(UPDATES, 1e-3)
    assert twins.cuda.captures() > 0
    twins.assert_equal()


def test_native_batches_of_a_call_are_drawn_after_the_feedback_of_the_one_before() -> None:
    """Almost all priority lies on one row; once that is fed back, batches hold others."""
    twins = twins_of("native", prioritized=True)
    for sampler in twins.samplers:
        sampler.follow()
        live = sampler.tree.leaves.nonzero()[:, 0]
        leaves = torch.full((len(live),), 1e4)
        leaves[5] = 1e9
        sampler.tree.set(live, leaves)
    for updates, least, most in ((1, 1, 1), (4, 20, 33)):
        twins.learn(updates)
        for sampler in twins.samplers:
            leaves = sampler.tree.leaves
            fed = int(((leaves > 0) & (leaves < 100)).sum())
            assert least <= fed <= most
    assert int(twins.samplers[0].draws) == 5


@pytest.mark.parametrize("mode", ["eager", "native"])
def test_a_skipped_update_writes_no_priority(mode: str) -> None:
    twins = twins_of(mode, prioritized=True)
    learner, sampler = twins.learners[0], twins.samplers[0]
    sampler.follow()
    before = [tensor.clone() for tensor in sampler.tree.written()]
    sampler.ring.reward.fill_(torch.nan)
    learner.learn(sampler, 3)
    assert int(learner.state.skipped) == 3
    for old, new in zip(before, sampler.tree.written(), strict=True):
        assert torch.equal(old, new)
