"""The iteration in tensor environments compiled against eager; and nothing compiles twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.envs.tensor import CartPole, TensorEnv
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.training.events import Episode
from fastdqn.training.tensor.blocks import Block
from fastdqn.training.tensor.rollout import TensorRollout
from tests.oracles import CounterRules
from tests.tensor_oracles import PureCounter, TensorCounter

BLOCK = Block(1, 1, 2)
ITERATIONS = 200
RULES = CounterRules((2, 5, 1, 3), "alternating")
TRIED = (("whole", "compile"), ("whole", "native"), ("around", "native"))
"""Around environments that step by themselves, `compile` would compile the same parts again."""
each_tried = pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=[pytest.mark.slow] * (mode == "compile"))
        for name, mode in TRIED
    ],
)
KINDS: dict[str, Any] = {"whole": PureCounter, "around": TensorCounter}


def build(env: TensorEnv, execution: str) -> tuple[TensorRollout, Learner]:
    torch.manual_seed(0)
    size = (env.single_observation_space.shape or ())[0]
    learner = Learner(MLP((size,), int(env.single_action_space.n), (8,), scale=0.1))
    given: dict[str, Any] = {"capacity": 40, "batch_size": 8, "seed": 3, "execution": execution}
    return TensorRollout(env, learner, **given), learner


def run(rollout: TensorRollout) -> tuple[list[Episode], list[Tensor]]:
    """Do the iterations; return the episodes and the numbers that were drawn."""
    episodes, drawn = [], []
    for _ in range(ITERATIONS // BLOCK.repeats):
        episodes += rollout.advance(BLOCK, 0.6)
        call = rollout._calls[BLOCK]
        drawn += [call.uniform.clone(), call.random_bits.clone()]
    return episodes, drawn


@pytest.fixture(scope="module")
def twins() -> Iterator[dict[str, list[tuple[TensorRollout, Learner]]]]:
    """By kind and mode: an eager rollout and a fast one, which have done nothing yet."""
    yield {
        f"{name}, {mode}": [
            build(KINDS[name](3, RULES), execution) for execution in ("eager", mode)
        ]
        for name, mode in TRIED
    }
    torch._dynamo.reset()


@each_tried
def test_fast_iterations_equal_eager_ones(
    name: str, mode: str, twins: dict[str, list[tuple[TensorRollout, Learner]]]
) -> None:
    (eager, eager_learner), (compiled, learner) = twins[f"{name}, {mode}"]
    born = learner.state.online.clone()
    message, drawn = run(eager)
    compiled_told, compiled_drawn = run(compiled)
    assert all(torch.equal(a, b) for a, b in zip(drawn, compiled_drawn, strict=True))
    assert compiled_told == message
    assert len(message) > 100
    pairs = zip(compiled.ring.ring.cells().items(), eager.ring.ring.cells().values(), strict=True)
    for (field, mine), theirs in pairs:
        assert torch.equal(mine, theirs), field
    assert int(learner.state.updates) == compiled.updates == ITERATIONS
    assert (learner.state.online - born).abs().max() > 0.01
    for mine, theirs in (
        (learner.state.online, eager_learner.state.online),
        (learner.state.target, eager_learner.state.target),
    ):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=1e-6)
    assert compiled.compile_s > 0
    assert eager.compile_s == 0


@each_tried
def test_nothing_compiles_again(
    name: str, mode: str, twins: dict[str, list[tuple[TensorRollout, Learner]]]
) -> None:
    rollout, learner = twins[f"{name}, {mode}"][1]
    if not rollout.rows:
        rollout.advance(BLOCK, 0.5)
    seconds = rollout.compile_s
    with torch.compiler.set_stance("fail_on_recompile"):
        rollout.advance(BLOCK, 0.1)
        learner.state.learning_rate.fill_(1e-4)
        rollout.reset([8])
        for epsilon in (0.0, 1.0, 0.3):
            rollout.advance(BLOCK, epsilon)
            rollout.advance(Block(2, 1, uncompiled=True), epsilon)
    assert rollout.compile_s == seconds


def test_cartpole_compiles_whole_and_stores_what_it_steps() -> None:
    """Rounding grows in CartPole, so that single steps are compared, each from the same state."""
    (eager, _), (compiled, _) = (build(CartPole(3), how) for how in ("eager", "native"))
    for _ in range(30):
        for rollout in (eager, compiled):
            rollout.advance(BLOCK, 0.6)
        mine, theirs = compiled.ring.ring, eager.ring.ring
        assert torch.equal(mine.action, theirs.action)
        assert torch.equal(mine.next_index, theirs.next_index)
        torch.testing.assert_close(mine.frames, theirs.frames, rtol=1e-4, atol=1e-5)
        for mine_, theirs_ in zip(_state(compiled), _state(eager), strict=True):
            mine_.copy_(theirs_)
    torch._dynamo.reset()


def _state(rollout: TensorRollout) -> tuple[Tensor, ...]:
    assert isinstance(rollout.env, CartPole)
    state: tuple[Tensor, ...] = (*rollout.env.state, rollout._iteration.shown)
    return state
