"""Trains for real while workers crash and stall: what they cost is their episodes alone."""

from __future__ import annotations

import sys
from contextlib import closing

import pytest

from fastdqn import DQN
from fastdqn.envs.description import describe
from fastdqn.envs.sources.source import make_source
from fastdqn.envs.specs.ids import factory_of
from fastdqn.presets import preset_config
from fastdqn.training.callbacks import Callback
from fastdqn.training.evaluation import evaluate
from tests.frail import frail_cartpole

pytestmark = pytest.mark.learning


def test_cartpole_that_crashes_and_stalls_still_balances() -> None:
    """Its evaluations, too, play in environments that crash and stall."""
    settings = {**vars(preset_config("cartpole")), "num_workers": 4}
    agent = DQN(frail_cartpole, **{k: v for k, v in settings.items() if k != "env_id"})
    with agent.trainer(None, Callback()) as trainer:
        assert trainer.run(agent.env_seeds()) == "solved"
        assert trainer.evaluator is not None
        evaluated_in = trainer.evaluator._source
        assert evaluated_in is not None
        restarts = trainer.worker_restarts, evaluated_in.num_restarts
    assert sum(restarts) > 0
    plain = factory_of("CartPole-v1")
    with closing(make_source("grouped", plain, describe(plain), 20, 1)) as source:
        evaluation = evaluate(agent.policy, source, range(20), 100)
    message = (
        f"{restarts} restarts in {trainer.rollout.env_steps} env steps, "
        f"{trainer.watch.seconds} s, greedy mean {evaluation.mean}"
    )
    sys.stdout.write(message + "\n")
    assert evaluation.mean >= 450.0, message
