"""Steps written down: the same operations, on the caller's own tensors, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.execution.trace import TensorSpec, UntraceableError, trace
from fastdqn.learner.learner import Learner
from tests.small_learners import Branches, filled_ring


def test_a_trace_does_what_the_step_does_and_tracing_does_nothing() -> None:
    torch.manual_seed(0)
    replay, learner = filled_ring(), Learner(Branches())
    learner.state.metrics.zero_()
    index, learn = torch.randint(64, (2, 8)), learner._learning_from(replay)
    before = [tensor.clone() for tensor in learner.state.written()]
    traced = trace(learn, (index,))
    assert all(map(torch.equal, before, learner.state.written()))
    copies = [tensor.clone() for tensor in traced.constants]
    with torch.no_grad():
        traced.graph(index, *copies)
    learn(index)
    assert int(learner.state.updates) == 2
    for mine, theirs in zip(copies, traced.constants, strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(learner.state.online, before[0])
    assert traced.specs == tuple(map(TensorSpec.of, (index, *copies)))
    held = {id(tensor) for tensor in traced.constants}
    assert held >= {id(tensor) for tensor in learner.state.written()}


def test_what_a_step_holds_is_handed_in_and_stays_the_callers() -> None:
    scale, total = torch.tensor(2.0), torch.zeros(3)

    def step(x: Tensor) -> None:
        total.add_(x * scale)

    traced = trace(step, (torch.ones(3),))
    assert total.tolist() == [0.0] * 3
    assert {id(tensor) for tensor in traced.constants} == {id(scale), id(total)}
    assert not list(traced.graph.graph.find_nodes(op="get_attr"))
    scale.fill_(10.0)
    traced.graph(torch.ones(3), *traced.constants)
    assert total.tolist() == [10.0] * 3


def test_a_step_on_held_tensors_alone_writes_nothing_while_it_is_traced() -> None:
    """PyTorch would run such operations on the spot, as if they made constants."""
    count, other = torch.zeros(3), torch.ones(3)

    def step(x: Tensor) -> None:
        count.add_(1)
        count.mul_(other + torch.tensor(2.0))
        x.copy_(count)

    x = torch.full((3,), 5.0)
    traced = trace(step, (x,))
    assert (x.tolist(), count.tolist(), other.tolist()) == ([5.0] * 3, [0.0] * 3, [1.0] * 3)
    traced.graph(x, *traced.constants)
    assert (x.tolist(), count.tolist()) == ([3.0] * 3, [3.0] * 3)


def test_tensors_that_share_memory_are_refused() -> None:
    x = torch.ones(3)

    def step(given: Tensor) -> None:
        given.add_(x[0])

    for args in ((x[1:],), (x[:2],)):
        with pytest.raises(UntraceableError, match="share their memory"):
            trace(step, args)
    assert len(trace(step, (x,)).specs) == 1  # one tensor is one input, however often it comes


def _looks(x: Tensor) -> None:
    if x.sum() > 0:
        x.add_(1)


def _raises(x: Tensor) -> None:
    raise RuntimeError("not today\nnor tomorrow")


@pytest.mark.parametrize(("step", "why"), [(_looks, "data-dependent"), (_raises, "not today$")])
def test_a_step_that_is_no_list_of_operations_is_refused(
    step: Callable[[Tensor], None], why: str
) -> None:
    with pytest.raises(UntraceableError, match=why):
        trace(step, (torch.ones(3),))


def test_equal_steps_read_the_same_and_others_do_not() -> None:
    def text(**settings: Any) -> str:
        torch.manual_seed(0)
        learner, replay = Learner(Branches(), **settings), filled_ring()
        args = (torch.zeros(1, 8, dtype=torch.int64),)
        return trace(learner._learning_from(replay), args).graph.code

    assert text() == text()
    assert len({text(), text(gamma=0.9), text(double=False), text(tau=0.1), text(loss="mse")}) == 5
