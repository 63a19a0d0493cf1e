"""Faster actors for CUDA, which choose what the policy itself would choose.

Each of them is an `Actor`: `Policy.actor` is set to the one that acts.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.device import synchronize
from fastdqn.execution.cuda_graph import Cuda, CudaGraphStep
from fastdqn.execution.step import EagerStep
from fastdqn.foundation.copying import Whole
from fastdqn.native import CudaActor, why_not_act
from fastdqn.policies.policy import Actor, EagerActor, Hosted, Policy

__all__ = ["GraphActor", "HostActor", "actors_for"]


class GraphActor(Whole):
    """Acts by a CUDA graph; the latest parameters act, since it reads them where they are written.

    Observations and masks that lie elsewhere each time are copied to where the graph reads them,
    and its actions out of it before the next call overwrites them. `on_host` spares both.

    Args:
        policy: Chooses.
        native: Chooses in its place: the same, by kernels of its own.
        cuda: `torch.cuda`, or a fake of it.
    """

    def __init__(
        self, policy: Policy, native: CudaActor | None = None, cuda: Cuda = torch.cuda
    ) -> None:
        self._policy, self._native, self._cuda = policy, native, cuda
        self._device = device = policy.network.flat.device
        self._epsilon = torch.zeros((), device=device)
        self._epsilon_on_host = _on_host(torch.zeros(()), device)  # the graph copies it
        step = EagerStep(self._choose)
        self.step = CudaGraphStep(step, lambda *_: lambda: None, device=device, cuda=cuda)
        self._places: dict[Hashable, _Place] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphActor:
        """Make another one, of the policy's copy, with graphs of its own."""
        policy = copy.deepcopy(self._policy, memo)
        twin = GraphActor(policy, copy.deepcopy(self._native, memo), self._cuda)
        memo[id(self)] = twin
        return twin

    def __call__(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """Return a copy of the actions; see `Actor`. Never waits for the device.

        Copies observations and masks; `uniform` lies at the same address at each call.
        """
        self._epsilon.fill_(epsilon)
        key = len(obs), obs.dtype, action_mask is not None
        if key not in self._places:
            mask = None if action_mask is None else torch.empty_like(action_mask)
            self._places[key] = self._place(torch.empty_like(obs), mask)
        place = self._places[key]
        place.obs.copy_(obs)
        if place.mask is not None and action_mask is not None:
            place.mask.copy_(action_mask)
        self.step(place.action, place.obs, uniform, place.mask, None)
        return place.action.clone()

    def on_host(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None
    ) -> Hosted:
        """Launch one graph, from observations to actions on the host, and wait.

        See `Actor`. One launch, since the host needs 4 us for each, on virtual machines 30.
        """
        key = obs.data_ptr(), obs.shape
        if key not in self._places:
            self._places[key] = self._place(obs, action_mask)
        place = self._places[key]
        self._epsilon_on_host.fill_(epsilon)
        self.step(place.action, place.obs, uniform, place.mask, place.chosen)
        synchronize(self._device)
        return place.action, place.seen

    def _place(self, obs: Tensor, mask: Tensor | None) -> _Place:
        action = torch.zeros(len(obs), dtype=torch.int64, device=obs.device)
        chosen = _on_host(action, self._device)
        return _Place(obs, mask, action, chosen, chosen.numpy())

    def _choose(
        self,
        action: Tensor,
        obs: Tensor,
        uniform: Tensor,
        mask: Tensor | None,
        chosen: Tensor | None,
    ) -> None:
        if chosen is not None:
            self._epsilon.copy_(self._epsilon_on_host, non_blocking=True)
        if self._native is not None:
            self._native(obs, self._epsilon, uniform, mask, action)
        else:
            action.copy_(self._policy.choose(obs, self._epsilon, uniform, mask))
        if chosen is not None:
            chosen.copy_(action, non_blocking=True)


class _Place(NamedTuple):
    """Static inputs and outputs of the graph of one group of environments.

    `chosen` and `seen` are `action` on the host, as a tensor and as an array.
    """

    obs: Tensor
    mask: Tensor | None
    action: Tensor
    chosen: Tensor
    seen: npt.NDArray[np.int64]


def _on_host(like: Tensor, device: torch.device) -> Tensor:
    """Return memory of the host, pinned for CUDA."""
    return torch.zeros(like.shape, dtype=like.dtype, pin_memory=device.type == "cuda")


class HostActor(Whole):
    """Acts on the CPU with the latest parameters, which it copies from the device at each call.

    That pays where a network is so small that launching on the card takes longer than computing on
    the CPU. Waits for the device once; the actions go back to it.

    Args:
        policy: Chooses; its module may hold no buffers, which would stay on the device.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy, self._device = policy, policy.network.flat.device
        self._memory: dict[str, Tensor] = {}
        self._flat = self._host("parameters", policy.network.flat)
        self._views = policy.network.views(self._flat)

    def __deepcopy__(self, memo: dict[int, Any]) -> HostActor:
        """Make another one, of the policy's copy."""
        twin = memo[id(self)] = HostActor(copy.deepcopy(self._policy, memo))
        return twin

    def __call__(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """Return the actions; see `Actor`. Waits for the device."""
        return self.on_host(obs, epsilon, uniform, action_mask)[0]

    def on_host(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None
    ) -> Hosted:
        """Return the actions on the device and on the host; see `Actor`."""
        policy = self._policy
        self._flat.copy_(policy.network.flat, non_blocking=True)
        seen = self._copied("obs", obs)
        drawn = self._copied("uniform", uniform)
        mask = None if action_mask is None else self._copied("mask", action_mask)
        synchronize(self._device)
        chosen = policy.choose(seen, epsilon, drawn, mask, parameters=self._views)
        sent = self._host("action", chosen).copy_(chosen)
        return sent.to(self._device, non_blocking=True, copy=True), chosen.numpy()

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        return self._host(name, tensor).copy_(tensor, non_blocking=True)

    def _host(self, name: str, like: Tensor) -> Tensor:
        """Return memory of the host, pinned for CUDA, the same at each call."""
        memory = self._memory.get(name)
        if memory is None or memory.shape != like.shape:
            memory = self._memory[name] = _on_host(like, self._device)
        return memory


def actors_for(policy: Policy) -> dict[str, Actor]:
    """Build every actor that may act for a policy, by its name; the plainest comes first."""
    network = policy.network
    actors: dict[str, Actor] = {"eager": EagerActor(policy), "cudagraph": GraphActor(policy)}
    if network.flat.device.type == "cuda" and why_not_act(network) is None:
        actors["native"] = GraphActor(policy, CudaActor(network))
    if not any(True for _ in network.module.buffers()):  # which would stay on the device
        actors["cpu copy"] = HostActor(policy)
    return actors
