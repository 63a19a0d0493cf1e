"""Returns beyond the support of C51: when a line is shown, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from fastdqn import DQN, Callback, DQNObjective
from fastdqn.algorithms.distributional import C51Objective
from fastdqn.replay import ReplayBuffer
from fastdqn.training.value_range import ValueRange, value_range_of

pytestmark = pytest.mark.usefixtures("no_plots", "one_thread")


def ring_of(rewards: list[float], ends: str) -> ReplayBuffer:
    """Return a ring with one episode; `ends` is terminated, truncated, or empty: it runs on."""
    ring = ReplayBuffer(100, 1, (1,))
    obs = torch.zeros(1, 1)
    ring.begin(obs)
    for number, reward in enumerate(rewards):
        last = number == len(rewards) - 1
        flags = [torch.tensor([last and ends == name]) for name in ("terminated", "truncated")]
        ended = np.flatnonzero(np.array([last and bool(ends)]))
        arguments = torch.zeros(1, dtype=torch.int64), torch.tensor([reward]), *flags, obs
        ring.write(*arguments, final_obs=obs, ended=ended)
    return ring


def range_of(low: float, high: float, gamma: float = 0.5) -> ValueRange:
    return value_range_of(C51Objective(v_min=low, v_max=high), gamma)


def test_a_return_is_discounted_exactly() -> None:
    """1 + 2/2 + 4/4 = 3 from the first step on, 4 from the last. Undiscounted it were 7."""
    ring = ring_of([1.0, 2.0, 4.0], "terminated")
    assert range_of(-1, 4.0).beyond(ring, 3) == []
    (message,) = range_of(-1, 3.999).beyond(ring, 3)
    assert "a discounted return of 4 is above --v-max 3.999" in message
    assert message.endswith("raise --v-max")
    (message,) = range_of(3.001, 5).beyond(ring, 3)
    assert "a discounted return of 3 is below --v-min 3.001" in message
    assert message.endswith("lower --v-min")


@pytest.mark.parametrize("ends", ["", "truncated"])
def test_what_goes_on_counts_once_no_value_of_the_support_brings_it_back(ends: str) -> None:
    """1 + 1/2 + V/4 with V from the support: at least 1.5 - 8/4, at most 1.5 + 1/4."""
    ring = ring_of([1.0, 1.0], ends)
    assert range_of(-8, 1.0).beyond(ring, 2) == []
    (message,) = range_of(-1, 0.9).beyond(ring, 2)
    assert "return of 1.25 is above" in message


def test_a_time_limit_leaves_the_value_of_going_on() -> None:
    """A reward of 1 for ever is worth 100. From the last step on 1 was observed, below v_min."""
    ring = ring_of([1.0] * 90, "truncated")
    assert range_of(50, 101, 0.99).beyond(ring, 90) == []
    (message,) = range_of(50, 101, 0.99).beyond(ring_of([1.0] * 90, "terminated"), 90)
    assert "a discounted return of 1 is below --v-min 50" in message


def test_each_bound_is_reported_once_and_other_objectives_never_look() -> None:
    both = range_of(1.5, 1.6)
    assert len(both.beyond(ring_of([1.0, -9.0], "terminated"), 2)) == 1
    assert len(both.beyond(ring_of([9.0], "terminated"), 3)) == 1
    assert both.beyond(ring_of([-99.0, 99.0], "terminated"), 4) == []
    assert value_range_of(DQNObjective(), 0.9).beyond(ring_of([1e9], "terminated"), 2) == []


def test_it_looks_when_a_quarter_is_new_and_at_the_end() -> None:
    ring, watched = ring_of([0.0] * 90, "truncated"), range_of(-1, 1)
    assert watched.beyond(ring, 90) == []
    for env_steps, last, expected in ((99, False, 90), (99, True, 99), (125, False, 125)):
        watched.beyond(ring, env_steps, last=last)
        assert watched.seen == expected


class Generous(gym.Env[Any, Any]):
    """Three steps of reward 10."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)

    def reset(self, **_: Any) -> Any:
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, _: Any) -> Any:
        self.t += 1
        return np.zeros(2, np.float32), 10.0, self.t == 3, False, {}


SMALL: dict[str, Any] = {
    "objective": "c51",
    "batch_size": 8,
    "buffer_size": 64,
    "learning_starts": 16,
    "hidden_sizes": (8,),
    "execution": "eager",
    "gamma": 0.5,
    "log_interval": 20,
}


@pytest.mark.parametrize(("v_max", "lines"), [(17.5, 0), (17.4, 1)])
def test_the_log_and_the_terminal_of_a_run_show_it_once(
    v_max: float, lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 + 5 + 2.5 = 17.5; undiscounted it were 30."""
    own: dict[str, Any] = {"num_envs": 2, "num_workers": 0, "eval_episodes": 2}
    agent = DQN(Generous, v_max=v_max, **own, **SMALL)
    agent.learn(total_timesteps=60, run_dir=tmp_path / "run")
    agent.learn(total_timesteps=60)
    shown = capsys.readouterr().out
    logged = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    for text in (shown, logged):
        assert text.count("a discounted return of 17.5 is above --v-max 17.4") == lines
        assert text.count("--v-max") == 2 * lines


def test_tensor_environments_are_looked_at_too() -> None:
    messages = []

    class Noting(Callback):
        def on_returns_beyond(self, env_steps: int, message: str) -> None:
            messages.append((env_steps, message))

    settings = {**SMALL, "vectorizer": "tensor", "num_envs": 2, "gamma": 0.9}
    DQN("CartPole-v1", v_max=5, **settings).learn(total_timesteps=200, callback=Noting())
    assert len(messages) == 1
    assert "above --v-max 5," in messages[0][1]
