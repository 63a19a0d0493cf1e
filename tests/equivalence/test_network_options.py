"""Dueling heads, noisy layers, LayerNorm and other activations: every mode learns what eager does.

Noise comes in as numbers that are drawn outside the step, so that it is the same in all modes.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fastdqn import DQN, Learner, make_tensor_env
from fastdqn.execution.modes import mode_of
from fastdqn.networks.mlp import MLP
from fastdqn.policies.actors import GraphActor, HostActor
from fastdqn.policies.policy import Policy
from fastdqn.replay import PrioritizedSampler
from fastdqn.replay.sampler import UniformSampler
from fastdqn.training.tensor.block_runner import BlockRunner
from fastdqn.training.tensor.blocks import Block
from fastdqn.training.tensor.rollout import TensorRollout
from tests.fake_cuda import RecordingCuda
from tests.learner_modes import assert_from_a_library
from tests.oracles import CounterRules
from tests.small_learners import filled_ring, random_batch
from tests.tensor_oracles import PureCounter
from tests.twins import Twins

pytestmark = pytest.mark.usefixtures("one_thread")

UPDATES = 200
COMPILE = pytest.param("compile", marks=pytest.mark.slow)
ALL: dict[str, Any] = {"dueling": True, "noisy": True, "layer_norm": True, "activation": "tanh"}
OPTIONS: dict[str, dict[str, Any]] = {
    "dueling": {"dueling": True},
    "noisy": {"noisy": True},
    "layer_norm": {"layer_norm": True},
    "tanh": {"activation": "tanh"},
    "all": ALL,
}


def twins_of(mode: str, name: str, *, precision: str = "float32") -> Twins:
    together = name == "all"
    kind = PrioritizedSampler if together else UniformSampler
    n_step = 3 if together else 1
    options = OPTIONS[name]
    return Twins(
        mode,
        lambda: Learner(MLP((4,), 2, (16, 8), **options), learning_rate=1e-3, precision=precision),
        lambda: kind(filled_ring(n_step=n_step), 8),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_two_hundred_compiled_updates_are_the_eager_ones(name: str) -> None:
    twins = twins_of("compile", name)
    twins.assert_learn_alike(UPDATES, rtol=2e-4, atol=2e-5)
    twins.assert_learned(UPDATES, 0.05)
    assert_from_a_library(twins.learners[0])


CALLS = (4, 1, 16, 8, 2, 4, 5, 16, 27, 1, 16, 100)


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("noisy", (2, 1, 2)),
        ("all", (1, 2, 1)),
        *(pytest.param(name, CALLS, marks=pytest.mark.slow) for name in OPTIONS),
    ],
    ids=lambda given: given if isinstance(given, str) else str(sum(given)),
)
def test_graphs_learn_what_eager_learning_does_to_the_bit(
    name: str, calls: tuple[int, ...]
) -> None:
    twins = twins_of("cudagraph", name)
    for updates in calls:
        twins.learn(updates)
    twins.assert_learned(sum(calls), 1e-3)
    for learner, sampler in zip(twins.learners, twins.samplers, strict=True):
        learner.update(random_batch())
        learner.learn(sampler.buffer, sampler.buffer.newest(2, 8))
    assert twins.cuda.captures() > 0
    twins.assert_equal()


@pytest.mark.slow
def test_bf16_learns_by_graphs_what_it_learns_eagerly() -> None:
    twins = twins_of("cudagraph", "all", precision="bf16")
    twins.learn(20)
    assert int(twins.learners[0].state.skipped) == 0
    twins.assert_equal()


@pytest.mark.parametrize("name", ["noisy", "all"])
def test_every_actor_chooses_by_the_same_noise(name: str) -> None:
    torch.manual_seed(0)
    policy = Policy(Learner(MLP((4,), 5, (16, 8), **OPTIONS[name])).network)
    actors: list[Any] = [GraphActor(policy, cuda=RecordingCuda()), HostActor(policy), policy.actor]
    obs, chosen = torch.randn(6, 4), []
    for _ in range(5):
        uniform = policy._drawn(6)
        actions = [actor(obs, 0.0, uniform) for actor in actors]
        assert torch.equal(actions[0], actions[2])
        assert torch.equal(actions[1], actions[2])
        chosen.append(actions[2].tolist())
    assert len(set(map(tuple, chosen))) > 1


def rollout_of(execution: str, cuda: Any = None) -> tuple[TensorRollout, Learner]:
    """Build a rollout with ten vector steps in its ring; `cuda` runs it as it would on a card."""
    torch.manual_seed(0)
    env = PureCounter(3, CounterRules((2, 5, 1, 3), "alternating"))
    size = (env.single_observation_space.shape or ())[0]
    network = MLP((size,), int(env.single_action_space.n), (8,), scale=0.1, **ALL)
    learner = Learner(network)
    given: dict[str, Any] = {"capacity": 60, "batch_size": 8, "seed": 3, "n_step": 3}
    rollout = TensorRollout(env, learner, sampler=PrioritizedSampler, **given)
    rollout.advance(Block(10, 0), 0.0)
    rollout.execute_as(execution)
    if cuda is not None:
        card = torch.device("cuda")
        written = *learner.state.written(), *rollout.sampler.written()
        parts = rollout._iteration, env, mode_of("cudagraph", card), written, card
        rollout._blocks = BlockRunner(*parts, cuda=cuda)
    return rollout, learner


@pytest.mark.parametrize("mode", ["cudagraph", COMPILE])
def test_iterations_of_tensor_environments_are_the_eager_ones(mode: str) -> None:
    cuda = RecordingCuda() if mode == "cudagraph" else None
    eager, theirs = rollout_of("eager")
    fast, mine = rollout_of("eager" if cuda else mode, cuda)
    initial = mine.state.online.clone()
    for _ in range(4 if cuda else 50):
        for rollout in (eager, fast):
            rollout.advance(Block(1, 1, 2), 0.0)
        for own, other in zip(fast.sampler.written(), eager.sampler.written(), strict=True):
            assert not cuda or torch.equal(own, other)
            own.copy_(other)
    assert cuda is None or cuda.captures() > 0
    assert int(mine.state.updates) == (8 if cuda else 100)
    assert (mine.state.online - initial).abs().max() > 1e-3
    rtol, atol = (0.0, 0.0) if cuda else (1e-3, 1e-5)
    torch.testing.assert_close(mine.state.online, theirs.state.online, rtol=rtol, atol=atol)
    cells = zip(fast.ring.ring.cells().items(), eager.ring.ring.cells().values(), strict=True)
    for (field, own), other in cells:
        assert torch.equal(own, other), field


def test_acting_in_tensor_environments_draws_noise_at_each_vector_step() -> None:
    rollout, learner = rollout_of("eager")
    numbers = []
    for _ in range(4):
        block = Block(1, 0, 2)
        rollout.advance(block, 0.0)
        for uniform in rollout._calls[block].uniform.unbind(0):
            drawn = learner.network.numbers_in(uniform, 2)
            assert drawn is not None
            assert len(drawn) == learner.network.num_random(3)
            numbers.append(tuple(drawn.tolist()))
    assert len(set(numbers)) == 8


@pytest.mark.parametrize("env", ["workers", "tensors"])
def test_a_copy_learns_on_to_the_bit(env: str) -> None:
    own: dict[str, Any] = {"num_envs": 2, "num_workers": 0} if env == "workers" else {}
    agent = DQN(
        "CartPole-v1" if env == "workers" else make_tensor_env("CartPole-v1", 2, "cpu"),
        **own,
        **ALL,
        replay="prioritized",
        n_step=2,
        learning_starts=20,
        batch_size=8,
        buffer_size=200,
        hidden_sizes=(8,),
        execution="eager",
    )
    agent.learn(total_timesteps=60)
    twin = copy.deepcopy(agent)
    for _ in range(20):
        for one in (agent, twin):
            one.learner.update(random_batch())
    for mine, theirs in zip(
        agent.learner.state.written(), twin.learner.state.written(), strict=True
    ):
        assert torch.equal(mine, theirs)
    drawn = [one.policy._drawn(2).clone() for one in (agent, twin)]
    assert torch.equal(*drawn)
    twin.learner.update(random_batch(1))
    assert not torch.equal(agent.learner.state.online, twin.learner.state.online)
    assert not torch.equal(agent.learner.network.flat, twin.learner.network.flat)
