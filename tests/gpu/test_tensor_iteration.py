"""Tensor environments on a card: a block as one graph does what the block does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdqn.envs.tensor import make_tensor_env
from fastdqn.execution.cuda_graph import CudaGraphStep
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.training.tensor.blocks import Block
from fastdqn.training.tensor.rollout import TensorRollout

pytestmark = pytest.mark.cuda

BLOCK = Block(1, 1, 4)


def build(env_id: str, execution: str) -> tuple[TensorRollout, Learner]:
    torch.manual_seed(0)
    env = make_tensor_env(env_id, 8, torch.device("cuda"))
    size, actions = env.single_observation_space.shape or (), int(env.single_action_space.n)
    learner = Learner(MLP(size, actions, (16,)), device="cuda")
    given: dict[str, Any] = {"capacity": 400, "batch_size": 16, "seed": 3}
    rollout = TensorRollout(env, learner, **given, execution=execution)
    return rollout, learner


def same_from_the_same_state(fast: TensorRollout, plain: TensorRollout) -> None:
    """Rounding grows in such environments, so that blocks are compared one by one."""
    cells = fast.ring.ring.cells(), plain.ring.ring.cells()
    for mine, theirs in zip(cells[0].values(), cells[1].values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1"])
def test_a_recorded_block_is_the_eager_block(env_id: str) -> None:
    (fast, learner), (plain, eager) = build(env_id, "cudagraph"), build(env_id, "eager")
    for _ in range(50):
        assert fast.advance(BLOCK, 0.5) == plain.advance(BLOCK, 0.5)
    same_from_the_same_state(fast, plain)
    assert int(learner.state.updates) == int(eager.state.updates) == 200
    torch.testing.assert_close(learner.state.online, eager.state.online, rtol=1e-3, atol=1e-5)
    (step,) = fast._blocks.steps.steps
    assert isinstance(step, CudaGraphStep)
    assert len(step._graphs) == 1


@pytest.mark.parametrize("mode", ["compile+cudagraph", "native"])
def test_a_compiled_and_recorded_block_is_close_and_recorded_once(mode: str) -> None:
    fast, plain = (build("CartPole-v1", how)[0] for how in (mode, "eager"))
    for _ in range(3):
        for rollout in (fast, plain):
            rollout.advance(BLOCK, 0.5)
    same_from_the_same_state(fast, plain)
    seconds = fast.compile_s
    assert seconds > 0
    with torch.compiler.set_stance("fail_on_recompile"):
        for epsilon in (0.1, 0.9):
            fast.advance(BLOCK, epsilon)
    assert fast.compile_s == seconds
