"""QR-DQN and IQN: the quantiles of the return, at fixed fractions or at any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdqn.algorithms.distributional import (
    DistributionalObjective,
    moved_atoms,
    of_action,
    refuse_outputs,
)
from fastdqn.algorithms.td_losses import huber
from fastdqn.errors import UsageError
from fastdqn.foundation.scalars import whole
from fastdqn.transition import Transitions

__all__ = ["IQNObjective", "QRObjective", "midpoints", "quantile_huber"]


def midpoints(count: int, device: torch.device) -> Tensor:
    """Return (2 i + 1) / (2 N) [N] float32, the fractions in the middle of N equal parts."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count


def quantile_huber(theta: Tensor, fractions: Tensor, target: Tensor) -> Tensor:
    """Return the Huber loss of quantiles: how far they are from those of the targets.

        sum_i mean_j |tau_i - [u_ij < 0]| L(u_ij),    u_ij = y_j - theta_i

    L is `huber`, with a threshold of 1. Where it is quadratic the minimum is not exactly at the
    quantile; it nears it as the errors grow.

    Args:
        theta: [B, N] float32, quantiles of the return; carries the gradient.
        fractions: [N] or [B, N] float32, their tau in (0, 1).
        target: [B, M] float32, returns that are alike likely; no gradient flows into them.

    Returns:
        [B] float32.

    Raises:
        ValueError: The shapes are others, which would broadcast silently.

    Source:
        Dabney et al. (2018), Distributional reinforcement learning with quantile regression,
        arXiv:1710.10044, equation 10 and algorithm 1.
        Dabney et al. (2018), Implicit quantile networks, arXiv:1806.06923, equation 3.
    """
    if (
        theta.ndim != 2
        or target.ndim != 2
        or len(target) != len(theta)
        or fractions.shape not in {theta.shape, theta.shape[1:]}
    ):
        raise ValueError(
            f"quantiles {tuple(theta.shape)}, fractions {tuple(fractions.shape)}, targets "
            f"{tuple(target.shape)}: want [B, N], [B, N] or [N], [B, M]"
        )
    error = target.detach().unsqueeze(1) - theta.unsqueeze(2)
    below = (error.detach() < 0.0).float()
    return ((fractions.unsqueeze(-1) - below).abs() * huber(error)).mean(2).sum(1)


@dataclass(frozen=True, kw_only=True)
class QRObjective(DistributionalObjective):
    """QR-DQN: the network's outputs are N quantiles for each action, at the midpoints of fractions.

        loss = quantile_huber(theta(s, a), (2 i + 1) / (2 N), r + discount theta(s', a*))
        Q(s, a) = mean_i theta_i(s, a)

    The priority of a row is its loss, that which is minimized, as Rainbow has it.

    Args:
        num_quantiles: N, at least 1.
        double: The online network chooses the next action, and the target network says what the
            return is then; else the target network does both, as in the paper.

    Raises:
        UsageError: No quantile, or a `double` that is no bool.

    Source:
        Dabney et al. (2018), Distributional reinforcement learning with quantile regression,
        arXiv:1710.10044, algorithm 1.
        Hessel et al. (2018), Rainbow, arXiv:1710.02298, section 4: priorities by the loss.
    """

    num_quantiles: int = 51

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("--num-quantiles", self.num_quantiles, least=1, way_out="Try 51.")

    @property
    def numbers(self) -> int:
        """Quantiles of each action."""
        return self.num_quantiles

    def q_values(self, outputs: Tensor, /) -> Tensor:
        """Return the means [B, A] of the quantiles [B, A, N]."""
        refuse_outputs(self, outputs, self.num_quantiles)
        return outputs.mean(2)

    def loss(
        self, outputs: Tensor, passes: Sequence[Tensor], batch: Transitions, _: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each row, which is its priority, too; see `Objective`."""
        assert batch.discount is not None
        target = moved_atoms(batch.reward, batch.discount, self._next(passes, batch))
        theta = of_action(outputs, batch.action)
        loss = quantile_huber(theta, self._fractions(outputs), target)
        return loss, loss.detach()

    def _fractions(self, outputs: Tensor) -> Tensor:
        return midpoints(self.num_quantiles, outputs.device)


@dataclass(frozen=True, kw_only=True)
class IQNObjective(QRObjective):
    """IQN: the quantiles of QR-DQN at fractions that each forward pass draws anew.

        loss = quantile_huber(theta(s, a; tau_i), tau_i, r + discount theta(s', a*; tau'_j))
        Q(s, a) = mean_i theta(s, a; tau_i)

    The outputs are [B, A + 1, N]: N quantiles for each action and, in the last row, their
    fractions; see `fastdqn.networks.iqn.IQN`. Both networks and acting have N fractions each.

    Args:
        num_quantiles: Fractions of a forward pass, N, at least 1.
        double: The online network chooses the next action, and the target network says what the
            return is then; else the target network does both, as in the paper.

    Source:
        Dabney et al. (2018), Implicit quantile networks for distributional reinforcement learning,
        arXiv:1806.06923, equation 3 and algorithm 1.
    """

    def q_values(self, outputs: Tensor, /) -> Tensor:
        """Return the means [B, A] of the quantiles; the row of fractions is no action."""
        if outputs.ndim != 3 or outputs.shape[1] < 2 or outputs.shape[2] != self.num_quantiles:
            raise UsageError(
                f"outputs {list(outputs.shape)}",
                f"IQNObjective reads {self.num_quantiles} quantiles for each action, and their "
                f"fractions in a last row: [B, A + 1, {self.num_quantiles}]",
                "Let it return them, as fastdqn.IQN does.",
            )
        return outputs[:, :-1].mean(2)

    def _fractions(self, outputs: Tensor) -> Tensor:
        return outputs[:, -1].detach()
