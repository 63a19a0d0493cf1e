"""Acting: epsilon-greedy while training, greedy and frozen afterwards."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.algorithms.exploration import NUM_ACTING, bend_, explore
from fastdqn.foundation.copying import Whole, copied
from fastdqn.native import NativeActor, why_not_act
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP

__all__ = ["Actor", "EagerActor", "Hosted", "Policy", "epsilon_greedy"]

SMALL_PARAMETERS = 1_000_000
"""Up to this size one core runs a few observations sooner than a launch on a card takes."""

Hosted = tuple[Tensor, npt.NDArray[np.int64]]
"""Actions [N] int64 on the device, and the same on the host."""


class Actor(Protocol):
    """Turns observations into actions; there are several implementations.

    All choose alike from equal arguments: observations [N, *O] on the device of the
    network, epsilon in [0, 1], uniform numbers [N, 2] float32 in [0, 1), and masks [N, A] bool or
    None.
    """

    def __call__(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None, /
    ) -> Tensor:
        """Return actions [N] int64 on the device; the caller's own."""
        ...

    def on_host(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None, /
    ) -> Hosted:
        """Do the same for observations and masks at the same address at every call.

        Returns:
            [N] int64 on the device and on the host; both may be overwritten by the next call with
            observations at this place.
        """
        ...


class EagerActor(Whole):
    """Acts by the network's plain operations.

    Args:
        policy: Chooses.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None, /
    ) -> Tensor:
        """Return the actions on the device."""
        return self._policy.choose(obs, epsilon, uniform, action_mask)

    def on_host(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None, /
    ) -> Hosted:
        """Return the actions on the device and on the host. Waits for the device."""
        action = self._policy.choose(obs, epsilon, uniform, action_mask)
        return action, action.cpu().numpy()


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
    uniform = torch.rand(len(q), NUM_ACTING, generator=generator, device=q.device)
    return explore(q, epsilon, uniform, action_mask)


class Policy(Whole):
    """Turns observations into actions with the parameters that the learner is writing.

    Args:
        network: Shared with the learner; its latest parameters act.
        seed: Seed of the exploration.

    Attributes:
        actor: How it acts: by plain operations, unless a faster equal takes their place.
    """

    kept_by = "Save the network's state_dict(), or agent.save(path)."

    def __init__(self, network: FlatNetwork, seed: int = 0) -> None:
        self.network = network
        self.actor: Actor = EagerActor(self)
        self._parameters = network.views(network.flat)
        self._generator = torch.Generator(network.flat.device).manual_seed(seed)
        self._uniform = torch.empty(0, NUM_ACTING, device=network.flat.device)
        self._never = self._uniform.new_ones(0, NUM_ACTING)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy network, actor and generator; the copy explores as this one would."""
        twin = copied(self, memo, anew=("_parameters",))
        twin._parameters = twin.network.views(twin.network.flat)
        return twin

    def act(
        self,
        obs: Tensor,
        epsilon: float,
        action_mask: Tensor | None = None,
        ladder: Tensor | None = None,
    ) -> Tensor:
        """Explore with probability `epsilon`. Hot path; never waits for the device.

        Args:
            obs: [N, *O] on the device of the network.
            epsilon: In [0, 1].
            action_mask: [N, A] bool beside `obs`, or None; see `epsilon_greedy`.
            ladder: [N] float32 on the device of the network, see `exploration.bend_`; None explores
                with `epsilon` everywhere.

        Returns:
            [N] int64 on the device, counted from 0; the caller's own.
        """
        return self.actor(obs, epsilon, self._drawn(len(obs), ladder), action_mask)

    def act_on_host(
        self,
        obs: Tensor,
        epsilon: float,
        action_mask: Tensor | None = None,
        ladder: Tensor | None = None,
    ) -> Hosted:
        """Do what `act` does and bring the actions to the host. Waits for the device once.

        Observations and masks lie at the same address at every call; both results may be
        overwritten by the next one.
        """
        return self.actor.on_host(obs, epsilon, self._drawn(len(obs), ladder), action_mask)

    def reseed(self, seed: int) -> None:
        """Let exploration go on with other random numbers."""
        self._generator.manual_seed(seed)

    def _drawn(self, num_envs: int, ladder: Tensor | None = None) -> Tensor:
        """Return new uniform numbers [N, 2 + C], C for the network, in memory that is reused."""
        if len(self._uniform) != num_envs:
            columns = NUM_ACTING + self.network.num_columns(num_envs)
            self._uniform = self._uniform.new_empty(num_envs, columns)
        self._uniform.uniform_(generator=self._generator)
        if ladder is not None:
            bend_(self._uniform, ladder)
        return self._uniform

    def choose(
        self,
        obs: Tensor,
        epsilon: Tensor | float,
        uniform: Tensor,
        action_mask: Tensor | None = None,
        *,
        parameters: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Do what `act` does as a pure function of numbers that were drawn before.

        Args:
            obs: See `act`.
            epsilon: A number, or a scalar on the device.
            uniform: [N, 2 + C] float32 in [0, 1) on the device, C for the network.
            action_mask: See `act`.
            parameters: In the shapes of the network; None is the learner's own.
        """
        with torch.no_grad():
            numbers = self.network.numbers_in(uniform, NUM_ACTING)
            views = self._parameters if parameters is None else parameters
            q = self.network.q(views, obs, numbers)
            return explore(q, epsilon, uniform, action_mask)

    def to_play(self) -> Policy:
        """Return a greedy policy with the parameters of this moment, on the fastest device for it.

        A launch on a card takes longer than a small MLP on the CPU, which is copied there.
        """
        network = self.network
        small = network.flat.numel() <= SMALL_PARAMETERS and type(network.module) is MLP
        if network.flat.device.type == "cpu" or not small:
            return self
        host = FlatNetwork(copy.deepcopy(network.module).cpu(), q_values=network.q_values)
        if why_not_act(host) is not None:
            return self
        played = Policy(host)
        played.actor = NativeActor(host)
        return played

    def greedy(self, obs: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the best allowed actions [N] int64 of observations [N, *O]; draws nothing."""
        return self.actor(obs, 0.0, self._never_for(obs), action_mask)

    def greedy_on_host(
        self, obs: Tensor, action_mask: Tensor | None = None
    ) -> npt.NDArray[np.int64]:
        """Do what `greedy` does as `act_on_host` does it."""
        return self.actor.on_host(obs, 0.0, self._never_for(obs), action_mask)[1]

    def _never_for(self, obs: Tensor) -> Tensor:
        """Return numbers [N, 2 + C] that explore nowhere, in memory that is reused.

        Those of the network are one half, where noise that is symmetric vanishes.
        """
        if len(self._never) != len(obs):
            columns = self.network.num_columns(len(obs))
            self._never = self._uniform.new_full((len(obs), NUM_ACTING + columns), 0.5)
            self._never[:, :NUM_ACTING] = 1.0
        return self._never
