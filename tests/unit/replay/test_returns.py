"""Discounted returns of a ring, against a loop over its rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdqn.replay import ReplayBuffer
from fastdqn.replay.functional_ring import FunctionalRing
from fastdqn.replay.returns import discounted_returns, stored


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 40),
    capacity=st.integers(2, 16),
    num_envs=st.integers(1, 3),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 2**16),
    on_device=st.booleans(),
)
def test_each_return_is_that_of_a_loop_to_the_end_of_its_episode(
    *, steps: int, capacity: int, num_envs: int, gamma: float, seed: int, on_device: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kind = FunctionalRing if on_device else ReplayBuffer
    ring = kind(capacity * num_envs, num_envs, (1,))
    obs = torch.zeros(num_envs, 1)
    ring.begin(obs)
    history = []
    for _ in range(steps):
        reward = torch.randn(num_envs, generator=generator)
        draw = torch.rand(num_envs, generator=generator)
        terminated, truncated = draw < 0.1, draw > 0.9
        action = torch.zeros(num_envs, dtype=torch.int64)
        history.append((reward.double(), terminated, terminated | truncated))
        if isinstance(ring, FunctionalRing):
            ring.write(action, reward, terminated, truncated, obs, obs)
        else:
            ended = (terminated | truncated).nonzero()[:, 0].numpy()
            ring.write(action, reward, terminated, truncated, obs, final_obs=obs, ended=ended)
    total, factor = (found[stored(ring)] for found in discounted_returns(ring.ring, gamma))
    sums, factors = torch.zeros(num_envs).double(), torch.ones(num_envs).double()
    for row in range(1, 1 + len(total) // num_envs):
        reward, terminal, over = history[-row]
        sums = reward + torch.where(over, 0.0, gamma * sums)
        factors = torch.where(terminal, 0.0, gamma * torch.where(over, 1.0, factors))
        found = slice(len(total) - row * num_envs, len(total) - (row - 1) * num_envs)
        torch.testing.assert_close(total[found], sums)
        torch.testing.assert_close(factor[found], factors)


@pytest.mark.parametrize("kind", [FunctionalRing, ReplayBuffer])
def test_an_empty_ring_has_none(kind: type[FunctionalRing | ReplayBuffer]) -> None:
    assert len(stored(kind(6, 2, (1,)))) == 0
