"""A training that was saved and goes on in a fresh agent is the one that was never stopped.

Everything goes through JSON and tensors that share no memory with the agent, as in a checkpoint.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from fastdqn import DQN
from fastdqn.envs.tensor import make_tensor_env
from fastdqn.training.callbacks import Callback
from tests.masked import MaskedCounterEnv
from tests.saved_trainings import Saved, differences, finish, restored, save, train_to

CARTPOLE, FROZEN_LAKE = "CartPole-v1", "FrozenLake-v1"
SMALL: dict[str, Any] = {
    "num_envs": 4,
    "num_workers": 0,
    "learning_starts": 40,
    "batch_size": 8,
    "buffer_size": 150,
    "hidden_sizes": (16,),
    "execution": "eager",
}
TENSORS = {"vectorizer": "tensor"}
PRIORITIZED = {"replay": "prioritized", "n_step": 3}
Make = Callable[..., DQN]


def cartpole(**settings: Any) -> DQN:
    return DQN(CARTPOLE, **{**SMALL, **settings})


def masked(**settings: Any) -> DQN:
    """Counters whose masks and final masks matter."""
    make = partial(MaskedCounterEnv, episode_length=(3, 5, 4))
    return DQN(make, **{**SMALL, **settings})


def frozen_lake(**settings: Any) -> DQN:
    return DQN(FROZEN_LAKE, **{**SMALL, **settings})


def given_tensors(**settings: Any) -> DQN:
    return DQN(make_tensor_env(CARTPOLE, 4, "cpu"), **{**SMALL, "num_workers": None, **settings})


AGENTS: dict[str, Make] = {
    "plain": cartpole,
    "native": partial(cartpole, execution="native"),
    "native prioritized": partial(cartpole, execution="native", **PRIORITIZED),
    "prioritized": partial(cartpole, **PRIORITIZED),
    "groups": partial(cartpole, env_groups=2, **PRIORITIZED),
    "newest, rmsprop": partial(cartpole, replay="newest", optimizer="rmsprop"),
    "amsgrad, falling rate": partial(
        cartpole, amsgrad=True, weight_decay=0.01, lr_schedule="linear", learning_rate_end=1e-5
    ),
    "hard target, ladder": partial(
        cartpole, target="hard", target_period=7, epsilon_ladder=True, replay_ratio=0.4
    ),
    "target by episodes": partial(cartpole, target="hard", target_period_episodes=3),
    "frozen lake": frozen_lake,
    "frozen lake, C51": partial(frozen_lake, objective="c51", v_min=-1.0, v_max=1.0, num_atoms=11),
    "masks": masked,
    "noisy": partial(cartpole, noisy=True),
    "rainbow": partial(
        cartpole, noisy=True, dueling=True, objective="c51", v_min=0, v_max=100, **PRIORITIZED
    ),
    "iqn": partial(cartpole, objective="iqn"),
    "munchausen": partial(cartpole, objective="munchausen"),
    "tensors": partial(cartpole, **TENSORS),
    "tensors in C": partial(cartpole, **TENSORS, execution="native"),
    "tensors prioritized": partial(cartpole, **TENSORS, **PRIORITIZED),
    "given tensors": given_tensors,
}
COMPILED: dict[str, Make] = {
    "compiled": partial(cartpole, execution="compile", **PRIORITIZED),
    "compiled tensors": partial(cartpole, **TENSORS, execution="compile"),
}


def assert_same_training(one: DQN, other: DQN) -> None:
    assert differences(one, other) == []


QUICK = ("native prioritized", "groups", "masks", "frozen lake", "tensors prioritized", "noisy")
ALL = AGENTS | COMPILED
slow = pytest.mark.slow
EACH = [name if name in QUICK else pytest.param(name, marks=slow) for name in ALL]


@pytest.mark.parametrize("name", EACH)
def test_two_calls_of_learn_are_the_same_with_save_and_load_between_them(
    name: str, one_thread: None
) -> None:
    make = ALL[name]
    agent = make().learn(203)
    saved, twin = save(agent), copy.deepcopy(agent)
    again = restored(make(), saved)
    assert again.inexact == ()
    assert differences(twin, again) == []
    agent.learn(180)
    again.learn(180)
    assert_same_training(agent, again)
    assert agent.describe() == again.describe()
    assert int(agent.learner.state.updates) > 20


# In the middle of a training


class Heard(Callback):
    """Everything that a training says, but seconds."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def on_episodes(self, episodes: Any) -> None:
        self.said += episodes

    def on_report(self, report: Any) -> None:
        seconds = dict.fromkeys(("sps", "wall_s", "time_left_s"), 0.0)
        self.said.append(repr(replace(report, time_share={}, **seconds)))

    def on_evaluation(self, env_steps: int, evaluation: Any, reached: bool) -> None:
        numbers = evaluation.returns.tolist(), evaluation.lengths.tolist(), evaluation.best
        self.said.append((env_steps, numbers, reached))


IN_THE_MIDDLE: dict[str, Make] = {
    "plain": partial(cartpole, **TENSORS),
    "prioritized": partial(cartpole, **TENSORS, **PRIORITIZED, priority_beta_start=0.1),
    "evaluated": partial(
        cartpole, **TENSORS, eval_interval=80, eval_episodes=6, log_interval=50, amsgrad=True
    ),
    "falling rate, ladder": partial(
        cartpole, **TENSORS, lr_schedule="cosine", epsilon_ladder=True, replay_ratio=0.3
    ),
    "target by episodes": partial(
        cartpole, **TENSORS, target="hard", target_period_episodes=3, log_interval=60
    ),
    "rainbow": partial(AGENTS["rainbow"], **TENSORS),
    "given": given_tensors,
}
IN_THE_MIDDLE_SLOWLY: dict[str, Make] = {
    "in C": partial(cartpole, **TENSORS, execution="native"),
    "compiled": partial(cartpole, **TENSORS, execution="compile", **PRIORITIZED),
    "iqn": partial(cartpole, **TENSORS, objective="iqn"),
}
MIDDLES = [*IN_THE_MIDDLE, *(pytest.param(each, marks=slow) for each in IN_THE_MIDDLE_SLOWLY)]


@pytest.mark.parametrize("name", MIDDLES)
def test_a_training_that_was_stopped_is_the_one_that_was_not(name: str, one_thread: None) -> None:
    make = (IN_THE_MIDDLE | IN_THE_MIDDLE_SLOWLY)[name]
    agent, heard, after = make(), Heard(), Heard()
    saved = train_to(agent, 500, 214, heard)
    again = restored(make(), saved)
    trainer = finish(again, seen=after)
    assert trainer.status == "completed"
    assert_same_training(agent, again)
    assert again.describe() == agent.describe()
    count = len(after.said)
    assert heard.said[-count:] == after.said
    assert len(heard.said) > count > 5
    again.learn(100)  # and both go on, in new episodes
    agent.learn(100)
    assert_same_training(agent, again)
