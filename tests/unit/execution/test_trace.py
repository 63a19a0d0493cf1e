"""Steps written down: the same operations, on the caller's own tensors, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastdqn.execution.trace import FlatArguments, TensorSpec, UntraceableError, tensors_of, trace
from fastdqn.learner.learner import Learner, LearnerState
from fastdqn.replay import Ring, gather
from tests.small_learners import Branches, filled_ring


@dataclass(frozen=True)
class Pair:
    first: Tensor
    rest: list[Tensor]
    nothing: Tensor | None = None


class Named(NamedTuple):
    left: Tensor
    right: Tensor


def test_the_tensors_of_arguments_come_in_order() -> None:
    a, b, c, d, e = torch.arange(5.0).unbind(0)
    args = (Pair(a, [b]), c, Named(d, e), None)
    assert [int(tensor) for tensor in tensors_of(args)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("other", [3, "text", {"a": torch.ones(1)}, True])
def test_arguments_that_could_change_unseen_are_refused(other: Any) -> None:
    with pytest.raises(UntraceableError, match=type(other).__name__):
        list(tensors_of((torch.ones(1), other)))


def test_leaves_tell_shapes_strides_and_dtypes_apart() -> None:
    pair, leaves = Pair(torch.ones(1), [torch.ones(2)]), FlatArguments()
    kinds = [
        torch.zeros(2, 3),
        torch.zeros(3, 2),
        torch.zeros(3, 2).T,
        torch.zeros(2, 3, dtype=torch.float64),
    ]
    variants = {leaves((pair, kind))[0] for kind in kinds}
    assert len(variants) == 4
    assert leaves((pair, torch.ones(2, 3)))[0] in variants
    variant, tensors = leaves((pair, kinds[0]))
    assert [id(t) for t in tensors] == [id(pair.first), id(pair.rest[0]), id(kinds[0])]
    other = replace(pair, first=torch.full((1,), 7.0))
    assert leaves((other, kinds[0])) == (variant, [other.first, pair.rest[0], kinds[0]])


def test_a_trace_does_what_the_step_does_and_tracing_does_nothing() -> None:
    torch.manual_seed(0)
    replay, learner = filled_ring(), Learner(Branches())
    learner.state.metrics.zero_()
    args = (learner.state, replay.ring, torch.randint(64, (2, 8)))

    def step(state: LearnerState, ring: Ring, index: Tensor) -> None:
        for row in index.unbind(0):
            learner._step(state, gather(ring, row))

    before = [tensor.clone() for tensor in tensors_of(args)]
    traced = trace(step, args)
    assert all(map(torch.equal, before, tensors_of(args)))
    copies = [tensor.clone() for tensor in tensors_of(args)]
    with torch.no_grad():
        traced.graph(*copies, *traced.held)
    step(*args)
    assert int(copies[4]) == 2
    for mine, theirs in zip(copies, tensors_of(args), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(copies[0], before[0])
    assert traced.specs == tuple(map(TensorSpec.of, (*copies, *traced.held)))


def test_what_a_step_holds_is_handed_in_and_stays_the_callers() -> None:
    scale, total = torch.tensor(2.0), torch.zeros(3)

    def step(x: Tensor) -> None:
        total.add_(x * scale)

    traced = trace(step, (torch.ones(3),))
    assert total.tolist() == [0.0] * 3
    assert {id(tensor) for tensor in traced.held} == {id(scale), id(total)}
    assert not list(traced.graph.graph.find_nodes(op="get_attr"))
    scale.fill_(10.0)
    traced.graph(torch.ones(3), *traced.held)
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
    traced.graph(x, *traced.held)
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
        learner = Learner(Branches(), **settings)
        args = (torch.zeros(1, 8, dtype=torch.int64),)
        return trace(learner._learning_from(filled_ring()), args).graph.code

    assert text() == text()
    assert len({text(), text(gamma=0.9), text(double=False), text(tau=0.1), text(loss="mse")}) == 5
