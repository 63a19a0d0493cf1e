"""Trains for real while workers crash and stall: what they cost is their episodes alone."""

from __future__ import annotations

import sys
from contextlib import closing

import pytest

from fastdqn import DQN
from fastdqn.envs.make import describe, factory_of
from fastdqn.envs.source import make_source
from fastdqn.evaluation import evaluate
from fastdqn.presets import preset_config
from fastdqn.trainer import NullWitness
from tests.frail import frail_cartpole

pytestmark = pytest.mark.learning


def test_cartpole_that_crashes_and_stalls_still_balances() -> None:
    config = preset_config("cartpole")
    given = ("gamma", "hidden_sizes", "batch_size", "tau", "replay_ratio", "epsilon_end")
    settings = {name: getattr(config, name) for name in (*given, "epsilon_decay_steps", "num_envs")}
    agent = DQN(frail_cartpole, num_workers=4, **settings)
    with agent.trainer(50_000, NullWitness()) as trainer:
        trainer.run(agent.env_seeds())
    assert trainer.worker_restarts > 0
    plain = factory_of("CartPole-v1")
    with closing(make_source("grouped", plain, describe(plain), 20, 1)) as source:
        evaluation = evaluate(agent.policy, source, range(20), 100)
    told = f"{trainer.worker_restarts} restarts, {trainer.watch.train_s:.0f} s, {evaluation.mean}"
    sys.stdout.write(told + "\n")
    assert evaluation.mean >= 450.0, told
