"""Ways to set a learner up that between them cover every choice, for comparing executions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastdqn.algorithms.optimizers import Adam, AdamW, RMSprop
from fastdqn.learner.learner import Learner, LearnerState
from fastdqn.networks.mlp import MLP
from fastdqn.replay import NewestSampler, ReplayBuffer, Sampler, UniformSampler
from tests.small_learners import Branches, filled_ring

BATCH = 8


class SmallConv(nn.Module):
    """Two convolutions over observations of 16 numbers, shown as images of 4 by 4."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)),
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 2, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 2),
        )

    def forward(self, obs: Tensor) -> Tensor:
        q: Tensor = self.layers(obs)
        return q


@dataclass(frozen=True)
class Setting:
    """One way to set a learner up."""

    module: Callable[[], nn.Module] = lambda: MLP((4,), 2, (8,))
    arguments: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    newest: bool = False
    obs_size: int = 4

    def build(self, execution: str = "eager", device: str = "cpu", **changes: Any) -> Learner:
        torch.manual_seed(0)
        settings = {"learning_rate": 1e-3, **self.arguments, **changes}
        return Learner(self.module(), execution=execution, device=device, **settings)

    def replay(self, device: str = "cpu") -> ReplayBuffer:
        masked = 2 * self.masked
        return filled_ring(obs_size=self.obs_size, num_masked=masked, device=device)

    def sampler(self, device: str = "cpu") -> Sampler:
        return (NewestSampler if self.newest else UniformSampler)(self.replay(device), BATCH)


PLAIN: dict[str, Any] = {
    "double": False,
    "loss": "mse",
    "optimizer": RMSprop(weight_decay=0.01),
    "target": "hard",
    "target_period": 7,
    "clip_norm": None,
    "clip_value": 0.1,
}
NO_TARGET: dict[str, Any] = {
    "optimizer": AdamW(amsgrad=True),
    "target": "none",
    "clip_norm": 1.0,
    "clip_value": 0.1,
}
SETTINGS: dict[str, Setting] = {
    "huber, adam, soft, double, norm": Setting(),
    "plain, mse, rmsprop, hard, value": Setting(arguments=PLAIN),
    "adamw, amsgrad, no target, both clips": Setting(arguments=NO_TARGET),
    "a user's module, weight decay, no clip": Setting(
        Branches, {"optimizer": Adam(weight_decay=0.1), "clip_norm": None}
    ),
    "convolutions, hard": Setting(SmallConv, {"target": "hard", "target_period": 3}, obs_size=16),
    "masks, double": Setting(masked=True),
    "masks, plain, newest": Setting(arguments={"double": False}, masked=True, newest=True),
    "newest, mse": Setting(arguments={"loss": "mse"}, newest=True),
}


def written(state: LearnerState) -> list[Tensor]:
    """Return copies, on the CPU, of all that updates write."""
    return [tensor.detach().cpu().clone() for tensor in state.written()]


@contextmanager
def nothing_left_in(sampler: Sampler) -> Iterator[None]:
    """Fail if the block draws from the sampler's generator, or leaves other numbers in its ring."""
    generator = sampler.buffer.generator
    before = generator.get_state()
    frames = sampler.ring.frames.clone()
    yield
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(sampler.ring.frames, frames)
