"""Whole trainings on a card: workers, packed rows, graphs; and tensor environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastdqn import DQN
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from fastdqn.training.transfer import PackedTransfer

pytestmark = pytest.mark.cuda

SMALL: dict[str, Any] = {
    "num_envs": 4,
    "vectorizer": "sync",
    "learning_starts": 100,
    "batch_size": 16,
    "hidden_sizes": (32,),
    "buffer_size": 2000,
    "replay_ratio": 0.5,
    "device": "cuda",
}


@pytest.mark.parametrize("execution", ["eager", "cudagraph", "compile+cudagraph", "native"])
def test_a_small_training_runs_in_every_mode(execution: str) -> None:
    agent = DQN("CartPole-v1", **SMALL, execution=execution)
    before = agent.learner.state.online.clone()
    agent.learn(2000)
    assert agent.learner.execution == execution
    assert int(agent.learner.state.updates) == 950
    assert int(agent.learner.state.skipped) == 0
    assert (agent.learner.state.online - before).abs().max() > 0.01
    assert int(agent.predict(np.zeros(4, np.float32))) in {0, 1}
    agent.learn(400)  # the graphs of the first call are those of the second
    assert int(agent.learner.state.updates) == 1150


def test_eager_and_recorded_trainings_are_the_same_run() -> None:
    agents = [DQN("CartPole-v1", **SMALL, execution=mode) for mode in ("eager", "cudagraph")]
    for agent in agents:
        agent.learn(1200)
    mine, theirs = (agent.learner.state.online for agent in agents)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_auto_measures_and_tells() -> None:
    agent = DQN("CartPole-v1", **SMALL).learn(400)
    assert agent.learner.execution in {"eager", "cudagraph", "native"}
    assert "measured per update: " in agent.execution_reason
    assert "acting by " in agent.execution_reason
    message = agent.execution_reason
    assert agent.learn(400).execution_reason == message  # measured once


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precisions_train(precision: str) -> None:
    agent = DQN("CartPole-v1", **SMALL, execution="cudagraph", precision=precision).learn(600)
    assert agent.learner.precision == precision
    assert torch.isfinite(agent.learner.state.online).all()
    assert torch.get_float32_matmul_precision() == "highest"


def test_tensor_environments_train_as_one_graph() -> None:
    agent = DQN("CartPole-v1", **{**SMALL, "vectorizer": "tensor"}, execution="cudagraph")
    agent.learn(2000)
    assert int(agent.learner.state.updates) == 950


def test_rows_arrive_whole_in_one_copy() -> None:
    rows = SharedBlock.allocate(RowSpec(6, (4,), "float32", num_masked=3))
    transfer = PackedTransfer(rows, torch.device("cuda"))
    rng = np.random.default_rng(0)
    for _ in range(5):
        for array in (rows.obs, rows.final_obs, rows.reward):
            array[:] = rng.normal(size=array.shape)
        for flags in (rows.terminated, rows.truncated, rows.action_mask, rows.final_action_mask):
            flags[:] = rng.random(flags.shape) < 0.5
        there = transfer.load()
        assert there.obs.is_cuda
        for name in ("obs", "final_obs", "terminated", "truncated", "action_mask"):
            assert np.array_equal(getattr(there, name).cpu().numpy(), getattr(rows, name)), name
        assert np.array_equal(there.reward.cpu().numpy(), rows.reward.astype(np.float32))
