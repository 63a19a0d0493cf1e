"""Faster actors: each chooses what the policy itself would, to the number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdqn.learner.learner import Learner
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies.actors import GraphActor, HostActor, actors_for
from fastdqn.policies.policy import Actor, EagerActor, Policy
from tests.fake_cuda import RecordingCuda
from tests.small_learners import Branches, random_batch

ENVS, ACTIONS = 6, 3


def policy_of(seed: int = 0) -> Policy:
    torch.manual_seed(0)
    return Policy(FlatNetwork(MLP((4,), ACTIONS, (8,))), seed)


def recorded(policy: Policy) -> tuple[GraphActor, RecordingCuda]:
    cuda = RecordingCuda()
    return GraphActor(policy, cuda=cuda), cuda


ACTORS: dict[str, Callable[[Policy], Actor]] = {
    "recorded": lambda policy: recorded(policy)[0],
    "on the host": HostActor,
}
each_actor = pytest.mark.parametrize("make", ACTORS.values(), ids=list(ACTORS))


def seen(step: int, size: int = ENVS) -> tuple[Tensor, Tensor]:
    """Return observations and masks that lie elsewhere at each step."""
    generator = torch.Generator().manual_seed(step)
    masks = torch.rand(size, ACTIONS, generator=generator) < 0.5
    return torch.randn(size, 4, generator=generator), masks


@each_actor
@pytest.mark.parametrize("masked", [False, True])
def test_it_acts_as_the_policy_does(make: Callable[[Policy], Actor], masked: bool) -> None:
    plain, policy = policy_of(), policy_of()
    policy.actor = make(policy)
    chosen = []
    for step in range(60):
        obs, mask = seen(step)
        epsilon = (0.0, 0.3, 1.0, 0.3)[step // 5 % 4]
        given = (obs, epsilon, mask if masked else None)
        chosen.append(policy.act(*given))
        assert torch.equal(chosen[-1], plain.act(*given))
    assert set(torch.cat(chosen).tolist()) == {0, 1, 2}


@each_actor
def test_masks_may_come_and_go_and_groups_differ_in_size(make: Callable[[Policy], Actor]) -> None:
    plain, policy = policy_of(), policy_of()
    policy.actor = make(policy)
    for step in range(24):
        obs, mask = seen(step, size=2 + step % 3)
        given = (obs, 0.5, mask if step % 2 else None)
        assert torch.equal(policy.act(*given), plain.act(*given))


@each_actor
def test_what_it_returned_is_not_overwritten_by_the_next_call(
    make: Callable[[Policy], Actor],
) -> None:
    policy = policy_of()
    policy.actor = make(policy)
    first = policy.act(seen(0)[0], 1.0)
    kept = first.clone()
    for step in range(1, 10):
        policy.act(seen(step)[0], 1.0)
    assert torch.equal(first, kept)


@each_actor
def test_every_update_changes_the_weights_that_act(make: Callable[[Policy], Actor]) -> None:
    torch.manual_seed(0)
    learner = Learner(MLP((4,), 2, (8,)), target="none", learning_rate=0.02)
    plain, policy = Policy(learner.network), Policy(learner.network)
    policy.actor = make(policy)
    obs = torch.randn(64, 4)
    changes = 0
    for wanted in (1, 0):
        for seed in range(40):
            before = policy.act(obs, 0.0)
            batch = random_batch(seed)
            reward = torch.where(batch.action == wanted, 3.0, -3.0)
            learner.update(
                type(batch)(batch.obs, batch.action, reward, batch.obs, reward < 9, reward > 9)
            )
            now = policy.act(obs, 0.0)
            assert torch.equal(now, plain.greedy(obs))
            changes += not torch.equal(now, before)
        assert now.tolist() == [wanted] * 64
    assert changes > 3


def test_a_graph_is_recorded_once_and_replayed_for_every_step() -> None:
    policy = policy_of()
    policy.actor, cuda = recorded(policy)
    for step in range(20):
        policy.act(seen(step)[0], 0.1 * (step % 3))
    assert (cuda.captures(), cuda.replays()) == (1, 20)
    for step in range(5):
        policy.act(*_masked(step))
    assert (cuda.captures(), cuda.replays()) == (2, 25)


def _masked(step: int) -> tuple[Tensor, float, Tensor]:
    obs, mask = seen(step)
    return obs, 0.5, mask


def test_the_capture_itself_draws_nothing() -> None:
    policy, plain = policy_of(), policy_of()
    policy.actor, _ = recorded(policy)
    policy.act(seen(0)[0], 0.5)
    plain.act(seen(0)[0], 0.5)
    assert torch.equal(policy._generator.get_state(), plain._generator.get_state())


def test_actors_are_found_by_their_names() -> None:
    kinds = {name: type(actor) for name, actor in actors_for(policy_of()).items()}
    assert kinds == {"eager": EagerActor, "cudagraph": GraphActor, "cpu copy": HostActor}


def test_a_module_of_the_users_own_acts_through_a_graph() -> None:
    torch.manual_seed(0)
    network = FlatNetwork(Branches())
    plain, policy = Policy(network), Policy(network)
    policy.actor, _ = recorded(policy)
    for step in range(10):
        obs, _ = seen(step)
        assert torch.equal(policy.act(obs, 0.4), plain.act(obs, 0.4))
