"""Acting: one exploration draw per environment, greedy elsewhere."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastdqn.learner.learner import Learner
from fastdqn.native import NativeActor
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies import policy as policy_file
from fastdqn.policies.policy import Policy, epsilon_greedy
from tests.small_learners import Branches, Descent, Table, one_hot, transitions

NUM_ENVS, NUM_ACTIONS, STEPS = 64, 50, 2000


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _best_is(action: int, num_envs: int = NUM_ENVS, num_actions: int = NUM_ACTIONS) -> Tensor:
    q = torch.zeros(num_envs, num_actions)
    q[:, action] = 1.0
    return q


def test_the_count_of_exploring_environments_is_binomial() -> None:
    """64 environments at epsilon 0.5; one draw for all would give a variance 64 times as large."""
    generator = _generator(1)
    actions = torch.stack([epsilon_greedy(_best_is(0), 0.5, generator) for _ in range(STEPS)])
    counts = (actions != 0).sum(1).double()
    p = 0.5 * (NUM_ACTIONS - 1) / NUM_ACTIONS
    variance = NUM_ENVS * p * (1 - p)
    assert abs(counts.mean() - NUM_ENVS * p) < 4 * math.sqrt(variance / STEPS)
    assert 0.85 * variance < counts.var() < 1.15 * variance


def test_environments_explore_at_different_times_with_different_actions() -> None:
    generator = _generator(2)
    actions = torch.stack([epsilon_greedy(_best_is(0), 0.5, generator) for _ in range(STEPS)])
    explored = (actions != 0).double()
    alike = torch.corrcoef(explored.T) - torch.eye(NUM_ENVS)
    assert alike.abs().max() < 5 / math.sqrt(STEPS)
    both = (actions[:, 0] != 0) & (actions[:, 1] != 0)
    same = (actions[:, 0] == actions[:, 1])[both].double().mean()
    assert same < 3 / NUM_ACTIONS


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
def test_the_share_of_exploring_environments_is_epsilon(epsilon: float) -> None:
    generator = _generator(3)
    actions = torch.stack([epsilon_greedy(_best_is(7), epsilon, generator) for _ in range(200)])
    share = (actions != 7).double().mean().item()
    p = epsilon * (NUM_ACTIONS - 1) / NUM_ACTIONS
    assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / (200 * NUM_ENVS))


def test_epsilon_zero_takes_the_best_action_of_each_environment() -> None:
    q = torch.randn(NUM_ENVS, NUM_ACTIONS, generator=_generator(4))
    actions = epsilon_greedy(q, 0.0, _generator())
    assert torch.equal(actions, q.argmax(1))
    assert actions.dtype is torch.int64
    assert len(set(actions.tolist())) > 10


def test_epsilon_one_is_uniform_over_all_actions() -> None:
    generator = _generator(5)
    q = _best_is(1, num_actions=5)
    actions = torch.cat([epsilon_greedy(q, 1.0, generator) for _ in range(500)])
    counts = torch.bincount(actions, minlength=5).double()
    expected = len(actions) / 5
    assert len(counts) == 5
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 99.9 % of chi-square, 4 degrees


def test_epsilon_does_not_change_how_far_the_generator_goes() -> None:
    q = _best_is(0)
    after = []
    for epsilon in (0.0, 0.3, 1.0):
        generator = _generator(6)
        epsilon_greedy(q, epsilon, generator)
        after.append(epsilon_greedy(q, 1.0, generator))
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])


# Masks

MASKS = torch.tensor(
    [
        [True, False, True, True, False],
        [False, False, False, False, True],
        [True, True, True, True, True],
        [False, False, False, False, False],  # nothing allowed: free to do anything
    ]
)
Q_TALL = torch.tensor([[0.0, 99.0, 1.0, 2.0, 50.0]] * 4)
"""The largest values belong to actions that the first mask forbids."""


def test_exploration_is_uniform_over_the_allowed_actions() -> None:
    """Chi-square at its 99.9 % quantile, and nothing at all where it is forbidden."""
    generator = _generator(7)
    draws = 4000
    actions = torch.stack(
        [epsilon_greedy(Q_TALL, 1.0, generator, action_mask=MASKS) for _ in range(draws)]
    )
    quantile = {1: 0.0, 3: 13.8, 5: 18.5}
    for env, mask in enumerate(MASKS):
        allowed = mask if mask.any() else ~mask
        counts = torch.bincount(actions[:, env], minlength=5).double()
        assert counts[~allowed].sum() == 0
        expected = draws / int(allowed.sum())
        chi_square = ((counts[allowed] - expected) ** 2 / expected).sum()
        assert chi_square <= quantile[int(allowed.sum())]
    assert actions.dtype is torch.int64


def test_environments_with_masks_explore_with_draws_of_their_own() -> None:
    generator = _generator(8)
    mask = torch.arange(NUM_ACTIONS).expand(NUM_ENVS, -1) % 2 == 0
    actions = torch.stack([epsilon_greedy(_best_is(0), 0.5, generator, mask) for _ in range(STEPS)])
    alike = torch.corrcoef((actions != 0).double().T) - torch.eye(NUM_ENVS)
    assert alike.abs().max() < 5 / math.sqrt(STEPS)
    both = (actions[:, 0] != 0) & (actions[:, 1] != 0)
    same = (actions[:, 0] == actions[:, 1])[both].double().mean()
    assert same < 6 / NUM_ACTIONS


def test_the_best_allowed_action_is_taken() -> None:
    assert epsilon_greedy(Q_TALL, 0.0, _generator(), MASKS).tolist() == [3, 4, 1, 1]


@pytest.mark.parametrize("mask", [None, MASKS])
def test_epsilon_moves_the_generator_as_far_with_masks_as_without(mask: Tensor | None) -> None:
    states = []
    for epsilon in (0.0, 0.3, 1.0):
        generator = _generator(6)
        epsilon_greedy(Q_TALL, epsilon, generator, mask)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_without_a_mask_the_draws_are_two_numbers_per_environment() -> None:
    """The order and kind of the draws are part of what a seed means."""
    q = torch.randn(NUM_ENVS, NUM_ACTIONS, generator=_generator(4))
    generator = _generator(9)
    explore, which = torch.rand(NUM_ENVS, 2, generator=generator).unbind(1)
    expected = torch.where(explore < 0.4, (which * NUM_ACTIONS).long(), q.argmax(1))
    assert torch.equal(epsilon_greedy(q, 0.4, _generator(9)), expected)
    assert torch.equal(epsilon_greedy(q, 0.4, _generator(9), None), expected)


def test_masks_that_do_not_fit_the_values_are_refused() -> None:
    for wrong in (MASKS[:1], MASKS[:, :1], MASKS.float(), MASKS[0]):
        with pytest.raises(ValueError, match=r"want \[B, A\] bool"):
            epsilon_greedy(Q_TALL, 0.5, _generator(), wrong)


# Policy


def _policy(seed: int = 0) -> tuple[Policy, Table]:
    table = Table(2, NUM_ACTIONS)
    return Policy(FlatNetwork(table), seed), table


def test_a_policy_repeats_itself_by_seed_and_not_by_step() -> None:
    obs = one_hot([0] * NUM_ENVS, 2)
    runs = []
    for seed in (1, 1, 2):
        policy, _ = _policy(seed)
        runs.append(torch.stack([policy.act(obs, 1.0) for _ in range(3)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][1])


def test_greedy_actions_draw_nothing() -> None:
    obs = one_hot([0] * NUM_ENVS, 2)
    quiet, _ = _policy()
    asked, _ = _policy()
    for _ in range(3):
        asked.greedy(obs)
        assert torch.equal(asked.act(obs, 0.5), quiet.act(obs, 0.5))


def test_greedy_is_the_argmax_of_the_network() -> None:
    policy, table = _policy()
    policy.network.flat.copy_(torch.randn(2 * NUM_ACTIONS, generator=_generator(9)))
    best = policy.greedy(one_hot([1, 0, 1], 2))
    expected = table.q.argmax(1)
    assert best.tolist() == [expected[1], expected[0], expected[1]]
    assert torch.equal(best, policy.act(one_hot([1, 0, 1], 2), 0.0))


def test_a_policy_acts_within_the_masks() -> None:
    policy, table = _policy()
    with torch.no_grad():
        table.q[:, 7] = 3.0
        table.q[:, 9] = 2.0
    obs = one_hot([0, 1, 0], 2)
    mask = torch.ones(3, NUM_ACTIONS, dtype=torch.bool)
    mask[1:, 7] = False
    assert policy.greedy(obs, mask).tolist() == [7, 9, 9]
    assert policy.act(obs, 0.0, mask).tolist() == [7, 9, 9]
    only = torch.arange(NUM_ACTIONS).expand(3, -1) == torch.tensor([[1], [2], [3]])
    for epsilon in (0.0, 0.5, 1.0):
        assert policy.act(obs, epsilon, only).tolist() == [1, 2, 3]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_greedy_on_the_host_is_greedy(native: bool, masked: bool) -> None:
    """Also where vectors of other sizes are looked at in between."""
    policy = Policy(FlatNetwork(MLP((4,), 3, (8,))))
    if native:
        policy.actor = NativeActor(policy.network)
    places = [torch.zeros(7, 4), torch.zeros(5, 4), torch.zeros(7, 4)]
    masks = [torch.ones(len(obs), 3, dtype=torch.bool) for obs in places]
    for step in range(12):
        obs, mask = places[step % 3].normal_(), masks[step % 3] if masked else None
        if mask is not None:
            mask.copy_(torch.rand(mask.shape) < 0.5)
        assert policy.greedy_on_host(obs, mask).tolist() == policy.greedy(obs, mask).tolist()


def test_acting_leaves_no_gradient_behind() -> None:
    policy, table = _policy()
    assert not policy.act(one_hot([0], 2), 0.0).requires_grad
    assert table.q.grad is None


def test_an_update_changes_the_next_action() -> None:
    """The actor holds no copy of its own: the learner's parameters act."""
    learner = Learner(
        Table(2, 3), loss="mse", optimizer=Descent(), learning_rate=0.5, target="none"
    )
    policy = Policy(learner.network)
    obs = one_hot([0, 1], 2)
    assert policy.act(obs, 0.0).tolist() == [0, 0]
    batch = transitions([0, 1], [2, 1], [1.0, 1.0], [0, 0], [True, True], num_states=2)
    learner.update(batch)
    assert policy.act(obs, 0.0).tolist() == [2, 1]
    assert policy.greedy(obs).tolist() == [2, 1]


