"""Faster ways to act on CUDA that choose what the policy itself would choose.

Each of them is an `Actor`: it takes the place of `Policy.choose` in `Policy.actor`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdqn.captured import Captured
from fastdqn.device import synchronize
from fastdqn.native import CudaActor
from fastdqn.policy import Policy

__all__ = ["ACTORS", "CapturedActor", "HostActor", "actor_of"]

ACTORS = ("eager", "cudagraph", "native", "cpu copy")


class CapturedActor:
    """Acts by a CUDA graph; the latest parameters act, since it reads them where they are written.

    Observations, masks and epsilon are copied to where the graph reads them; its actions are
    copied out before the next call overwrites them.

    Args:
        policy: Chooses.
        native: Chooses in its place: the same, by kernels of its own.
        cuda: `torch.cuda`, or what stands in for it.
    """

    def __init__(
        self, policy: Policy, native: CudaActor | None = None, cuda: Any = torch.cuda
    ) -> None:
        self._policy, self._native = policy, native
        device = policy.network.flat.device
        self._epsilon, self._shown = torch.zeros((), device=device), 0.0
        self.step = Captured(self._choose, lambda *_: lambda: None, device=device, cuda=cuda)
        self._places: dict[tuple[int, bool], tuple[Tensor, Tensor, Tensor | None]] = {}

    def __call__(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """Return actions [N] int64, a copy; see `Policy.choose`. Never waits for the device.

        Args:
            obs: [N, *O]; copied.
            epsilon: In [0, 1].
            uniform: [N, 2] float32, in memory that is kept from call to call; read there.
            action_mask: [N, A] bool, or None; copied.
        """
        if epsilon != self._shown:
            self._epsilon.fill_(epsilon)
            self._shown = epsilon
        action, seen, mask = self._placed(obs, action_mask)
        self.step(action, seen, uniform, mask)
        return action.clone()

    def _placed(self, obs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        key = len(obs), mask is not None
        if key not in self._places:
            action = torch.zeros(len(obs), dtype=torch.int64, device=obs.device)
            kept_mask = None if mask is None else torch.empty_like(mask)
            self._places[key] = action, torch.empty_like(obs), kept_mask
        action, seen, kept_mask = self._places[key]
        seen.copy_(obs)
        if kept_mask is not None and mask is not None:
            kept_mask.copy_(mask)
        return action, seen, kept_mask

    def _choose(self, action: Tensor, obs: Tensor, uniform: Tensor, mask: Tensor | None) -> None:
        if self._native is not None:
            self._native(obs, self._epsilon, uniform, mask, action)
        else:
            action.copy_(self._policy.choose(obs, self._epsilon, uniform, mask))


class HostActor:
    """Acts on the CPU with the parameters of this moment, which it brings over at each call.

    That pays where a network is so small that the card takes longer to start than the CPU to
    finish. Waits for the device once; the actions go back to it.

    Args:
        policy: Chooses; its module may hold no buffers, which would stay on the device.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy, self._device = policy, policy.network.flat.device
        self._kept: dict[str, Tensor] = {}
        self._flat = self._host("parameters", policy.network.flat)
        self._views = policy.network.views(self._flat)

    def __call__(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """Return actions [N] int64 on the device; see `Policy.choose`. Waits for the device."""
        policy = self._policy
        self._flat.copy_(policy.network.flat, non_blocking=True)
        seen = self._brought("obs", obs)
        drawn = self._brought("uniform", uniform)
        mask = None if action_mask is None else self._brought("mask", action_mask)
        synchronize(self._device)
        chosen = policy.choose(seen, epsilon, drawn, mask, parameters=self._views)
        return (
            self._host("action", chosen)
            .copy_(chosen)
            .to(self._device, non_blocking=True, copy=True)
        )

    def _brought(self, name: str, tensor: Tensor) -> Tensor:
        return self._host(name, tensor).copy_(tensor, non_blocking=True)

    def _host(self, name: str, like: Tensor) -> Tensor:
        """Return memory of the host, pinned for CUDA, that is kept from call to call."""
        kept = self._kept.get(name)
        if kept is None or kept.shape != like.shape:
            pinned = self._device.type == "cuda"
            kept = torch.empty(like.shape, dtype=like.dtype, pin_memory=pinned)
            self._kept[name] = kept
        return kept


def actor_of(kind: str, policy: Policy) -> CapturedActor | HostActor | None:
    """Return an actor of the kind, one of ACTORS; None is the policy itself."""
    if kind == "cudagraph":
        return CapturedActor(policy)
    if kind == "native":
        return CapturedActor(policy, CudaActor(policy.network))
    return HostActor(policy) if kind == "cpu copy" else None
