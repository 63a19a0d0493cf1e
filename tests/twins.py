"""Two learners that ought to learn the same: one in the mode under test, and one eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdqn.learner.learner import Learner
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import run_by_graphs

__all__ = ["Twins"]


class Twins:
    """A learner in a mode and an eager one, each with a sampler over a ring of its own.

    Args:
        mode: Of the first; `cudagraph` is run by stand-ins of graphs.
        new_learner: Makes a learner, always the same.
        new_sampler: Makes a sampler over a full ring, always the same.
    """

    def __init__(
        self, mode: str, new_learner: Callable[[], Learner], new_sampler: Callable[[], Any]
    ) -> None:
        self.samplers = [new_sampler() for _ in range(2)]
        self.learners = []
        for _ in range(2):
            torch.manual_seed(0)
            self.learners.append(new_learner())
        self.born = self.learners[1].state.online.clone()
        self.cuda = RecordingCuda()
        if mode == "cudagraph":
            run_by_graphs(self.learners[0], self.cuda)
        self.learners[0].execute_as(mode)

    def learn(self, updates: int) -> None:
        for learner, sampler in zip(self.learners, self.samplers, strict=True):
            learner.learn(sampler, updates)

    def align(self) -> None:
        """Let both trees be equal to the bit: rounding at a boundary may choose another row."""
        for to, source in zip(*(sampler.written() for sampler in self.samplers), strict=True):
            to.copy_(source)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return what each of the two has written, the first one's first."""
        states = [learner.state.written() for learner in self.learners]
        samplers = [sampler.written() for sampler in self.samplers]
        return [*zip(*states, strict=True), *zip(*samplers, strict=True)]

    def assert_learned(self, updates: int, least: float) -> None:
        """Check the updates of the eager one, and that a parameter has moved that far."""
        state = self.learners[1].state
        assert int(state.updates) == updates
        assert int(state.skipped) == 0
        assert (state.online - self.born).abs().max() > least

    def assert_equal(self) -> None:
        assert all(torch.equal(mine, theirs) for mine, theirs in self.pairs())

    def assert_learn_alike(self, updates: int, *, rtol: float, atol: float) -> None:
        """Take updates one by one from trees that are equal, and compare after each."""
        for _ in range(updates):
            self.align()
            self.learn(1)
            for mine, theirs in self.pairs():
                torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)
        assert int(self.learners[0].state.skipped) == 0
