"""Numbers worked out by hand; a wrong formula is wrong by far more than rounding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fastdqn.algorithms.optimizers import Adam
from fastdqn.algorithms.td_losses import (
    bootstrapped,
    double_dqn_target,
    dqn_target,
    huber_loss,
    mse_loss,
    td_error,
)
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.replay import ReplayBuffer
from fastdqn.training.schedules import Exponential, Linear, Multiplicative
from tests.oracles import CHAIN_GAMMA, CHAIN_Q
from tests.small_learners import Descent, Table, one_hot, transitions

NEXT_ONLINE = [[0.0, 3.0, 1.0], [5.0, 0.0, 0.0]]
NEXT_TARGET = [[100.0, 8.0, 200.0], [7.0, 7.0, 7.0]]
DOUBLE, PLAIN = [5.0, -2.0], [101.0, -2.0]


# Targets and errors


def test_double_dqn_chooses_with_the_online_and_values_with_the_target_network() -> None:
    """Decoys: networks swapped 1.5, the target network alone 101, the online one alone 2.5."""
    target = double_dqn_target(
        torch.tensor([1.0, -2.0]),
        torch.tensor([False, True]),
        torch.tensor(NEXT_ONLINE),
        torch.tensor(NEXT_TARGET),
        0.5,
    )
    assert target.tolist() == DOUBLE


def test_dqn_takes_the_largest_value_of_the_target_network() -> None:
    target = dqn_target(
        torch.tensor([1.0, -2.0]), torch.tensor([False, True]), torch.tensor(NEXT_TARGET), 0.5
    )
    assert target.tolist() == PLAIN


MASK = [[True, False, True], [False, True, True]]
MASKED_DOUBLE, MASKED_PLAIN = [31.0, -2.0], [61.0, -2.0]
MASKED_ONLINE = [[0.0, 900.0, 1.0], [5.0, 0.0, 0.0]]
MASKED_TARGET = [[120.0, 8000.0, 60.0], [7.0, 7.0, 7.0]]


def test_a_forbidden_action_is_neither_chosen_nor_valued() -> None:
    """The forbidden action has the largest value in both networks by far.

    Decoys: unmasked 4001 in both; the mask on the valuing network only, -infinity.
    """
    reward, over = torch.tensor([1.0, -2.0]), torch.tensor([False, True])
    mask, target = torch.tensor(MASK), torch.tensor(MASKED_TARGET)
    plain = dqn_target(reward, over, target, 0.5, next_action_mask=mask)
    assert plain.tolist() == MASKED_PLAIN
    online = torch.tensor(MASKED_ONLINE)
    double = double_dqn_target(reward, over, online, target, 0.5, next_action_mask=mask)
    assert double.tolist() == MASKED_DOUBLE


@pytest.mark.parametrize(("double", "expected"), [(True, MASKED_DOUBLE), (False, MASKED_PLAIN)])
def test_the_learner_feeds_the_masks_into_the_equations(
    double: bool, expected: list[float]
) -> None:
    learner = Learner(Table(3, 3), gamma=0.5, double=double, target="hard", learning_rate=0.0)
    online, target = torch.zeros(3, 3), torch.full((3, 3), 1e6)
    online[:2], target[:2] = torch.tensor(MASKED_ONLINE), torch.tensor(MASKED_TARGET)
    learner.state.online.copy_(online.flatten())
    learner.state.target.copy_(target.flatten())
    batch = transitions([2, 2], [0, 1], [1.0, -2.0], [0, 1], [False, True], num_states=3)
    masked = replace(batch, next_action_mask=torch.tensor(MASK))
    for given in (masked, masked.to_tensordict()):
        error = learner.update(given)[1].item()
        assert error == pytest.approx(sum(map(abs, expected)) / 2)


@pytest.mark.parametrize(("double", "expected"), [(True, DOUBLE), (False, PLAIN)])
def test_the_learner_feeds_the_equations_with_the_right_networks_and_states(
    double: bool, expected: list[float]
) -> None:
    """Two next states, and a state 2 of value 0, so that the errors are the negative targets."""
    learner = Learner(Table(3, 3), gamma=0.5, double=double, loss="mse", learning_rate=0.0)
    online, target = torch.zeros(3, 3), torch.full((3, 3), 1e6)
    online[:2], target[:2] = torch.tensor(NEXT_ONLINE), torch.tensor(NEXT_TARGET)
    learner.state.online.copy_(online.flatten())
    learner.state.target.copy_(target.flatten())
    batch = transitions([2, 2], [0, 1], [1.0, -2.0], [0, 1], [False, True], num_states=3)
    loss, error, q_mean, _ = learner.update(batch).tolist()
    assert error == pytest.approx(sum(map(abs, expected)) / 2)
    assert loss == pytest.approx(sum(y * y for y in expected) / 2)
    assert q_mean == 0.0


@pytest.mark.parametrize(
    ("q", "best_next", "target", "error"),
    [(12.4, 14.0, 14.86, 2.46), (5.0, 8.0, 8.92, 3.92), (5.0, 4.0, 4.96, 0.04)],
)
def test_lesson_numbers_for_targets_and_errors(
    q: float, best_next: float, target: float, error: float
) -> None:
    next_q = torch.tensor([[best_next - 90.0, best_next, best_next - 0.5]])
    y = dqn_target(torch.tensor([1.0]), torch.tensor([False]), next_q, 0.99)
    assert y.item() == pytest.approx(target, abs=1e-5)
    taken = td_error(torch.tensor([[99.0, q, -99.0]]), torch.tensor([1]), y)
    assert taken.abs().item() == pytest.approx(error, abs=1e-5)
    assert math.copysign(1.0, taken.item()) == (1.0 if q > target else -1.0)


def test_the_q_values_of_the_taken_actions_are_picked_row_by_row() -> None:
    q = torch.tensor([[1.2, -0.4, 0.7, 2.0], [0.1, 0.3, 1.1, 0.5], [2.2, 1.9, 0.2, 0.0]])
    picked = td_error(q, torch.tensor([2, 0, 1]), torch.zeros(3))
    assert torch.equal(picked, torch.tensor([0.7, 0.1, 1.9]))


def _tabular(execution: str, **settings: Any) -> Learner:
    """A learner whose Q-values of three one-hot states are those of a table; state 2 is worth 0."""
    learner = Learner(MLP((3,), 3, ()), gamma=0.5, loss="mse", execution=execution, **settings)
    for vector, values in (
        (learner.state.online, NEXT_ONLINE),
        (learner.state.target, NEXT_TARGET),
    ):
        weights = torch.zeros(3, 3)
        weights[:, :2] = torch.tensor(values).T
        vector.zero_()[:9] = weights.flatten()
    return learner


FACTORS = transitions([2, 2], [0, 1], [1.0, -2.0], [0, 1], [False, True], num_states=3)


@pytest.mark.parametrize("execution", ["eager", "native"])
@pytest.mark.parametrize(("double", "expected"), [(True, [3.0, 1.5]), (False, [51.0, 1.5])])
def test_the_discount_of_a_row_alone_says_what_follows_counts(
    double: bool, expected: list[float], execution: str
) -> None:
    """Decoys: derived from `terminated`, the targets would be 5 or 101, and -2."""
    learner = _tabular(execution, double=double, target="hard", learning_rate=0.0)
    learner.update(replace(FACTORS, discount=torch.tensor([0.25, 0.5])))
    assert learner.state.metrics[1].item() == pytest.approx(sum(expected) / 2)
    learner.update(FACTORS)
    derived = DOUBLE if double else PLAIN
    assert learner.state.metrics[1].item() == pytest.approx(sum(map(abs, derived)) / 2)


@pytest.mark.parametrize("execution", ["eager", "native"])
def test_the_loss_of_a_row_is_weighted_and_then_averaged(execution: str) -> None:
    """Errors 5 and 2. Decoys: unweighted 14.5, divided by the weights' sum 7, squared 60.1."""
    learner = _tabular(execution, target="hard", learning_rate=0.0)
    learner.update(replace(FACTORS, weight=torch.tensor([0.5, 3.0])))
    loss, error, _, norm = learner.state.metrics.tolist()
    assert loss == pytest.approx((0.5 * 25.0 + 3.0 * 4.0) / 2)
    assert error == pytest.approx(3.5)  # the priorities are not weighted
    by_q = [0.5 * -5.0, 3.0 * 2.0]  # each reaches a weight and a bias
    assert norm == pytest.approx(math.sqrt(2 * sum(slope**2 for slope in by_q)))


