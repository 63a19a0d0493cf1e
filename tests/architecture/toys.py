"""An objective, a head, a sampler and a noisy layer as a user of the package would write them.

Each is one class of its own that knows public names alone; nothing in the package names it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdqn import Pass, Sampler, Transitions, uniform_of


class Munchausen:
    """Adds the clipped log-probability of the action, by the target network, to the reward.

    Each row's loss is also scaled by a random number, which shows that it can have some.
    """

    passes = (Pass("target", "next_obs"), Pass("target", "obs"))
    num_random = 1
    temperature = 0.03

    def q_values(self, outputs: Tensor, /) -> Tensor:
        return outputs

    def loss(
        self, outputs: Tensor, passes: Sequence[Tensor], batch: Transitions, random: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert batch.discount is not None
        assert random is not None
        next_q, q = passes
        action, tau = batch.action.unsqueeze(1), self.temperature
        policy = functional.softmax(next_q / tau, 1)
        value = (policy * (next_q - tau * functional.log_softmax(next_q / tau, 1))).sum(1)
        bonus = 0.9 * (tau * functional.log_softmax(q / tau, 1)).gather(1, action).squeeze(1)
        target = batch.reward + bonus.clamp(min=-1.0) + batch.discount * value
        error = outputs.gather(1, action).squeeze(1) - target
        return error.square() * (0.5 + random[:, 0]), error.detach().abs()


class Heads(nn.Module):
    """Several Q-functions over one layer: outputs [B, A, H]."""

    def __init__(self, obs_size: int, num_actions: int, num_heads: int = 3) -> None:
        super().__init__()
        self.shape = num_actions, num_heads
        self.first = nn.Linear(obs_size, 8)
        self.last = nn.Linear(8, num_actions * num_heads)

    def forward(self, obs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.first(obs).relu()).unflatten(1, self.shape)
        return outputs


class EachHead:
    """Every head learns from its own target; their mean acts. Its priority is no TD error."""

    passes = (Pass("target", "next_obs"),)
    num_random = 0

    def q_values(self, outputs: Tensor, /) -> Tensor:
        return outputs.mean(2)

    def loss(
        self, outputs: Tensor, passes: Sequence[Tensor], batch: Transitions, random: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert batch.discount is not None
        (following,) = passes
        best = following.mean(2).argmax(1)
        rows = torch.arange(len(best), device=best.device)
        value = following[rows, best]
        target = batch.reward.unsqueeze(1) + batch.discount.unsqueeze(1) * value
        error = outputs[rows, batch.action] - target
        return functional.huber_loss(error, torch.zeros_like(error), reduction="none").mean(1), (
            error.detach().std(1)
        )


class ByPriority(Sampler):
    """Draws in proportion to the last priority of each row, and weights against it."""

    def __init__(self, replay: object, batch_size: int) -> None:
        super().__init__(replay, batch_size)  # type: ignore[arg-type]
        self.priority = torch.ones(len(self.ring.action), device=self.ring.action.device)

    def draw(self, random_bits: Tensor) -> tuple[Tensor, Tensor | None]:
        first, count = self.replay.span()
        n = torch.arange(len(self.priority), device=random_bits.device)
        rows = self.replay.nth(n % count, first)
        share = torch.where(n < count, self.priority[rows], 0.0)
        mass = share.cumsum(0)
        drawn = torch.searchsorted(mass, uniform_of(random_bits) * mass[-1], right=True)
        drawn = torch.minimum(drawn, count - 1)
        return rows[drawn], mass[-1] / (count * share[drawn])

    def feedback(self, rows: Tensor, priority: Tensor) -> None:
        kept = self.priority[rows]
        self.priority[rows] = torch.where(priority.isnan(), kept, priority + 0.1)

    def written(self) -> tuple[Tensor, ...]:
        return (self.priority,)


class OneAfterAnother(Sampler):
    """Draws the one row that feedback has named last, and keeps a list of what it drew."""

    def __init__(self, replay: object, batch_size: int) -> None:
        super().__init__(replay, batch_size)  # type: ignore[arg-type]
        new = self.ring.action.new_zeros
        self.next, self.drawn, self.log = new(()), new(()), new(100)

    def draw(self, random_bits: Tensor) -> tuple[Tensor, Tensor | None]:
        first, count = self.replay.span()
        rows = self.replay.nth(self.next % count + 0 * random_bits, first)
        place = (self.drawn % len(self.log)).reshape(1)
        self.log.index_copy_(0, place, rows[:1])
        self.drawn.add_(1)
        return rows, None

    def feedback(self, rows: Tensor, priority: Tensor) -> None:
        self.next.add_(torch.where(priority.isnan().any(), 0, 1))

    def written(self) -> tuple[Tensor, ...]:
        return self.next, self.drawn, self.log


class Noisy(nn.Module):
    """A last layer whose weights are noisy; the noise comes in as numbers."""

    def __init__(self, obs_size: int, num_actions: int) -> None:
        super().__init__()
        self.first = nn.Linear(obs_size, 8)
        self.mean = nn.Parameter(torch.randn(num_actions, 8) / 3)
        self.width = nn.Parameter(torch.full((num_actions, 8), 0.5))
        self.num_random = num_actions * 8

    def forward(self, obs: Tensor, random: Tensor) -> Tensor:
        noise = 2 * random.view_as(self.width) - 1
        return functional.linear(self.first(obs).relu(), self.mean + self.width * noise)
