"""A training that was saved and goes on in a fresh agent is the one that was never stopped.

Everything goes through JSON and tensors that share no memory with the agent, as in a checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

from fastdqn import DQN
from fastdqn.envs.tensor import make_tensor_env
from fastdqn.training.callbacks import Callback
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import run_by_graphs
from tests.masked import MaskedCounterEnv
from tests.saved_trainings import differences, finish, restored, save, train_to

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


class MaskedCartPole(gym.Wrapper[Any, Any, Any, Any]):
    """Forbids to push a pole that leans far back further back."""

    def reset(self, **settings: Any) -> Any:
        obs, info = super().reset(**settings)
        return obs, {**info, "action_mask": self.mask(obs)}

    def step(self, action: Any) -> Any:
        obs, *flags, info = super().step(action)
        return obs, *flags, {**info, "action_mask": self.mask(obs)}

    def mask(self, obs: Any) -> Any:
        return np.array([obs[2] > -0.05, obs[2] < 0.05], np.int8)


def masked_cartpole(**settings: Any) -> DQN:
    return DQN(lambda: MaskedCartPole(gym.make(CARTPOLE)), **{**SMALL, **settings})


def frozen_lake(**settings: Any) -> DQN:
    return DQN(FROZEN_LAKE, **{**SMALL, **settings})


def given_tensors(**settings: Any) -> DQN:
    return DQN(make_tensor_env(CARTPOLE, 4, "cpu"), **{**SMALL, "num_workers": None, **settings})


def given_vector(**settings: Any) -> DQN:
    """Environments that are reset in a step of its own: such rows are not whole."""
    envs = SyncVectorEnv([partial(gym.make, CARTPOLE)] * 4)
    return DQN(envs, **{**SMALL, "num_workers": None, **settings})


AGENTS: dict[str, Make] = {
    "rows that are not whole": partial(given_vector, **PRIORITIZED),
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


QUICK = (
    "rows that are not whole",
    "native prioritized",
    "groups",
    "masks",
    "frozen lake",
    "tensors prioritized",
    "noisy",
)
ALL = AGENTS | COMPILED
slow = pytest.mark.slow
EACH = [name if name in QUICK else pytest.param(name, marks=slow) for name in ALL]


@pytest.mark.parametrize("name", EACH)
def test_two_calls_of_learn_are_the_same_with_save_and_load_between_them(
    name: str, one_thread: None
) -> None:
    make = ALL[name]
    agent = make().learn(203)
    torch.rand(3, generator=agent.learner.generator)  # as batches of the caller's own do
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
    "host": partial(cartpole, **PRIORITIZED, execution="native"),
    "host, groups": partial(cartpole, env_groups=2, replay_ratio=0.6, eval_interval=80),
    "host, lake": partial(frozen_lake, eval_interval=70, eval_episodes=4),
    "host, masks": partial(masked_cartpole, objective="munchausen"),
}
IN_THE_MIDDLE_SLOWLY: dict[str, Make] = {
    "in C": partial(cartpole, **TENSORS, execution="native"),
    "compiled": partial(cartpole, **TENSORS, execution="compile", **PRIORITIZED),
    "iqn": partial(cartpole, **TENSORS, objective="iqn"),
    "rainbow": partial(AGENTS["rainbow"], **TENSORS),
    "given": given_tensors,
    "host, compiled": partial(cartpole, execution="compile", replay_ratio=0.5),
    "host, workers": partial(cartpole, num_workers=2, env_groups=2, noisy=True, n_step=3),
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


# In an agent that has trained already: every tensor is written where it lies


def addresses(agent: DQN) -> list[int]:
    """Return where the tensors lie that graphs, compiled steps and C read and write."""
    sampler = agent._own_sampler
    tensors = [*agent.learner.state.written(), agent.learner.state.learning_rate]
    tensors += [*sampler.written(), *agent.replay_tensors().values()]
    if agent._tensor_rollout is None:
        tensors += [agent.replay.window, agent.replay.valid.order]
    return [tensor.data_ptr() for tensor in tensors]


@pytest.mark.parametrize(
    "name",
    [
        "native prioritized",
        "rows that are not whole",
        "tensors prioritized",
        pytest.param("prioritized", marks=slow),
    ],
)
def test_an_agent_that_has_gone_further_goes_back_in_place(name: str, one_thread: None) -> None:
    agent = ALL[name]().learn(203)
    saved, twin = save(agent), copy.deepcopy(agent)
    agent.learn(180)
    places = addresses(agent)
    restored(agent, saved)
    assert addresses(agent) == places
    assert differences(twin, agent) == []
    twin.learn(90)
    agent.learn(90)
    assert_same_training(twin, agent)


@pytest.mark.parametrize("target", [pytest.param("soft", marks=slow), "hard"])
def test_recorded_graphs_go_on_with_a_restored_state(target: str, one_thread: None) -> None:
    settings = {**PRIORITIZED, "target": target, "target_period": 7 if target == "hard" else 0}
    agent, cuda = cartpole(**settings).learn(150), RecordingCuda()
    saved, eager = save(agent), copy.deepcopy(agent)
    run_by_graphs(agent.learner, cuda)
    agent.learner.execute_as("cudagraph")
    for updates in (1, 2, 4):
        agent.learner.learn(agent._own_sampler, updates)
    captures = cuda.captures()
    restored(agent, saved)
    for one in (agent, eager):
        for updates in (4, 2, 1, 4):
            one.learner.learn(one._own_sampler, updates)
    assert cuda.captures() == captures > 0
    assert differences(eager.learner, agent.learner) == []
    assert differences(eager._own_sampler, agent._own_sampler) == []
