"""Small parts for tests of learning: optimizers of closed form, a tabular network, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fastdqn.algorithms.objectives import DoubleDQNObjective
from fastdqn.replay import ReplayBuffer
from fastdqn.transition import Transitions

Slots = list[Tensor]


class Descent:
    """Plain gradient descent."""

    num_slots = 0

    def __call__(
        self, flat: Tensor, grad: Tensor, slots: Slots, step: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, Slots]:
        return flat - learning_rate * grad, []


class CountUp:
    """Adds 1 to every parameter, so that parameters count the updates."""

    num_slots = 0

    def __call__(
        self, flat: Tensor, grad: Tensor, slots: Slots, step: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, Slots]:
        return flat + 1.0, []


class StandStill:
    """Changes nothing."""

    num_slots = 0

    def __call__(
        self, flat: Tensor, grad: Tensor, slots: Slots, step: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, Slots]:
        return flat.clone(), []


@dataclass(frozen=True)
class Looking(DoubleDQNObjective):
    """Double DQN that looks at its priorities, at every update."""

    look: Callable[[Tensor], object] = id

    def loss(
        self, outputs: Tensor, passes: Sequence[Tensor], batch: Transitions, random: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        losses, priority = super().loss(outputs, passes, batch, random)
        self.look(priority)
        return losses, priority


class Table(nn.Module):
    """One free Q-value per state and action; observations are one-hot states."""

    def __init__(self, num_states: int, num_actions: int) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.zeros(num_states, num_actions))

    def forward(self, obs: Tensor) -> Tensor:
        return obs @ self.q


class Branches(nn.Module):
    """A user's own network: a shared layer, an advantage and a value, nested, with a buffer."""

    def __init__(self, obs_size: int = 4, num_actions: int = 2) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(obs_size, 6), nn.Tanh(), nn.LayerNorm(6))
        self.advantage = nn.Linear(6, num_actions, bias=False)
        self.value = nn.Linear(6, 1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, obs: Tensor) -> Tensor:
        hidden = self.shared(obs)
        advantage = self.advantage(hidden)
        q: Tensor = self.value(hidden) + self.scale * (advantage - advantage.mean(1, keepdim=True))
        return q


def one_hot(states: list[int], num_states: int) -> Tensor:
    """Return observations [B, num_states] float32 of the states."""
    return torch.eye(num_states)[torch.tensor(states)]


def transitions(
    states: list[int],
    actions: list[int],
    rewards: list[float],
    next_states: list[int],
    terminated: list[bool],
    *,
    num_states: int,
) -> Transitions:
    """Return transitions between the states of a Table, none truncated."""
    return Transitions(
        one_hot(states, num_states),
        torch.tensor(actions),
        torch.tensor(rewards),
        one_hot(next_states, num_states),
        torch.tensor(terminated),
        torch.zeros(len(states), dtype=torch.bool),
    )


def random_batch(
    seed: int = 0, size: int = 8, *, obs_size: int = 4, actions: int = 2, masked: bool = False
) -> Transitions:
    """Return random transitions, a quarter of them terminated; masks allow half of the actions."""
    generator = torch.Generator().manual_seed(seed)
    return Transitions(
        torch.randn(size, obs_size, generator=generator),
        torch.randint(actions, (size,), generator=generator),
        torch.randn(size, generator=generator),
        torch.randn(size, obs_size, generator=generator),
        torch.rand(size, generator=generator) < 0.25,
        torch.zeros(size, dtype=torch.bool),
        torch.rand(size, actions, generator=generator) < 0.5 if masked else None,
    )


def with_factors(batch: Transitions, seed: int = 0) -> Transitions:
    """Return the batch with random discounts, a third of them 0, and random weights."""
    generator, size = torch.Generator().manual_seed(seed), len(batch.action)
    discount = torch.rand(size, generator=generator) * 1.5 - 0.5
    weight = torch.rand(size, generator=generator) * 2
    return replace(batch, discount=discount.clamp(min=0.0), weight=weight)


def filled_ring(
    num_envs: int = 2,
    rows: int = 32,
    *,
    obs_size: int = 4,
    num_masked: int = 0,
    n_step: int = 1,
    device: str = "cpu",
) -> ReplayBuffer:
    """Return a full ring of random transitions; a quarter of them ended within the step."""
    sizes = (num_envs * rows, num_envs, (obs_size,))
    replay = ReplayBuffer(*sizes, seed=1, num_masked=num_masked, device=device, n_step=n_step)
    for seed in range(rows + 3):
        row = random_batch(seed, num_envs, obs_size=obs_size)
        masks = torch.rand(2, num_envs, num_masked, generator=torch.Generator().manual_seed(seed))
        mask, final_mask = (masks < 0.5).unbind(0) if num_masked else (None, None)
        ended = np.flatnonzero(row.terminated.numpy())
        replay.write(
            row.action.to(device),
            row.reward.to(device),
            row.terminated.to(device),
            row.truncated.to(device),
            row.obs.to(device),
            final_obs=row.next_obs.to(device),
            ended=ended,
            action_mask=None if mask is None else mask.to(device),
            final_action_mask=None if final_mask is None else final_mask.to(device),
        )
    return replay