def test_where_the_discount_is_0_no_value_does_harm() -> None:
    value = torch.tensor([math.nan, math.inf, 10.0])
    target = bootstrapped(torch.ones(3), torch.tensor([0.0, 0.0, 0.5]), value)
    assert target.tolist() == [1.0, 1.0, 6.0]


def test_losses_of_a_small_and_a_large_error() -> None:
    error = torch.tensor([0.5, -3.0])
    assert huber_loss(error).item() == pytest.approx((0.125 + 2.5) / 2)
    assert mse_loss(error).item() == pytest.approx((0.25 + 9.0) / 2)


# Schedules and sizes


def test_the_exponential_schedule_is_the_lesson_formula() -> None:
    epsilon = Exponential(1.0, 0.05, 1000)
    for step in (0, 1, 500, 1000, 5000):
        assert epsilon(step, 7) == pytest.approx(0.05 + 0.95 * math.exp(-step / 1000), rel=1e-12)
    assert round(epsilon(1000, 0), 4) == 0.3995


def test_the_multiplicative_schedule_has_the_lesson_values() -> None:
    """0.995 ** 400 is 0.1347; the lesson rounds it up to 0.14."""
    epsilon = Multiplicative(1.0, 0.01, 0.995)
    values = [round(epsilon(0, episodes), 2) for episodes in (0, 100, 200, 400, 2000)]
    assert values == [1.0, 0.61, 0.37, 0.13, 0.01]
    assert epsilon(0, 400) == pytest.approx(0.1347, abs=5e-5)


