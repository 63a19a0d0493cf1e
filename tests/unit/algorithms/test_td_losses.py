"""The equations: shapes refused, gradients where they belong, the soft update's closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdqn.algorithms.td_losses import (
    LOSSES,
    double_dqn_target,
    dqn_target,
    huber_loss,
    masked_q,
    mse_loss,
    soft_update_,
    td_error,
)
from fastdqn.errors import UsageError

B, A = 4, 3
REWARD = torch.arange(float(B))
ALIVE = torch.zeros(B, dtype=torch.bool)
Q = torch.arange(float(B * A)).view(B, A)
ACTION = torch.tensor([0, 2, 1, 0])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("reward", "terminated", "next_q"),
    [
        (REWARD.unsqueeze(1), ALIVE, Q),
        (REWARD, ALIVE.unsqueeze(1), Q),
        (REWARD.unsqueeze(1), ALIVE.unsqueeze(1), Q),
        (REWARD[:1], ALIVE, Q),
        (REWARD, ALIVE[:1], Q),
        (REWARD, ALIVE, Q[:1]),
        (REWARD, ALIVE, Q[:, 0]),
        (REWARD, ALIVE, Q.unsqueeze(1)),
    ],
)
def test_targets_refuse_shapes_that_would_broadcast(
    reward: Tensor, terminated: Tensor, next_q: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"want \[B\], \[B\], \[B, A\]"):
        dqn_target(reward, terminated, next_q, 0.9)
    with pytest.raises(ValueError, match=r"want \[B\], \[B\], \[B, A\]"):
        double_dqn_target(reward, terminated, next_q, next_q, 0.9)


def test_double_dqn_refuses_either_network_with_another_batch() -> None:
    for online, target in ((Q[:1], Q), (Q, Q[:1])):
        with pytest.raises(ValueError, match=r"want \[B\], \[B\], \[B, A\]"):
            double_dqn_target(REWARD, ALIVE, online, target, 0.9)


@pytest.mark.parametrize(
    ("action", "target"),
    [
        (ACTION.unsqueeze(1), REWARD),
        (ACTION, REWARD.unsqueeze(1)),
        (ACTION[:1], REWARD),
        (ACTION, REWARD[:1]),
        (ACTION, torch.tensor(1.0)),
    ],
)
def test_the_error_refuses_shapes_that_would_broadcast(action: Tensor, target: Tensor) -> None:
    with pytest.raises(ValueError, match=r"want \[B, A\], \[B\], \[B\]"):
        td_error(Q, action, target)


def test_the_error_is_value_minus_target_and_its_gradient_reaches_taken_actions_only() -> None:
    q, target = Q.clone().requires_grad_(), REWARD.clone().requires_grad_()
    error = td_error(q, ACTION, target)
    assert error.tolist() == [0.0, 4.0, 5.0, 6.0]
    grad, none = torch.autograd.grad(error.sum(), (q, target), allow_unused=True)
    assert none is None
    assert torch.equal(grad, functional.one_hot(ACTION, A).float())


def test_a_terminated_row_ignores_what_follows_even_if_it_is_not_a_number() -> None:
    over = torch.tensor([True, False, True, False])
    next_q = Q.clone()
    next_q[0] = torch.nan
    next_q[2] = torch.inf
    expected = [0.0, 1.0 + 0.5 * 5.0, 2.0, 3.0 + 0.5 * 11.0]
    assert dqn_target(REWARD, over, next_q, 0.5).tolist() == expected
    assert double_dqn_target(REWARD, over, next_q, next_q, 0.5).tolist() == expected


def test_discount_zero_and_one_are_the_reward_and_the_whole_value() -> None:
    assert torch.equal(dqn_target(REWARD, ALIVE, Q, 0.0), REWARD)
    assert torch.equal(dqn_target(REWARD, ALIVE, Q, 1.0), REWARD + Q.amax(1))


# Action masks


def test_without_a_mask_the_values_are_the_same_tensor() -> None:
    assert masked_q(Q, None) is Q


def test_forbidden_actions_are_never_the_largest_and_allowed_ones_keep_their_value() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]]).bool()
    q = Q.clone()
    q[0, 1], q[1, 0] = torch.nan, torch.inf
    got = masked_q(q, mask)
    assert got[0].tolist() == [0.0, -torch.inf, 2.0]
    assert got[1].tolist() == [-torch.inf, 4.0, -torch.inf]
    assert torch.equal(got[2:], Q[2:])  # nothing allowed counts as everything
    assert got.dtype is Q.dtype


@pytest.mark.parametrize("over", [True, False])
def test_where_nothing_is_allowed_the_target_is_finite(over: bool) -> None:
    """Cut where the episode is over; over all actions where it goes on."""
    terminated, mask = torch.full((B,), over), torch.zeros(B, A, dtype=torch.bool)
    expected = REWARD if over else REWARD + 0.5 * Q.amax(1)
    assert torch.equal(dqn_target(REWARD, terminated, Q, 0.5, next_action_mask=mask), expected)
    double = double_dqn_target(REWARD, terminated, Q, Q, 0.5, next_action_mask=mask)
    assert torch.equal(double, expected)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(B, A),
        torch.ones(B, A, dtype=torch.uint8),
        torch.ones(B, A, 1, dtype=torch.bool),
        torch.ones(1, A, dtype=torch.bool),
        torch.ones(B, 1, dtype=torch.bool),
        torch.ones(A, dtype=torch.bool),
    ],
)
def test_masks_that_would_broadcast_or_are_not_bool_are_refused(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"want \[B, A\] bool, \[B, A\]"):
        dqn_target(REWARD, ALIVE, Q, 0.9, next_action_mask=mask)
    with pytest.raises(ValueError, match=r"want \[B, A\] bool, \[B, A\]"):
        double_dqn_target(REWARD, ALIVE, Q, Q, 0.9, next_action_mask=mask)


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [("huber", huber_loss, functional.huber_loss), ("mse", mse_loss, functional.mse_loss)],
)
def test_losses_and_their_gradients_equal_torch(name: str, ours: object, theirs: object) -> None:
    assert callable(ours)
    assert callable(theirs)
    error = torch.tensor([-50.0, -1.0, -0.999, 0.0, 1e-4, 0.7, 1.001, 3.0], dtype=torch.float32)
    mine, reference = error.clone().requires_grad_(), error.clone().requires_grad_()
    loss, expected = ours(mine), theirs(reference, torch.zeros(8))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(LOSSES[name](error).mean(), expected)
    (grad,) = torch.autograd.grad(loss, mine)
    (expected_grad,) = torch.autograd.grad(expected, reference)
    torch.testing.assert_close(grad, expected_grad)


def test_the_huber_gradient_is_the_error_clipped_to_one() -> None:
    error = torch.tensor([-7.0, -0.25, 0.5, 100.0], requires_grad=True)
    (grad,) = torch.autograd.grad(huber_loss(error), error)
    assert (grad * 4).tolist() == [-1.0, -0.25, 0.5, 1.0]


# Soft update


@pytest.mark.parametrize("tau", [0.005, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("updates", [1, 10, 200])
def test_soft_updates_follow_their_closed_form(tau: float, updates: int) -> None:
    """target_k = online + (1 - tau)^k (target_0 - online)."""
    online = [torch.randn(3, 2), torch.randn(5)]
    start = [torch.randn(3, 2), torch.randn(5)]
    target = [tensor.clone() for tensor in start]
    kept = [tensor.clone() for tensor in online]
    for _ in range(updates):
        soft_update_(target, online, tau)
    for now, before, goal, untouched in zip(target, start, online, kept, strict=True):
        torch.testing.assert_close(now, goal + (1 - tau) ** updates * (before - goal))
        assert torch.equal(goal, untouched)


def test_a_soft_update_writes_parameters_in_place_without_a_gradient() -> None:
    online, target = nn.Linear(3, 2), nn.Linear(3, 2)
    places = [parameter.data_ptr() for parameter in target.parameters()]
    soft_update_(list(target.parameters()), list(online.parameters()), 1.0)
    assert [parameter.data_ptr() for parameter in target.parameters()] == places
    assert torch.equal(target.weight, online.weight)
    assert target.weight.grad_fn is None


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.0001, float("nan")])
def test_a_fraction_outside_its_range_is_refused(tau: float) -> None:
    target = [torch.zeros(2)]
    with pytest.raises(UsageError, match="--tau"):
        soft_update_(target, [torch.ones(2)], tau)
    assert target[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "online",
    [
        [torch.ones(2)],
        [torch.ones(2), torch.ones(1)],
        [torch.ones(2), torch.ones(3), torch.ones(1)],
    ],
)
def test_lists_that_do_not_match_are_refused(online: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="differ in number or shapes"):
        soft_update_([torch.zeros(2), torch.zeros(3)], online, 0.5)
