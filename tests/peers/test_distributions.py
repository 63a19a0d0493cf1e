"""C51 beside TorchRL's DistributionalDQNLoss, QR-DQN beside sb3-contrib's quantile_huber_loss."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdqn.algorithms.distributional import C51Objective
from fastdqn.algorithms.quantiles import QRObjective
from tests.peers.tables import Case, Tabled, case_of, set_parameter, tensordict_of

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:No target network updater"),
]
SEEDS = range(20)
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
"""A place among the atoms is a quotient of float32 numbers, which each side rounds otherwise."""


# C51


def support_of(seed: int) -> tuple[int, float, float]:
    """Return how many atoms there are, the first and the last: some narrow, some wide."""
    atoms = (2, 3, 11, 51)[seed % 4]
    return atoms, *((-1.0, 1.0), (-8.0, 2.0), (0.0, 4.0))[seed % 3]


def torchrls_c51(
    torchrl: SimpleNamespace, case: Case, support: Tensor, reduction: str
) -> tuple[Any, Tensor]:
    """Return TorchRL's loss over the tables of a case, whose outputs are [S, A, K], and one."""
    masked = case.batch.next_action_mask is not None
    actor = torchrl.DistributionalQValueActor(
        Tabled(case.target.transpose(1, 2).clone()),
        in_keys=["observation"],
        support=support,
        spec=torchrl.Categorical(case.target.shape[1]),
        action_space="categorical",
        action_mask_key="action_mask" if masked else None,
    )
    loss = torchrl.DistributionalDQNLoss(actor, gamma=case.gamma, reduction=reduction)
    return loss, set_parameter(loss.value_network_params, case.online.transpose(1, 2))


def entropy_of(target: Tensor) -> Tensor:
    entropy: Tensor = -torch.special.xlogy(target, target).sum(1)
    return entropy


def slope_of(losses: Tensor, outputs: Tensor) -> Tensor:
    """Return the gradient of the sum of the losses."""
    return torch.autograd.grad(losses.sum(), outputs)[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_c51_losses_gradients_and_priorities_are_torchrls(
    torchrl: SimpleNamespace, seed: int
) -> None:
    """Its priority is the loss; ours is the loss without the entropy of the target.

    The target is what TorchRL's gradient of the logits leaves of the softmax.
    """
    atoms, v_min, v_max = support_of(seed)
    case = case_of(seed, atoms=atoms, weighted=False)
    support = torch.linspace(v_min, v_max, atoms)
    theirs, table = torchrls_c51(torchrl, case, support, "none")
    data = tensordict_of(case)
    expected = theirs(data)["loss"]
    slope = slope_of(expected, table)
    objective = C51Objective(num_atoms=atoms, v_min=v_min, v_max=v_max, double=True)
    outputs = case.outputs()
    losses, priority = objective.loss(outputs, case.passes, case.batch, None)
    torch.testing.assert_close(losses, expected, **CLOSE)
    gradient = slope.transpose(1, 2)[case.batch.obs]
    torch.testing.assert_close(slope_of(losses, outputs), gradient, **CLOSE)
    rows = torch.arange(len(losses)), case.batch.action
    target = case.outputs().detach()[rows].softmax(1) - gradient[rows]
    relative = data["td_error"].squeeze(1) - entropy_of(target.clamp(min=0.0))
    torch.testing.assert_close(priority, relative.clamp(min=0.0), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_c51_chooses_the_next_action_as_torchrl_does_only_with_double(
    torchrl: SimpleNamespace, seed: int
) -> None:
    """TorchRL has no other choice; with one network for both, the two choices are one."""
    atoms, v_min, v_max = support_of(seed)
    case = case_of(seed, atoms=atoms, weighted=False)
    alike = replace(case, target=case.online)
    theirs, _ = torchrls_c51(torchrl, alike, torch.linspace(v_min, v_max, atoms), "none")
    expected = theirs(tensordict_of(alike))["loss"]
    single = C51Objective(num_atoms=atoms, v_min=v_min, v_max=v_max, double=False)
    losses, _ = single.loss(case.outputs(), alike.passes[:1], case.batch, None)
    torch.testing.assert_close(losses, expected, **CLOSE)


def test_c51_takes_the_mean_of_the_weighted_losses_and_torchrl_their_weighted_mean(
    torchrl: SimpleNamespace,
) -> None:
    case = case_of(2, atoms=11)
    weight = case.batch.weight
    assert weight is not None
    theirs, _ = torchrls_c51(torchrl, case, torch.linspace(-1.0, 1.0, 11), "mean")
    objective = C51Objective(num_atoms=11, v_min=-1.0, v_max=1.0, double=True)
    losses, _ = objective.loss(case.outputs(), case.passes, case.batch, None)
    expected = theirs(tensordict_of(case))["loss"] * weight.mean()
    torch.testing.assert_close((weight * losses).mean(), expected, **CLOSE)


# QR-DQN


def by_row(loss: Any, theta: Tensor, target: Tensor) -> Tensor:
    """Return sb3-contrib's loss of each row: it averages over the batch."""
    rows = zip(theta.unsqueeze(1), target.unsqueeze(1), strict=True)
    return torch.stack([loss(one, other) for one, other in rows])


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_quantile_losses_and_gradients_are_those_of_sb3_contrib(
    sb3_contrib: SimpleNamespace, seed: int, double: bool
) -> None:
    """sb3-contrib chooses by the target network's means, as `double=False` does."""
    count = (1, 2, 7, 51)[seed % 4]
    case = case_of(seed, atoms=count, weighted=False)
    batch, size = case.batch, torch.arange(len(case.batch.action))
    assert batch.discount is not None
    following, online = case.passes
    best = (online if double else following).mean(2).argmax(1)
    moved = batch.reward.unsqueeze(1) + batch.discount.unsqueeze(1) * following[size, best]
    theirs = case.outputs()
    expected = by_row(sb3_contrib.quantile_huber_loss, theirs[size, batch.action], moved)
    objective = QRObjective(num_quantiles=count, double=double)
    outputs = case.outputs()
    losses, priority = objective.loss(outputs, case.passes[: 1 + double], batch, None)
    torch.testing.assert_close(losses, expected, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(priority, expected.detach(), rtol=2e-5, atol=2e-6)
    slopes = slope_of(losses, outputs), slope_of(expected, theirs)
    torch.testing.assert_close(*slopes, rtol=2e-5, atol=2e-6)


def test_sb3_contrib_averages_over_the_batch_what_we_leave_by_row(
    sb3_contrib: SimpleNamespace,
) -> None:
    case = case_of(3, atoms=7, weighted=False)
    theta, target = (table[: len(case.batch.action), 0] for table in (case.online, case.target))
    rows = by_row(sb3_contrib.quantile_huber_loss, theta, target)
    whole = sb3_contrib.quantile_huber_loss(theta, target)
    torch.testing.assert_close(rows.mean(), whole)
    without_sum = sb3_contrib.quantile_huber_loss(theta, target, sum_over_quantiles=False)
    torch.testing.assert_close(whole, 7 * without_sum)