def test_the_linear_schedule_is_half_way_at_half_time() -> None:
    assert Linear(1.0, 0.1, 10_000)(5_000, 0) == pytest.approx(0.55)


def test_a_network_4_128_128_2_has_17_410_parameters() -> None:
    assert sum(p.numel() for p in MLP((4,), 2, (128, 128)).parameters()) == 17_410


# Fixed points


def _learner(num_states: int, gamma: float, batch: int, *, double: bool = True) -> Learner:
    """A learner whose update is one exact sweep of value iteration over a batch of all pairs."""
    return Learner(
        Table(num_states, 2),
        gamma=gamma,
        double=double,
        loss="mse",
        optimizer=Descent(),
        learning_rate=batch / 2,
        clip_norm=None,
        target="none",
    )


def _q(learner: Learner) -> list[list[float]]:
    module = learner.network.module
    assert isinstance(module, Table)
    return module.q.detach().tolist()


FORBIDDEN_Q = 1e6


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_a_forbidden_action_of_huge_value_does_not_blow_the_values_up(
    double: bool, masked: bool
) -> None:
    """A chain of states 0, 1, 2 where action 0 goes on for 1 and action 1 is forbidden.

    The Q-value of action 1 is never taught and stays at a million. With gamma 0.5 the values
    are 1.75, 1.5 and 1; without the mask half a million follows in every state but the last.
    """
    replay = ReplayBuffer(12, 1, (4,), num_masked=2)
    replay.begin(one_hot([0], 4), torch.tensor([[True, False]]))
    for t in range(12):
        over = torch.tensor([t % 3 == 2])
        replay.write(
            torch.tensor([0]),
            torch.ones(1),
            over,
            torch.tensor([False]),
            one_hot([(t + 1) % 3], 4),
            final_obs=one_hot([3], 4),
            ended=np.flatnonzero(over.numpy()),
            action_mask=torch.tensor([[True, not masked]]),
            final_action_mask=torch.tensor([[False, False]]),
        )
    learner = Learner(
        Table(4, 2),
        gamma=0.5,
        double=double,
        loss="mse",
        optimizer=Descent(),
        learning_rate=1.5,
        clip_norm=None,
        target="none",
    )
    learner.state.online.view(4, 2)[:, 1] = FORBIDDEN_Q
    for _ in range(3):
        learner.learn(replay, replay.newest(1, 12))
    value = 0.5 * FORBIDDEN_Q + 1.0
    expected = [1.75, 1.5, 1.0, 0.0] if masked else [value, value, 1.0, 0.0]
    assert [row[0] for row in _q(learner)] == pytest.approx(expected)
    assert [row[1] for row in _q(learner)] == [FORBIDDEN_Q] * 4
    assert int(learner.state.skipped) == 0


