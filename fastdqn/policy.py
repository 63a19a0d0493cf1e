"""Acting: epsilon-greedy while training, greedy and frozen afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdqn.networks import FlatNetwork

__all__ = ["Policy", "epsilon_greedy"]


def epsilon_greedy(q: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Choose an action for every environment, each with an exploration draw of its own.

        a = argmax_a Q(s, a)    with probability 1 - epsilon
        a ~ uniform             with probability epsilon

    Args:
        q: [N, A] float32.
        epsilon: Probability of exploring, in [0, 1].
        generator: On the device of `q`; advanced by the same amount whatever epsilon is.

    Returns:
        [N] int64 on the device of `q`.

    Source:
        Sutton, Barto (2018), Reinforcement learning, second edition, section 2.2.
    """
    count, num_actions = q.shape
    explore = torch.rand(count, generator=generator, device=q.device) < epsilon
    anything = torch.randint(num_actions, (count,), generator=generator, device=q.device)
    return torch.where(explore, anything, q.argmax(1))


class Policy:
    """Turns observations into actions with the parameters that the learner is writing.

    Args:
        network: Shared with the learner; its latest parameters act.
        seed: Seed of the exploration.
    """

    def __init__(self, network: FlatNetwork, seed: int = 0) -> None:
        self.network = network
        self._parameters = network.views(network.flat)
        self._generator = torch.Generator(network.flat.device).manual_seed(seed)

    def act(self, obs: Tensor, epsilon: float) -> Tensor:
        """Explore with probability `epsilon`. Hot path; never waits for the device.

        Args:
            obs: [N, *O] on the device of the network.
            epsilon: In [0, 1].

        Returns:
            [N] int64 on the device, counted from 0.
        """
        with torch.no_grad():
            q = self.network(self._parameters, obs)
            return epsilon_greedy(q, epsilon, self._generator)

    def greedy(self, obs: Tensor) -> Tensor:
        """Return the best actions [N] int64 of observations [N, *O]; draws nothing."""
        with torch.no_grad():
            return self.network(self._parameters, obs).argmax(1)
