"""Quantile losses: what they are smallest at, and what is refused."""

from __future__ import annotations

import pytest
import torch

from fastdqn.algorithms.quantiles import IQNObjective, QRObjective, midpoints, quantile_huber
from fastdqn.errors import UsageError


def test_the_loss_is_smallest_at_the_quantiles_of_the_targets() -> None:
    """Fractions 1/4, 1/2, 3/4 of 0, 100, ..., 1000. Decoy: in reverse, 750 comes first."""
    target = torch.arange(11.0).mul(100).unsqueeze(0)
    fractions = torch.tensor([0.25, 0.5, 0.75])
    theta = torch.tensor([[240.0, 510.0, 760.0]], requires_grad=True)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(quantile_huber(theta, fractions, target).sum(), theta)
        theta = (theta - 5 * gradient).detach().requires_grad_()
    torch.testing.assert_close(
        theta.detach(), torch.tensor([[200.0, 500.0, 800.0]]), atol=60, rtol=0
    )


def test_the_gradient_of_a_quantile_is_its_share_of_targets_below() -> None:
    """Far from all targets: tau - 1 below none, -tau above all. Decoy: sides exchanged."""
    theta = torch.tensor([[-50.0, 50.0]], requires_grad=True)
    loss = quantile_huber(theta, torch.tensor([0.2, 0.3]), torch.zeros(1, 4))
    (gradient,) = torch.autograd.grad(loss.sum(), theta)
    torch.testing.assert_close(gradient, torch.tensor([[-0.2, 0.7]]))


def test_fractions_lie_in_the_middle_of_equal_parts() -> None:
    torch.testing.assert_close(midpoints(4, torch.device("cpu")), torch.tensor([1, 3, 5, 7]) / 8)


def test_what_cannot_be_is_refused() -> None:
    for kind in (QRObjective, IQNObjective):
        with pytest.raises(UsageError, match="--num-quantiles 0"):
            kind(num_quantiles=0)
    with pytest.raises(UsageError, match="QRObjective reads 5 numbers"):
        QRObjective(num_quantiles=5).q_values(torch.zeros(4, 2, 6))
    for shape in ((4, 3), (4, 1, 5), (4, 3, 6)):
        with pytest.raises(UsageError, match="IQNObjective reads 5 quantiles"):
            IQNObjective(num_quantiles=5).q_values(torch.zeros(shape))
    theta = torch.zeros(4, 3)
    for fractions, target in ((torch.zeros(4), theta), (torch.zeros(3), torch.zeros(1, 3))):
        with pytest.raises(ValueError, match="want"):
            quantile_huber(theta, fractions, target)
