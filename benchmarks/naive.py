"""The plain tutorial code that every speed here is compared with; none of it is fastdqn's.

`NaiveDQN` is the whole loop: one environment, a deque of tuples, one eager update per step,
everything converted by hand, the way that DQN is taught. `NaiveLearner` is its update alone. Same
network, batch, loss, optimizer and soft target as fastdqn's side of the comparison. Since this
code stays as it is, a slowdown that hits every way in which fastdqn runs shows against it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from itertools import count

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdqn.envs.description import describe
from fastdqn.envs.specs.ids import factory_of

Memory = deque[tuple[np.ndarray, int, float, np.ndarray, bool]]


class NaiveLearner:
    """The update of a tutorial's Double DQN: modules, autograd, `torch.optim.Adam`, a soft target.

    Args:
        inputs: Numbers of one observation.
        outputs: Actions.
        hidden: Units of both hidden layers.
        device: Where it learns.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: int, device: torch.device | str = "cpu"
    ) -> None:
        self.online = self._network(inputs, hidden, outputs).to(device)
        self.target = self._network(inputs, hidden, outputs).to(device)
        self.target.load_state_dict(self.online.state_dict())
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=5e-4)

    @staticmethod
    def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )

    def update(
        self, states: Tensor, actions: Tensor, rewards: Tensor, next_states: Tensor, alive: Tensor
    ) -> None:
        """Learn once from a batch.

        Args:
            states: [B, inputs] float32.
            actions: [B, 1] int64.
            rewards: [B] float32.
            next_states: [B, inputs] float32.
            alive: [B] float32, 0 where the episode terminated.
        """
        with torch.no_grad():
            best = self.online(next_states).argmax(1, keepdim=True)
            td_target = rewards + 0.99 * alive * self.target(next_states).gather(1, best).squeeze(1)
        value = self.online(states).gather(1, actions).squeeze(1)
        loss = functional.smooth_l1_loss(value, td_target)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.online.parameters(), 10.0)
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
                old.lerp_(new, 0.005)


class NaiveDQN:
    """A tutorial's Double DQN that can be run a few steps at a time.

    Args:
        env_id: Gymnasium id.
        hidden: Units of both hidden layers.
        batch_size: Transitions per update.
    """

    def __init__(self, env_id: str, hidden: int = 64, batch_size: int = 64) -> None:
        self.env = gym.make(env_id)
        description = describe(factory_of(env_id))
        inputs, outputs = description.obs_shape[0], description.num_actions
        self.learner = NaiveLearner(inputs, outputs, hidden)
        self.memory: Memory = deque(maxlen=100_000)
        self.batch_size = batch_size
        self.steps = 0
        self.obs, _ = self.env.reset(seed=0)

    def run_for(self, seconds: float) -> float:
        """Train for a while and return env steps per second."""
        start = time.perf_counter()
        for done in count(1):
            self.step()
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return done / elapsed
        raise AssertionError

    def step(self) -> None:
        """Act, remember, learn once."""
        action = self.act()
        obs, reward, terminated, truncated, _ = self.env.step(action)
        self.memory.append((self.obs, action, float(reward), obs, terminated))
        self.obs = obs
        if terminated or truncated:
            self.obs, _ = self.env.reset()
        self.steps += 1
        if len(self.memory) >= self.batch_size:
            self.learn()

    def act(self) -> int:
        """Choose epsilon-greedily."""
        epsilon = 0.05 + 0.85 * np.exp(-self.steps / 20_000)
        if random.random() < epsilon:
            return int(self.env.action_space.sample())
        with torch.no_grad():
            return int(
                self.learner.online(torch.from_numpy(self.obs).unsqueeze(0)).argmax(1).item()
            )

    def learn(self) -> None:
        """One update of Double DQN and a soft target."""
        obs, action, reward, next_obs, terminated = zip(
            *random.sample(self.memory, self.batch_size), strict=True
        )
        states = torch.from_numpy(np.array(obs))
        actions = torch.tensor(action).unsqueeze(1)
        rewards = torch.tensor(reward, dtype=torch.float32)
        next_states = torch.from_numpy(np.array(next_obs))
        alive = 1.0 - torch.tensor(terminated, dtype=torch.float32)
        self.learner.update(states, actions, rewards, next_states, alive)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
