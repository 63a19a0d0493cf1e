"""Trains for real: the presets solve their environments, and what must not learn does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastdqn import DQN, Config
from fastdqn.presets import preset_config
from fastdqn.training.callbacks import Callback

pytestmark = pytest.mark.learning

UNSEEN_SEED = 987_654


def trained(config: Config) -> tuple[DQN, str]:
    agent = DQN.from_config(config)
    with agent.trainer(None, Callback()) as trainer:
        status = trainer.run(agent.env_seeds())
    return agent, status


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("preset", "goal"), [("lunarlander", 200.0), ("cartpole", 475.0)])
def test_a_preset_solves_its_environment_and_a_second_evaluation_agrees(
    preset: str, goal: float, seed: int
) -> None:
    agent, status = trained(replace(preset_config(preset), seed=seed))
    assert status == "solved"
    assert agent.evaluate(100, seed=UNSEEN_SEED).mean >= goal


def test_a_learning_rate_of_zero_solves_nothing() -> None:
    config = replace(preset_config("cartpole"), learning_rate=0.0, total_timesteps=40_000)
    agent, status = trained(config)
    assert int(agent.learner.state.updates) > 9_000
    assert status == "completed"


def test_the_bare_lesson_does_not_learn_what_the_last_lesson_learns() -> None:
    returns = {}
    for lesson in ("lesson-bare", "lesson-double"):
        config = replace(
            preset_config(lesson),
            env_id="CartPole-v1",
            total_timesteps=20_000,
            epsilon_decay_steps=2_000,
        )
        agent, _ = trained(config)
        returns[lesson] = agent.evaluate(20, seed=UNSEEN_SEED).mean
    assert returns["lesson-bare"] < 60.0
    assert returns["lesson-double"] > 120.0
