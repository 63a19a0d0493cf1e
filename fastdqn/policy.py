"""Acting: epsilon-greedy while training, greedy and frozen afterwards."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdqn.losses import masked_q
from fastdqn.native import NativeActor
from fastdqn.networks import FlatNetwork

__all__ = ["Policy", "epsilon_greedy"]

MAX_DRAW = 2**62


def epsilon_greedy(
    q: Tensor,
    epsilon: float,
    generator: torch.Generator,
    action_mask: Tensor | None = None,
) -> Tensor:
    """Choose an action for every environment, each with an exploration draw of its own.

        a = argmax_a Q(s, a)    with probability 1 - epsilon
        a ~ uniform             with probability epsilon

    Both are over the allowed actions; an environment that allows none is free to do anything.

    Args:
        q: [N, A] float32.
        epsilon: Probability of exploring, in [0, 1].
        generator: On the device of `q`; advanced by the same amount whatever epsilon is.
        action_mask: [N, A] bool, True where the action may be done; None allows everything.

    Returns:
        [N] int64 on the device of `q`.

    Raises:
        ValueError: The mask is not bool, or its shape is not that of `q`.

    Source:
        Sutton, Barto (2018), Reinforcement learning, second edition, section 2.2.
    """
    count, num_actions = q.shape
    best = masked_q(q, action_mask).argmax(1)
    explore = torch.rand(count, generator=generator, device=q.device) < epsilon
    if action_mask is None:
        anything = torch.randint(num_actions, (count,), generator=generator, device=q.device)
    else:
        anything = _any_allowed(action_mask, generator)
    return torch.where(explore, anything, best)


def _any_allowed(action_mask: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one of the allowed actions per row of [N, A] bool, or of all where none is allowed."""
    allowed = action_mask | ~action_mask.any(1, keepdim=True)
    rank = allowed.cumsum(1)  # 1 for the first allowed action, 2 for the second
    shape, device = (len(allowed), 1), allowed.device
    draw = torch.randint(MAX_DRAW, shape, generator=generator, device=device)
    return (rank <= draw.remainder_(rank[:, -1:])).sum(1)


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
        self._native = NativeActor(network)

    def act(self, obs: Tensor, epsilon: float, action_mask: Tensor | None = None) -> Tensor:
        """Explore with probability `epsilon`. Hot path; never waits for the device.

        Args:
            obs: [N, *O] on the device of the network.
            epsilon: In [0, 1].
            action_mask: [N, A] bool beside `obs`, or None; see `epsilon_greedy`.

        Returns:
            [N] int64 on the device, counted from 0.
        """
        if self._native:
            u = torch.rand(len(obs), 2, generator=self._generator)
            return self._native(obs, epsilon, u, action_mask)
        with torch.no_grad():
            q = self.network(self._parameters, obs)
            return epsilon_greedy(q, epsilon, self._generator, action_mask)

    def greedy(self, obs: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the best allowed actions [N] int64 of observations [N, *O]; draws nothing."""
        with torch.no_grad():
            return masked_q(self.network(self._parameters, obs), action_mask).argmax(1)