CHAIN = transitions(
    [0, 0, 1, 1],
    [0, 1, 0, 1],
    [0.0, 0.0, 0.0, 1.0],
    [0, 1, 0, 1],
    [False, False, False, True],
    num_states=2,
)


@pytest.mark.parametrize("double", [True, False])
def test_value_iteration_by_updates_finds_q_star_of_the_chain(double: bool) -> None:
    learner = _learner(2, CHAIN_GAMMA, 4, double=double)
    for _ in range(5):
        learner.update(CHAIN)
    assert _q(learner) == [list(row) for row in CHAIN_Q]


@pytest.mark.parametrize("target", ["soft", "hard"])
@pytest.mark.parametrize("double", [True, False])
def test_adam_with_a_target_network_finds_q_star_of_the_chain(double: bool, target: str) -> None:
    learner = Learner(
        Table(2, 2),
        gamma=CHAIN_GAMMA,
        double=double,
        optimizer=Adam(),
        learning_rate=0.02,
        target=target,
        tau=0.1,
        target_period=20,
    )
    for _ in range(600):
        learner.update(CHAIN)
    assert np.allclose(_q(learner), CHAIN_Q, atol=2e-3)


def _episodes(states: list[int], num_states: int, *, terminated: bool) -> ReplayBuffer:
    """A ring of two environments that pass the states in 5 steps of reward 1 and start anew."""
    replay = ReplayBuffer(20, 2, (num_states,))
    replay.begin(one_hot([states[0]] * 2, num_states))
    for t in range(10):
        last = t % 5 == 4
        ended = torch.tensor([last, last])
        never = torch.zeros_like(ended)
        replay.write(
            torch.tensor([0, 1]),
            torch.ones(2),
            ended if terminated else never,
            never if terminated else ended,
            one_hot([states[0 if last else t % 5 + 1]] * 2, num_states),
            final_obs=one_hot([states[5]] * 2, num_states),
            ended=np.array([0, 1] if last else [], np.int64),
        )
    return replay


def test_a_time_limit_does_not_cut_the_value_of_going_on() -> None:
    """Reward 1 for ever, cut off at 5 steps: 1 / (1 - 0.9), and not 4.1."""
    replay = _episodes([0] * 6, 1, terminated=False)
    learner = _learner(1, 0.9, 20)
    for _ in range(150):
        learner.learn(replay, replay.newest(1, 20))
    assert np.allclose(_q(learner), 10.0, atol=1e-4)


def test_an_end_cuts_the_value_to_that_of_the_steps_left() -> None:
    """Six states in a row; the value of going on from the last one would be a decoy of 1000."""
    replay = _episodes([0, 1, 2, 3, 4, 5], 6, terminated=True)
    learner = _learner(6, 0.9, 10)  # each of the 10 pairs comes twice in a batch of 20
    learner.state.online[-2:] = 1000.0
    for _ in range(10):
        learner.learn(replay, replay.newest(1, 20))
    values = [sum(0.9**k for k in range(5 - t)) for t in range(5)]
    assert np.allclose(_q(learner)[:5], [[v, v] for v in values], atol=1e-5)


def test_an_episode_cut_at_five_bootstraps_from_its_true_last_observation() -> None:
    """Six states in a row, truncated; only the last observation is worth 1000 at first."""
    replay = _episodes([0, 1, 2, 3, 4, 5], 6, terminated=False)
    learner = _learner(6, 0.9, 10)
    learner.state.online[-2:] = 1000.0
    for _ in range(10):
        learner.learn(replay, replay.newest(1, 20))
    value = 1000.0
    for t in (4, 3, 2, 1, 0):
        value = 1.0 + 0.9 * value
        assert np.allclose(_q(learner)[t], value, rtol=1e-5)
