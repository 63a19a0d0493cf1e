"""Random histories of both rings: writes with ends, cuts, resets and rows that are partly none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from fastdqn.replay.buffer import ReplayBuffer
from fastdqn.replay.chunks import RingChunks
from fastdqn.replay.functional_ring import FunctionalRing

ACTIONS, OBS = 3, (2,)
AnyRing = ReplayBuffer | FunctionalRing


@dataclass
class History:
    """Writes a ring at random; observations are serial numbers, never used twice.

    Args:
        ring: Written.
        rng: Of all choices.
    """

    ring: AnyRing
    rng: np.random.Generator
    serial: int = 0
    groups: int = field(init=False)

    def __post_init__(self) -> None:
        self.groups = self.ring.num_groups if isinstance(self.ring, ReplayBuffer) else 1
        self.begin()

    def begin(self) -> None:
        for group in range(self.groups):
            if isinstance(self.ring, FunctionalRing):
                self.ring.begin(self._obs())
            else:
                self.ring.begin(self._obs(), self._mask(), group)

    def cut(self) -> None:
        self.ring.cut()
        self.begin()

    def step(self) -> None:
        """Write a row."""
        size, rng = self._size, self.rng
        action = torch.from_numpy(rng.integers(0, ACTIONS, size))
        reward = torch.from_numpy(rng.random(size, np.float32))
        ends = rng.choice(3, size, p=(0.6, 0.2, 0.2))
        terminated, truncated = torch.from_numpy(ends == 1), torch.from_numpy(ends == 2)
        if isinstance(self.ring, FunctionalRing):
            shown = self._obs(), self._obs()
            self.ring.write(action, reward, terminated, truncated, *shown)
        elif self.groups == 1 and rng.random() < 0.1:
            self._extend(action, reward, terminated, truncated)
        else:
            real = rng.random(size) < 0.9
            ended = np.flatnonzero((ends > 0) & real)
            more: dict[str, Any] = {"final_obs": self._obs(), "ended": ended}
            more |= {"action_mask": self._mask(), "final_action_mask": self._mask()}
            step = (action, reward, terminated, truncated, self._obs())
            self.ring.write(*step, real=real, **more)

    def _extend(self, action: Tensor, reward: Tensor, *ends: Tensor) -> None:
        assert isinstance(self.ring, ReplayBuffer)
        obs = self.ring.shown().clone() if self.rng.random() < 0.5 else self._obs()
        data = {"obs": obs, "action": action, "reward": reward, "next_obs": self._obs()}
        data |= dict(zip(("terminated", "truncated"), ends, strict=True))
        self.ring.extend(TensorDict(data, batch_size=[self._size]))

    @property
    def _size(self) -> int:
        ring = self.ring
        return ring.row_size if isinstance(ring, ReplayBuffer) else ring.num_envs

    def _obs(self) -> Tensor:
        numbers = torch.arange(self._size * 2, dtype=torch.float32) + self.serial
        self.serial += self._size * 2
        return numbers.reshape(self._size, *OBS)

    def _mask(self) -> Tensor | None:
        ring = self.ring
        if isinstance(ring, FunctionalRing) or ring.ring.masks is None:
            return None
        return torch.from_numpy(self.rng.random((self._size, ACTIONS)) < 0.5)


@dataclass(frozen=True)
class Sizes:
    """Of a ring and its chunks."""

    capacity: int = 40
    num_envs: int = 4
    num_groups: int = 1
    masked: bool = False
    on_device: bool = False
    chunk_bytes: int = 500
    final_capacity: int | None = None

    def ring(self) -> AnyRing:
        if self.on_device:
            return FunctionalRing(self.capacity, self.num_envs, OBS)
        return ReplayBuffer(
            self.capacity,
            self.num_envs * self.num_groups,
            OBS,
            num_groups=self.num_groups,
            num_masked=ACTIONS if self.masked else 0,
            final_capacity=self.final_capacity,
        )

    def chunks(self, ring: AnyRing) -> RingChunks:
        return RingChunks(ring, limits={"action": ACTIONS}, chunk_bytes=self.chunk_bytes)

    def history(self, seed: int) -> History:
        return History(self.ring(), np.random.default_rng(seed))


def cells_of(ring: AnyRing) -> dict[str, Tensor]:
    """Return copies of the tensors of a ring."""
    return {name: tensor.clone() for name, tensor in ring.ring.cells().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
