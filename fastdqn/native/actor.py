"""Acting as one call into C."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdqn.native.library import load_library
from fastdqn.native.plan import Plan, settings_of
from fastdqn.networks import FlatNetwork

__all__ = ["NativeActor"]

MAX_PLACES = 64
"""That are known at a time; each group of environments has one, and an evaluation another."""


class _Place(NamedTuple):
    """What acting for observations at one place takes, looked up once; it keeps none of them alive.

    Attributes:
        dtype: Of the observations.
        given: What the C takes first: plan, observations, masks.
        action: [N] int64.
        seen: The same as an array.
    """

    dtype: torch.dtype
    given: tuple[int | None, int, int | None]
    action: Tensor
    seen: npt.NDArray[np.int64]


class NativeActor:
    """Chooses epsilon-greedy actions with the latest parameters of an MLP on the CPU.

    Args:
        network: Of an MLP on the CPU.
    """

    def __init__(self, network: FlatNetwork) -> None:
        self._network = network
        self._act = load_library().fastdqn_act
        self._plans: dict[tuple[int, torch.dtype], Plan] = {}
        self._places: dict[tuple[int, int | None], _Place] = {}

    def __call__(
        self,
        obs: Tensor,
        epsilon: float,
        uniform: Tensor,
        action_mask: Tensor | None = None,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Choose an action for every environment. Hot path.

        Args:
            obs: [N, *O] contiguous.
            epsilon: Probability of exploring, in [0, 1].
            uniform: [N, 2] float32 in [0, 1): whether to explore, and where to; each row is
                contiguous.
            action_mask: [N, A] bool, contiguous; None allows everything.
            out: [N] int64, contiguous; written.

        Returns:
            [N] int64, counted from 0: `out` if it was given.
        """
        key = len(obs), obs.dtype
        plan = self._plans.get(key) or self._open(key)
        action = torch.empty(len(obs), dtype=torch.int64) if out is None else out
        mask = None if action_mask is None else action_mask.data_ptr()
        draws = uniform.data_ptr(), uniform.stride(0)
        self._act(plan.address, obs.data_ptr(), mask, *draws, epsilon, action.data_ptr())
        return action

    def on_host(
        self, obs: Tensor, epsilon: float, uniform: Tensor, action_mask: Tensor | None = None
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Do the same for observations and masks that lie at one place at every call. Hot path.

        Returns:
            [N] int64 as a tensor and as an array; both are overwritten by the next call with
            observations at this place.
        """
        address, mask = obs.data_ptr(), None if action_mask is None else action_mask.data_ptr()
        place = self._places.get((address, mask))
        if place is None or len(place.seen) != len(obs) or place.dtype is not obs.dtype:
            place = self._place(obs, mask)
        draws = uniform.data_ptr(), uniform.stride(0)
        self._act(*place.given, *draws, epsilon, place.action.data_ptr())
        return place.action, place.seen

    def _place(self, obs: Tensor, mask: int | None) -> _Place:
        key = len(obs), obs.dtype
        plan = self._plans.get(key) or self._open(key)
        action, address = torch.zeros(len(obs), dtype=torch.int64), obs.data_ptr()
        if len(self._places) == MAX_PLACES:
            self._places.clear()
        place = _Place(obs.dtype, (plan.address, address, mask), action, action.numpy())
        self._places[address, mask] = place
        return place

    def bound(self, obs: Tensor, uniform: Tensor, out: Tensor) -> Callable[[float], None]:
        """Return what chooses for tensors that stay where they are, given epsilon; see `__call__`.

        Addresses are looked up here, once; the calls ask nothing of PyTorch.
        """
        key = len(obs), obs.dtype
        plan = self._plans.get(key) or self._open(key)
        act, kept = self._act, (plan, obs, uniform, out)
        given = (plan.address, obs.data_ptr(), None, uniform.data_ptr(), uniform.stride(0))
        written = out.data_ptr()

        def choose(epsilon: float, _: object = kept) -> None:
            act(*given, epsilon, written)

        return choose

    def _open(self, key: tuple[int, torch.dtype]) -> Plan:
        self._plans[key] = Plan(settings_of(self._network, *key), self._network.flat)
        return self._plans[key]
