"""CartPole on the device with its updates, one function, in the settings of PureJaxRL's DQN."""

from __future__ import annotations

import time
from typing import Any

import torch

from fastdqn.device import synchronize
from fastdqn.envs.tensor import make_tensor_env
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.training.tensor.blocks import Block
from fastdqn.training.tensor.rollout import TensorRollout

__all__ = ["build", "rate"]

HIDDEN, BATCH, CAPACITY = (120, 84), 128, 10_000
EPSILON = 0.05
FILL_STEPS = 2_000


def build(num_envs: int, execution: str, device: torch.device) -> TensorRollout:
    """Return a rollout that has filled a part of its ring and made its first updates."""
    torch.manual_seed(0)
    env = make_tensor_env("CartPole-v1", num_envs, device)
    learner = Learner(
        MLP((4,), 2, HIDDEN),
        double=False,
        loss="mse",
        learning_rate=2.5e-4,
        clip_norm=None,
        target="hard",
        target_period=500,
        device=device,
    )
    sizes: Any = {"capacity": CAPACITY, "batch_size": BATCH}
    rollout = TensorRollout(env, learner, **sizes, seed=0, execution=execution)
    while rollout.env_steps < FILL_STEPS:
        rollout.advance(Block(1, 0, 16, uncompiled=True), 1.0)
    return rollout


def rate(rollout: TensorRollout, block: Block, seconds: float) -> float:
    """Return env steps per second over at least so many seconds."""
    synchronize(rollout.device)
    before, start = rollout.env_steps, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        rollout.advance(block, EPSILON)
    synchronize(rollout.device)
    elapsed = time.perf_counter() - start
    return (rollout.env_steps - before) / elapsed
