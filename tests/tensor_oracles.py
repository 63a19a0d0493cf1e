"""Tensor environments whose every transition can be checked from its contents alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor

from fastdqn.envs.tensor.cartpole import CartPole
from fastdqn.envs.tensor.protocol import TensorStep
from fastdqn.transition import Transitions
from tests.oracles import CounterRules

NUM_ACTIONS = 3


class TensorCounter:
    """Many CounterEnvs in one: shows [env_id, episode, t]; the reward encodes all and the action.

    Only a TensorEnv; it writes into the same tensors at every step, as simulators do.
    `bad_at` makes one environment return a NaN or an infinity in its n-th step.
    """

    env_id = "TensorCounter"
    single_observation_space: Space[Any] = Box(0, 4096, (3,), np.float32)
    single_action_space = Discrete(NUM_ACTIONS)

    def __init__(self, num_envs: int, rules: CounterRules | None = None) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.rules = rules or CounterRules((3,))
        self._lengths = torch.tensor(self.rules.lengths, dtype=torch.int32)
        self._ids = torch.arange(num_envs, dtype=torch.int32)
        self._episode = torch.full((num_envs,), -1, dtype=torch.int32)
        self._t = torch.zeros(num_envs, dtype=torch.int32)
        self._steps = torch.zeros(num_envs, dtype=torch.int32)
        self._obs, self._final = torch.zeros(num_envs, 3), torch.zeros(num_envs, 3)
        self.bad_at: dict[str, tuple[int, int, float]] = {}

    def reset(self, seed: int) -> Tensor:
        self._episode.add_(1)
        self._t.zero_()
        return self._observe(self._obs)

    def step(self, action: Tensor) -> TensorStep:
        reward = ((self._ids * 4096 + self._episode) * 64 + self._t) * 4 + action
        self._t.add_(1)
        final = self._observe(self._final)
        ended = self._t == self._lengths[(self._ids + self._episode) % len(self._lengths)]
        terminates = torch.full_like(ended, self.rules.ends_by == "terminated")
        if self.rules.ends_by == "alternating":
            terminates = self._episode % 2 == 0
        self._episode.add_(ended)
        self._t.copy_(self._t.masked_fill(ended, 0))
        self._steps.add_(1)
        obs, rewards = self._observe(self._obs), reward.float()
        rewards = self._spoil("reward", rewards)
        final.copy_(self._spoil("final_obs", final))
        obs.copy_(self._spoil("obs", obs))
        return TensorStep(obs, final, rewards, ended & terminates, ended & ~terminates)

    def close(self) -> None:
        return

    def _observe(self, place: Tensor) -> Tensor:
        return place.copy_(torch.stack((self._ids, self._episode, self._t), 1))

    def _spoil(self, what: str, values: Tensor) -> Tensor:
        env, step, value = self.bad_at.get(what, (0, -1, math.nan))
        bad = (self._ids == env) & (self._steps == step)
        return torch.where(bad.reshape(-1, *[1] * (values.ndim - 1)), value, values)


class PureCounter(TensorCounter):
    """The same, as a PureTensorEnv that needs one random number and adds none of it."""

    num_random = 1

    @property
    def state(self) -> tuple[Tensor, ...]:
        return self._episode, self._t, self._steps, self._obs, self._final

    def advance(self, action: Tensor, uniform: Tensor) -> TensorStep:
        assert uniform.shape == (self.num_envs, 1)
        return self.step(action)


class PureChain:
    """Two states, shown one-hot: `right` goes on, and from the second ends with +1.

    Under gamma 0.5: Q* = CHAIN_Q of the oracles. A step cuts the episode with probability 1/8.
    """

    env_id = "PureChain"
    num_random = 1
    single_observation_space: Space[Any] = Box(0, 1, (2,), np.float32)
    single_action_space = Discrete(2)

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.state = (torch.zeros(num_envs, dtype=torch.int64),)

    def reset(self, seed: int) -> Tensor:
        self.state[0].zero_()
        return self._observe(self.state[0])

    def step(self, action: Tensor) -> TensorStep:
        return self.advance(action, torch.rand(self.num_envs, 1))

    def advance(self, action: Tensor, uniform: Tensor) -> TensorStep:
        (place,) = self.state
        right = action == 1
        terminated = right & (place == 1)
        truncated = (uniform[:, 0] < 1 / 8) & ~terminated
        after = torch.where(right, 1, 0)
        final_obs = self._observe(after)
        place.copy_(after.masked_fill(terminated | truncated, 0))
        return TensorStep(
            self._observe(place), final_obs, terminated.float(), terminated, truncated
        )

    def close(self) -> None:
        return

    def _observe(self, place: Tensor) -> Tensor:
        return torch.stack((place == 0, place == 1), 1).float()


def assert_counts(batch: Transitions, rules: CounterRules) -> None:
    """Check every transition of a counter against the rules, in plain Python."""
    fields = (batch.obs, batch.action, batch.reward, batch.next_obs)
    flags = (batch.terminated, batch.truncated)
    rows = zip(*(field.tolist() for field in (*fields, *flags)), strict=True)
    for obs, action, reward, next_obs, terminated, truncated in rows:
        env, episode, t = (int(number) for number in obs)
        assert next_obs == [env, episode, t + 1]
        assert reward == rules.reward(env, episode, t, action)
        assert (terminated, truncated) == rules.flags(env, episode, t)


class GlitchyCartPole(CartPole):
    """CartPole that pays a NaN, or shows an infinity, in a share of its steps and first ones."""

    share = 0.1

    def advance(self, action: Tensor, uniform: Tensor) -> TensorStep:
        step = super().advance(action, uniform)
        pays, shows = uniform[:, 0] < self.share, (uniform[:, 1] < self.share).unsqueeze(1)
        obs, final = (torch.where(shows, torch.inf, o) for o in (step.obs, step.final_obs))
        reward = torch.where(pays, torch.nan, step.reward)
        return TensorStep(obs, final, reward, step.terminated, step.truncated)
