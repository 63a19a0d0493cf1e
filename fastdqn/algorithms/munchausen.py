"""Munchausen DQN: the reward is raised where the policy was sure of the action that it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdqn.algorithms.objectives import TARGET_NEXT, DQNObjective, Pass
from fastdqn.algorithms.td_losses import LOSSES, bootstrapped, masked_q, td_error
from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import refuse_unless_finite
from fastdqn.transition import Transitions

__all__ = ["MunchausenObjective", "log_policy", "soft_value"]

TINY, LARGE = 1e-30, 1e30
"""Magnitudes that float32 still multiplies and divides."""


def soft_value(q: Tensor, temperature: float, action_mask: Tensor | None = None) -> Tensor:
    """Return the value [B] of a state under the softmax policy, with its entropy.

        V(s) = sum_a pi(a|s) (Q(s, a) - tau log pi(a|s)) = tau log sum_a exp(Q(s, a) / tau)

    The right side needs no product of a probability 0 and an infinite logarithm.

    Args:
        q: [B, A] float32.
        temperature: tau > 0, in units of the return.
        action_mask: [B, A] bool; a forbidden action has probability 0, see `masked_q`.
    """
    allowed = masked_q(q, action_mask)
    best = allowed.amax(1)
    above = (allowed - best.unsqueeze(1)) / temperature
    return best + temperature * torch.logsumexp(above, 1)


def log_policy(
    q: Tensor, action: Tensor, temperature: float, action_mask: Tensor | None = None
) -> Tensor:
    """Return tau log pi(a|s) [B], at most 0, of the softmax policy pi = softmax(Q / tau).

    It is -infinity for a forbidden action. The best value is subtracted before the rest is
    divided by tau, so that large values lose no digits.

    Args:
        q: [B, A] float32.
        action: [B] int64.
        temperature: tau > 0, in units of the return.
        action_mask: [B, A] bool, what may be done in s; see `masked_q`.

    Source:
        Vieillard, Pietquin, Geist (2020), Munchausen reinforcement learning, arXiv:2007.14430,
        appendix B.1.
    """
    allowed = masked_q(q, action_mask)
    above = allowed - allowed.amax(1, keepdim=True)
    taken = above.gather(1, action.unsqueeze(1)).squeeze(1)
    return taken - temperature * torch.logsumexp(above / temperature, 1)


@dataclass(frozen=True)
class MunchausenObjective(DQNObjective):
    """Munchausen DQN: a DQN with entropy that adds its own log-policy to the reward.

        y = r + alpha clip(tau log pi(a|s), l0, 0)
              + discount sum_a' pi(a'|s') (Q(s', a') - tau log pi(a'|s')),    pi = softmax(Q / tau)

    All Q are the target network's. No action is chosen by a maximum, so there is no Double variant.
    Of n steps, the log-policy of the first one is added. Where the discount is 0 nothing of s'
    counts; what was added for s stays.

    Args:
        error_loss: `huber` or `mse`, of the TD error.
        alpha: Factor of the log-policy, in [0, 1]; 0 is DQN with entropy.
        temperature: tau > 0, in units of the return.
        clip: l0 < 0, in units of the return.

    Raises:
        UsageError: A number outside of its range, or there is no such loss.

    Source:
        Vieillard, Pietquin, Geist (2020), Munchausen reinforcement learning, arXiv:2007.14430,
        equation 1 and section 5: alpha 0.9, tau 0.03, l0 -1.
    """

    alpha: float = 0.9
    temperature: float = 0.03
    clip: float = -1.0
    passes: ClassVar[tuple[Pass, ...]] = (TARGET_NEXT, Pass("target", "obs"))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = f"it must be positive, from {TINY:g} to {LARGE:g}"
        negative = f"it must be negative, from {-LARGE:g} to {-TINY:g}"
        for name, value, low, high, reason, way_out in (
            ("alpha", self.alpha, 0.0, 1.0, "it must lie in [0, 1]", "Try 0.9."),
            ("temperature", self.temperature, TINY, LARGE, positive, "Try 0.03."),
            ("clip", self.clip, -LARGE, -TINY, negative, "Try -1."),
        ):
            refuse_unless_finite(f"--munchausen-{name}", value, way_out)
            if not low <= value <= high:
                raise UsageError(f"--munchausen-{name} {value}", reason, way_out)

    def loss(
        self, outputs: Tensor, passes: Sequence[Tensor], batch: Transitions, _: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of the TD error and its magnitude; see `Objective`."""
        next_q, q = passes
        assert batch.discount is not None
        log_prob = log_policy(q, batch.action, self.temperature, batch.action_mask)
        reward = batch.reward + self.alpha * log_prob.clamp(self.clip, 0.0)
        value = soft_value(next_q, self.temperature, batch.next_action_mask)
        error = td_error(outputs, batch.action, bootstrapped(reward, batch.discount, value))
        return LOSSES[self.error_loss](error), error.detach().abs()
