"""Acting on a card: by graph and by a copy on the CPU as the policy itself, and one wait a step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastdqn.device import synchronize
from fastdqn.learner.learner import Learner
from fastdqn.native import CudaActor
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies import actors
from fastdqn.policies.actors import GraphActor, HostActor
from fastdqn.policies.policy import Actor, Policy
from fastdqn.replay import UniformSampler
from fastdqn.training.autotune import fastest_actor
from tests.hotpath.test_hotpath import Parts
from tests.small_learners import random_batch

pytestmark = pytest.mark.cuda

ACTORS: dict[str, Callable[[Policy], Actor]] = {
    "graph": GraphActor,
    "native": lambda policy: GraphActor(policy, CudaActor(policy.network)),
    "cpu copy": HostActor,
}
each_actor = pytest.mark.parametrize("make", ACTORS.values(), ids=list(ACTORS))


def policy_of() -> Policy:
    torch.manual_seed(0)
    return Policy(FlatNetwork(MLP((4,), 3, (8,)), "cuda"), 0)


@each_actor
@pytest.mark.parametrize("masked", [False, True])
def test_it_acts_as_the_policy_does(make: Callable[[Policy], Actor], masked: bool) -> None:
    plain, policy = policy_of(), policy_of()
    policy.actor = make(policy)
    for step in range(40):
        obs = torch.randn(6, 4, device="cuda")
        mask = torch.rand(6, 3, device="cuda") < 0.5 if masked else None
        given = (obs, (0.0, 0.3, 1.0)[step % 3], mask)
        assert torch.equal(policy.act(*given), plain.act(*given))


@each_actor
def test_every_update_changes_the_weights_that_act(make: Callable[[Policy], Actor]) -> None:
    learner = Learner(
        MLP((4,), 2, (8,)), target="none", learning_rate=0.02, device="cuda", execution="cudagraph"
    )
    policy = Policy(learner.network)
    policy.actor = make(policy)
    obs = torch.randn(64, 4, device="cuda")
    for wanted in (1, 0):
        for seed in range(60):
            given = random_batch(seed).to_tensordict().to("cuda")
            given["reward"] = torch.where(given["action"] == wanted, 3.0, -3.0)
            given["terminated"] = torch.ones_like(given["terminated"])
            learner.update(given)
        assert policy.act(obs, 0.0).tolist() == [wanted] * 64


@each_actor
def test_what_was_returned_stays(make: Callable[[Policy], Actor]) -> None:
    policy = policy_of()
    policy.actor = make(policy)
    first = policy.act(torch.randn(6, 4, device="cuda"), 1.0)
    kept = first.clone()
    for _ in range(20):
        policy.act(torch.randn(6, 4, device="cuda"), 1.0)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("num_masked", [0, 2])
@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("native", [False, True])
def test_with_graphs_a_vector_step_waits_for_its_actions_and_nothing_else(
    num_masked: int, num_groups: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed transfer, acting, drawing, learning and writing are queued."""
    waits: list[torch.device] = []

    def wait(device: torch.device) -> None:
        waits.append(device)
        synchronize(device)

    monkeypatch.setattr(actors, "synchronize", wait)
    execution = "native" if native else "cudagraph"
    parts = Parts(device="cuda", num_masked=num_masked, num_groups=num_groups, execution=execution)
    policy, sampler = parts.policy, UniformSampler(parts.replay, 8)
    policy.actor = GraphActor(policy, CudaActor(policy.network) if native else None)
    for step in range(28):
        if step == 8:
            waits.clear()
            torch.cuda.set_sync_debug_mode("error")
        parts.rollout.send(0.5 + step / 100)
        parts.learner.learn(sampler, 4)
        parts.rollout.collect()
        parts.rollout.write()
    assert len(waits) == 20
    with pytest.raises(RuntimeError, match="synchronizing"):
        parts.learner.state.metrics.tolist()


@pytest.mark.parametrize("masked", [False, True])
@each_actor
def test_on_the_host_are_the_actions_of_the_device(
    make: Callable[[Policy], Actor], masked: bool
) -> None:
    plain, policy = policy_of(), policy_of()
    policy.actor = make(policy)
    groups = [torch.zeros(6, 4, device="cuda") for _ in range(2)]
    masks = [torch.ones(6, 3, dtype=torch.bool, device="cuda") for _ in range(2)]
    for step in range(40):
        obs, mask = groups[step % 2], masks[step % 2] if masked else None
        obs.normal_()
        if mask is not None:
            mask.copy_(torch.rand(6, 3, device="cuda") < 0.5)
        epsilon = (0.0, 0.3, 1.0)[step % 3]
        action, on_host = policy.act_on_host(obs, epsilon, mask)
        assert action.tolist() == on_host.tolist() == plain.act(obs, epsilon, mask).tolist()


def test_the_fastest_actor_is_found_and_draws_nothing() -> None:
    policy = policy_of()
    before = policy._generator.get_state()
    best, message = fastest_actor(policy, torch.zeros(6, 4, device="cuda"))
    assert best in message
    assert all(kind in message for kind in ("eager", "cudagraph", "native", "cpu copy"))
    assert torch.equal(policy._generator.get_state(), before)
    action: Tensor = policy.act(torch.zeros(6, 4, device="cuda"), 0.5)
    assert action.shape == (6,)


def test_a_small_network_plays_on_the_cpu_as_it_would_on_the_card() -> None:
    policy, obs = policy_of(), torch.randn(500, 4)
    played = policy.to_play()
    assert played.network.flat.device.type == "cpu"
    wanted = policy.greedy(obs.cuda()).cpu()
    assert (played.greedy(obs) == wanted).float().mean() > 0.99  # rounding decides ties
    policy.network.flat.neg_()
    assert (played.greedy(obs) == wanted).float().mean() > 0.99  # as it was then
    assert policy.network.flat.is_cuda
    wide = Policy(FlatNetwork(MLP((4,), 3, (2000, 2000)), "cuda"))
    assert wide.to_play() is wide
