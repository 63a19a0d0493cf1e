"""Prioritized replay and n-step returns: every mode learns what eager learning does.

Rounding at the boundary of two rows may choose another one, and then the numbers part. So the tree
of a compiled or native learner becomes a copy of the eager one's before each call: the rows that
both draw are compared, and what both write.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdqn
from fastdqn import Learner
from fastdqn.replay import PrioritizedSampler
from fastdqn.replay.sampler import UniformSampler
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import run_by_graphs
from tests.small_learners import filled_ring

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


class Twins:
    """A learner in a mode and an eager one, each with a sampler over a ring of its own."""

    def __init__(
        self,
        mode: str,
        *,
        prioritized: bool = False,
        network: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        ring = {name: options.pop(name) for name in ("n_step", "num_masked") if name in options}
        self.mode, self.prioritized = mode, prioritized
        kind = PrioritizedSampler if prioritized else UniformSampler
        self.samplers: list[Any] = [kind(filled_ring(**ring), 8) for _ in range(2)]
        self.learners = []
        for _ in range(2):
            torch.manual_seed(0)
            module = fastdqn.MLP((4,), ring.get("num_masked", 2), (16,), **network)
            self.learners.append(Learner(module, learning_rate=1e-3, **options))
        self.cuda = RecordingCuda()
        if mode == "cudagraph":
            run_by_graphs(self.learners[0], self.cuda)
        self.learners[0].execute_as(mode)

    def learn(self, updates: int) -> None:
        for learner, sampler in zip(self.learners, self.samplers, strict=True):
            learner.learn(sampler, updates)

    def align(self) -> None:
        """Let both trees be equal to the bit."""
        mine, theirs = self.samplers
        for to, source in zip(mine.written(), theirs.written(), strict=True):
            to.copy_(source)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        states = [learner.state.written() for learner in self.learners]
        samplers = [sampler.written() for sampler in self.samplers]
        return [*zip(*states, strict=True), *zip(*samplers, strict=True)]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("mode", ["native", COMPILE])
def test_two_hundred_updates_are_the_eager_ones(mode: str, name: str) -> None:
    twins = Twins(mode, **OPTIONS[name])
    born = twins.learners[1].state.online.clone()
    for _ in range(UPDATES):
        twins.align()
        twins.learn(1)
        for mine, theirs in twins.pairs():
            torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-5)
    assert (twins.learners[1].state.online - born).abs().max() > 0.05
    assert int(twins.learners[0].state.skipped) == 0


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in OPTIONS],
)
def test_graphs_learn_what_eager_learning_does_to_the_bit(name: str) -> None:
    twins = Twins("cudagraph", **OPTIONS[name])
    for updates in (4, 1, 16, 8, 2, 4, 5, 16, 27, 1, 16, 100):
        twins.learn(updates)
    assert int(twins.learners[1].state.updates) == UPDATES
    assert twins.cuda.captures() > 0
    for mine, theirs in twins.pairs():
        assert torch.equal(mine, theirs)


def test_native_batches_of_a_call_are_drawn_after_the_feedback_of_the_one_before() -> None:
    """Almost all priority lies on one row; once that is fed back, batches hold others."""
    twins = Twins("native", prioritized=True)
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
    twins = Twins(mode, prioritized=True)
    learner, sampler = twins.learners[0], twins.samplers[0]
    sampler.follow()
    before = [tensor.clone() for tensor in sampler.tree.written()]
    sampler.ring.reward.fill_(torch.nan)
    learner.learn(sampler, 3)
    assert int(learner.state.skipped) == 3
    for old, new in zip(before, sampler.tree.written(), strict=True):
        assert torch.equal(old, new)
