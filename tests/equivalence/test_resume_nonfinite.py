"""A training among numbers that are not finite goes on, once saved, as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from fastdqn import DQN
from fastdqn.envs.tensor.protocol import TensorStep
from tests.equivalence.test_resume_in_memory import PRIORITIZED, SMALL, Heard
from tests.saved_trainings import differences, finish, restored, save, train_to
from tests.tensor_oracles import GlitchyCartPole, TensorCounter

CARTPOLE = "CartPole-v1"
TOTAL = 500
Make = Callable[..., DQN]


class Glitchy(gym.Wrapper[Any, Any, Any, Any]):
    """Pays a NaN, shows an infinity, or begins with a NaN, now and then."""

    def reset(self, **given: Any) -> Any:
        obs, info = super().reset(**given)
        return self._spoiled(obs, np.nan), info

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        pays = self.np_random.random() < 0.05
        return self._spoiled(obs, -np.inf), np.nan if pays else reward, *rest

    def _spoiled(self, obs: Any, value: float) -> Any:
        if self.np_random.random() < 0.05:
            obs = obs.copy()
            obs[2] = value
        return obs


class GlitchyTensors(GlitchyCartPole):
    """Likewise on the device; first observations of later episodes among them."""

    share = 0.05


class GlitchyCounters(TensorCounter):
    """Environments on the device that do not come back."""

    steps = 0

    def step(self, action: Tensor) -> TensorStep:
        step = super().step(action)
        self.steps += 1
        step.reward[self.steps % 2] *= torch.nan if self.steps % 3 == 0 else 1.0
        return step


def host(**settings: Any) -> DQN:
    return DQN(lambda: Glitchy(gym.make(CARTPOLE)), **{**SMALL, "log_interval": 60, **settings})


def tensors(**settings: Any) -> DQN:
    more = {"num_workers": None, "log_interval": 60}
    return DQN(GlitchyTensors(4), **{**SMALL, **more, **settings})


AGENTS: dict[str, Make] = {
    "host, groups": partial(host, env_groups=2, **PRIORITIZED, eval_interval=90, eval_episodes=3),
    "tensors, prioritized": partial(tensors, **PRIORITIZED),
}
SLOWLY: dict[str, Make] = {
    "host": host,
    "tensors": tensors,
    "host, in C": partial(host, execution="native", **PRIORITIZED),
    "host, workers": partial(host, env_groups=2, num_workers=2, n_step=3),
    "tensors, in C": partial(tensors, execution="native"),
    "tensors, compiled": partial(tensors, execution="compile", **PRIORITIZED),
}
ALL = AGENTS | SLOWLY
EACH = [*AGENTS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWLY)]
each_policy = pytest.mark.parametrize("on_nonfinite", ["skip", "replace"])


class HeardAll(Heard):
    """What a training says about numbers that are not finite, too."""

    def on_nonfinite(self, env_steps: int, message: str) -> None:
        self.said.append((env_steps, message))


@each_policy
@pytest.mark.parametrize("name", EACH)
def test_a_training_that_was_stopped_is_the_one_that_was_not(
    name: str, on_nonfinite: str, one_thread: None
) -> None:
    make = partial(ALL[name], on_nonfinite=on_nonfinite)
    agent, heard, after = make(), HeardAll(), HeardAll()
    saved = train_to(agent, TOTAL, 214, heard)
    again = restored(make(), saved)
    trainer = finish(again, seen=after)
    assert trainer.status == "completed"
    assert trainer.rollout.nonfinite == trainer.nonfinite.transitions > 30
    assert differences(agent, again) == []
    count = len(after.said)
    assert heard.said[-count:] == after.said
    assert len(heard.said) > count > 5
    assert sum("not finite" in str(each) for each in after.said) >= 4
    agent.learn(100)  # and both go on, in new episodes
    again.learn(100)
    assert differences(agent, again) == []


@pytest.mark.parametrize("on_nonfinite", ["skip", pytest.param("replace", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["host", "tensors, prioritized"])
def test_it_goes_on_wherever_it_was_stopped(name: str, on_nonfinite: str, one_thread: None) -> None:
    make = partial(ALL[name], on_nonfinite=on_nonfinite)
    for stop_at in (1, 44, 90, 96, 100, 105, 110):
        agent = make()
        again = restored(make(), saved := train_to(agent, 130, stop_at))
        finish(again)
        assert differences(agent, again) == [], stop_at
        assert again.inexact == ()
        twice = restored(again, saved)  # in place, in an agent that has gone further
        finish(twice)
        assert differences(agent, twice) == [], stop_at


# What does not come back is counted on


def counts(name: str, saved: Any, make: Make) -> tuple[Any, list[Any]]:
    heard = HeardAll()
    trainer = finish(restored(make(), saved), seen=heard)
    return trainer, [each[1] for each in heard.said if isinstance(each, tuple)]


@each_policy
@pytest.mark.parametrize("name", ["host", "tensors"])
def test_without_the_ring_the_counts_go_on(name: str, on_nonfinite: str, one_thread: None) -> None:
    make = partial(ALL[name], on_nonfinite=on_nonfinite, eval_interval=0)
    agent, steps = make(), 0
    with agent.trainer(TOTAL, HeardAll()) as trainer:
        trainer.begin(agent.env_seeds())
        while steps < 150:
            trainer.vector_step()
            steps = agent._counts()[0]
        saved, before = save(agent, replay=False), trainer.rollout.nonfinite
        assert before > trainer.nonfinite.transitions > 0
    after, messages = counts(name, saved, make)
    assert after.nonfinite.transitions > before
    new = [int(words.split(": ")[1].split(" ")[0]) for words in messages]
    assert min(new) > 0
    assert sum(new) + trainer.nonfinite.transitions == after.nonfinite.transitions


@each_policy
def test_environments_that_do_not_come_back_begin_anew_and_the_counts_go_on(
    on_nonfinite: str, one_thread: None
) -> None:
    def make() -> DQN:
        more = {"num_workers": None, "log_interval": 60, "on_nonfinite": on_nonfinite}
        return DQN(GlitchyCounters(4), **{**SMALL, **more})

    agent = make()
    saved = train_to(agent, TOTAL, 214)
    again = restored(make(), saved)
    assert "does not come back" in again.inexact[0]
    trainer = finish(again)
    assert trainer.status == "completed"
    assert trainer.nonfinite.transitions == trainer.rollout.nonfinite > 30