def _elsewhere(network: nn.Module | FlatNetwork, num_parameters: int | None = None) -> Policy:
    """Return a policy whose network says that it lies on a card."""
    whole = network if isinstance(network, FlatNetwork) else FlatNetwork(network)
    policy, module = Policy(whole), whole.module
    count = policy.network.flat.numel() if num_parameters is None else num_parameters
    flat = SimpleNamespace(device=torch.device("cuda"), numel=lambda: count)
    policy.network = SimpleNamespace(flat=flat, module=module, q_values=None)  # type: ignore[assignment]
    return policy


def test_on_the_cpu_a_policy_plays_itself() -> None:
    policy = Policy(FlatNetwork(MLP((4,), 2, (8,))))
    assert policy.to_play() is policy


def test_a_small_mlp_of_a_card_is_played_on_the_cpu_as_it_is_at_this_moment() -> None:
    network, obs = FlatNetwork(MLP((4,), 3, (8,))), torch.randn(64, 4)
    truth = Policy(network)
    before = truth.greedy(obs)
    played = _elsewhere(network).to_play()
    assert isinstance(played.actor, NativeActor)
    assert torch.equal(played.greedy(obs), before)
    truth.network.flat.neg_()
    assert not torch.equal(truth.greedy(obs), before)
    assert torch.equal(played.greedy(obs), before)


def test_other_networks_of_a_card_are_played_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for policy in (_elsewhere(Branches()), _elsewhere(MLP((4,), 3, (8,)), 10**7)):
        assert policy.to_play() is policy
    monkeypatch.setattr(policy_file, "why_not_act", lambda _: "no C compiler")
    policy = _elsewhere(MLP((4,), 3, (8,)))
    assert policy.to_play() is policy
