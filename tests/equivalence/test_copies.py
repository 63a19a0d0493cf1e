"""A deep copy is a whole: it learns as the original would, bit for bit, and apart from it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn

from fastdqn import DQN, UsageError
from fastdqn.envs.tensor import make_tensor_env
from fastdqn.learner.learner import Learner, LearnerState
from fastdqn.native import CudaUpdate, NativeActor, NativeUpdate
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies.actors import GraphActor, HostActor
from fastdqn.policies.policy import Policy
from fastdqn.replay import ReplayBuffer, UniformSampler
from fastdqn.training.callbacks import Callback
from tests.emulated.card import has_compiler, make
from tests.equivalence.test_native import replay_of
from tests.fake_cuda import RecordingCuda
from tests.small_learners import Branches, random_batch

CARTPOLE = "CartPole-v1"
SMALL: dict[str, Any] = {
    "num_envs": 4,
    "num_workers": 0,
    "learning_starts": 40,
    "batch_size": 8,
    "buffer_size": 1000,
    "hidden_sizes": (16,),
}


def cartpole() -> gym.Env[Any, Any]:
    return gym.make(CARTPOLE)


def all_of(agent: DQN) -> list[Tensor]:
    """Return all that learning changes, copied."""
    state = agent.learner.state
    tensors = [*state.written(), *agent.parameters().values(), agent.policy._generator.get_state()]
    if agent._sampler is not None:
        ring, replay = agent._sampler.ring, agent._sampler.buffer
        tensors += [ring.frames, ring.action, ring.reward, replay.generator.get_state()]
    else:
        assert agent._tensor_rollout is not None
        ring = agent._tensor_rollout.ring.ring
        tensors += [ring.frames, ring.action, agent._tensor_rollout.generator.get_state()]
    return [tensor.clone() for tensor in tensors]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def assert_whole(agent: DQN) -> None:
    """The network shows what the learner moves, and the policy acts by it."""
    flat = agent.learner.state.online
    assert agent.policy.network is agent.learner.network
    assert agent.network is agent.learner.network.module
    assert agent.learner.network.flat is flat
    kept = flat.clone()
    flat.fill_(0.5)
    assert all((parameter == 0.5).all() for parameter in agent.network.parameters())
    assert all((view == 0.5).all() for view in agent.policy._parameters)
    flat.copy_(kept)


AGENTS: dict[str, Callable[[str], DQN]] = {
    "id": lambda execution: DQN(CARTPOLE, execution=execution, **SMALL),
    "factory": lambda execution: DQN(cartpole, execution=execution, **SMALL),
    "multiplicative, hard, newest": lambda execution: DQN(
        CARTPOLE,
        execution=execution,
        epsilon_schedule="multiplicative",
        epsilon_decay_factor=0.9,
        target="hard",
        target_period=3,
        replay="newest",
        optimizer="rmsprop",
        **SMALL,
    ),
    "two groups": lambda execution: DQN(CARTPOLE, execution=execution, env_groups=2, **SMALL),
    "tensor": lambda execution: DQN(CARTPOLE, execution=execution, vectorizer="tensor", **SMALL),
    "given tensors": lambda execution: DQN(
        make_tensor_env(CARTPOLE, 4, "cpu"), execution=execution, **SMALL
    ),
    "given vector": lambda execution: DQN(
        SyncVectorEnv([cartpole] * 4), execution=execution, **{**SMALL, "num_workers": None}
    ),
}


@pytest.mark.parametrize("execution", ["eager", "native"])
@pytest.mark.parametrize("before", [0, 200])
@pytest.mark.parametrize("name", AGENTS)
def test_a_copy_learns_as_the_original_bit_for_bit(
    name: str, before: int, execution: str, one_thread: None
) -> None:
    agent = AGENTS[name](execution)
    if before:
        agent.learn(before)
    original = all_of(agent)
    twin = copy.deepcopy(agent)
    assert_same(all_of(twin), original)
    assert_whole(twin)
    agent.learn(200)
    after = all_of(agent)
    assert_same(all_of(twin), original)
    twin.learn(200)
    assert_same(all_of(twin), after)
    assert_whole(twin)
    assert twin.describe() == agent.describe()
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert twin.predict(obs).tolist() == agent.predict(obs).tolist()
    twin.learn(100)
    assert_same(all_of(agent), after)
    assert not torch.equal(twin.learner.state.online, agent.learner.state.online)


def test_an_agent_with_a_network_of_the_callers_own_is_copied_with_it() -> None:
    module = Branches()
    agent = DQN(CARTPOLE, network=module, execution="eager", **SMALL).learn(100)
    twin = copy.deepcopy(agent)
    assert twin.network is not module
    assert_whole(twin)
    twin.learn(100)
    assert agent.network is module
    saved = agent.parameters()["value.weight"].clone()
    agent.learn(100)
    assert not torch.equal(agent.parameters()["value.weight"], saved)
    assert_same(all_of(twin), all_of(agent))


def test_a_copy_of_a_copy_and_of_several_agents_at_once_are_wholes() -> None:
    agent = DQN(CARTPOLE, execution="native", **SMALL).learn(100)
    first, second = copy.deepcopy([copy.deepcopy(agent), agent])
    for each in (agent, first, second):
        each.learn(100)
        assert_whole(each)
        assert_same(all_of(each), all_of(agent))


class CopiesAt(Callback):
    """Copies an agent in the middle of a training."""

    def __init__(self, agent: DQN, episode: int) -> None:
        self.agent, self.episode = agent, episode
        self.twin: DQN | None = None

    def on_episodes(self, episodes: Any) -> None:
        if self.twin is None and any(episode.episode >= self.episode for episode in episodes):
            self.twin = copy.deepcopy(self.agent)
            self.shown = all_of(self.agent)


@pytest.mark.parametrize("vectorizer", ["grouped", "tensor"])
def test_a_copy_that_was_taken_in_the_middle_of_a_training_is_whole_and_goes_on(
    vectorizer: str,
) -> None:
    agent = DQN(CARTPOLE, execution="native", vectorizer=vectorizer, **SMALL)
    taken = CopiesAt(agent, 5)
    agent.learn(600, callback=taken)
    twin = taken.twin
    assert twin is not None
    assert_same(all_of(twin), taken.shown)
    assert_whole(twin)
    message = twin.describe()
    assert 0 < message["env_steps"] < agent.describe()["env_steps"]
    assert message["updates"] == int(twin.learner.state.updates) > 0
    twin.learn(400)
    assert twin.describe()["env_steps"] == message["env_steps"] + 400
    ratio = twin.config.replay_ratio
    assert twin.describe()["updates"] == int((twin.describe()["env_steps"] - 40) * ratio)


# Parts


@pytest.mark.parametrize("make_module", [lambda: MLP((4,), 2, (8,)), Branches])
def test_the_copy_of_a_flat_network_shows_its_own_vector(
    make_module: Callable[[], nn.Module],
) -> None:
    network = FlatNetwork(make_module())
    twin, obs = copy.deepcopy(network), torch.randn(5, 4)
    assert torch.equal(twin.module(obs), network.module(obs))
    before = network.module(obs)
    twin.flat.mul_(2.0)
    assert torch.equal(network.module(obs), before)
    assert not torch.equal(twin.module(obs), before)
    for parameter, view in zip(twin.module.parameters(), twin.views(twin.flat), strict=True):
        assert parameter.data_ptr() == view.data_ptr()
        assert parameter.requires_grad


@pytest.mark.parametrize(
    "execution", ["eager", "native", pytest.param("compile", marks=pytest.mark.slow)]
)
def test_the_copy_of_a_learner_updates_its_own_state(execution: str, one_thread: None) -> None:
    learner = Learner(MLP((4,), 2, (8,)), execution=execution)
    learner.update(random_batch(0))
    twin = copy.deepcopy(learner)
    assert twin.network.flat is twin.state.online
    before = [tensor.clone() for tensor in learner.state.written()]
    twin.update(random_batch(1))
    assert all(map(torch.equal, before, learner.state.written()))
    learner.update(random_batch(1))
    assert_same(list(twin.state.written()), list(learner.state.written()))
    assert twin.execution == execution


@pytest.mark.parametrize("masked", [False, True])
def test_the_copy_of_a_replay_buffer_goes_on_as_it_would(masked: bool) -> None:
    replay = replay_of(masked=masked)
    sampler = UniformSampler(replay, 6)
    twin = copy.deepcopy(sampler)
    assert twin.buffer.ring is twin.ring
    kept = replay.ring.frames.clone()
    row = random_batch(3, 4, obs_size=5, actions=3)
    step = (row.action, row.reward, row.terminated, row.truncated, row.next_obs)
    twin.buffer.write(*step)
    assert torch.equal(replay.ring.frames, kept)
    replay.write(*step)
    assert torch.equal(twin.ring.frames, replay.ring.frames)
    assert len(twin.buffer) == len(replay)
    assert torch.equal(twin.fill(3), sampler.fill(3))
    assert torch.equal(twin.buffer.draw(2, 5), replay.draw(2, 5))


def test_the_copy_of_a_policy_explores_as_it_would() -> None:
    for natively in (False, True):
        policy, obs = Policy(FlatNetwork(MLP((4,), 5, (8,))), seed=3), torch.randn(60, 4)
        if natively:
            policy.actor = NativeActor(policy.network)
        policy.act(obs, 0.5)
        twin = copy.deepcopy(policy)
        for _ in range(3):
            assert torch.equal(twin.act(obs, 0.5), policy.act(obs, 0.5))
        before = policy.greedy(obs)
        twin.network.flat.neg_()
        assert torch.equal(policy.greedy(obs), before)
        assert not torch.equal(twin.greedy(obs), before)


@pytest.mark.parametrize("kind", ["recorded", "cpu copy"])
def test_the_copy_of_a_policy_with_another_actor_acts_by_its_own_network(kind: str) -> None:
    policy, obs = Policy(FlatNetwork(MLP((4,), 5, (8,)))), torch.randn(40, 4)
    recorded = GraphActor(policy, cuda=RecordingCuda())
    actor = recorded if kind == "recorded" else HostActor(policy)
    policy.actor = actor
    twin = copy.deepcopy(policy)
    assert type(twin.actor) is type(actor)
    assert torch.equal(twin.act(obs, 0.0), policy.act(obs, 0.0))
    twin.network.flat.neg_()
    after = twin.act(obs, 0.0)
    assert torch.equal(after, twin.choose(obs, 0.0, torch.ones(40, 2)))
    assert not torch.equal(after, policy.act(obs, 0.0))


def own(state: LearnerState) -> list[int]:
    return [tensor.data_ptr() for tensor in state.written()]


@pytest.mark.parametrize(
    "kind",
    ["c", pytest.param("cuda", marks=pytest.mark.skipif(not has_compiler(), reason="no g++"))],
)
def test_the_copy_of_what_updates_natively_writes_into_the_copies(kind: str) -> None:
    learner = Learner(MLP((4,), 2, (8,)))
    how: Any = partial(CudaUpdate, make=make) if kind == "cuda" else NativeUpdate
    native = learner.natively(learner.state, how)
    native.on_batch(random_batch())
    learner_twin, native_twin = copy.deepcopy((learner, native))
    assert not set(own(learner_twin.state)) & set(own(learner.state))
    before = learner.state.online.clone()
    native_twin.on_batch(random_batch(1))
    assert torch.equal(learner.state.online, before)
    native.on_batch(random_batch(1))
    assert_same(list(learner_twin.state.written()), list(learner.state.written()))


# What is refused


WHOLES: dict[str, Callable[[], Any]] = {
    "agent": lambda: DQN(CARTPOLE, execution="eager", **SMALL),
    "learner": lambda: Learner(MLP((4,), 2)),
    "network": lambda: FlatNetwork(MLP((4,), 2)),
    "policy": lambda: Policy(FlatNetwork(MLP((4,), 2))),
    "buffer": lambda: ReplayBuffer(10, 2, (4,)),
    "sampler": lambda: UniformSampler(ReplayBuffer(10, 2, (4,)), 2),
    "actor": lambda: NativeActor(FlatNetwork(MLP((4,), 2))),
    "tensor agent": lambda: DQN(CARTPOLE, vectorizer="tensor", **SMALL),
}


@pytest.mark.parametrize("name", WHOLES)
def test_pickling_and_shallow_copies_are_refused_with_the_way_out(name: str) -> None:
    whole = WHOLES[name]()
    for pickled in (
        lambda: pickle.dumps(whole),
        lambda: pickle.dumps({"among": [whole]}),
        lambda: torch.save(whole, io.BytesIO()),
    ):
        with pytest.raises(UsageError, match=f"pickling {type(whole).__name__}") as message:
            pickled()
        assert message.value.way_out
    with pytest.raises(UsageError, match=r"copy\.deepcopy"):
        copy.copy(whole)


def test_pickling_an_agent_is_refused_with_save_as_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"agent.save\(path\) and DQN.load\(path\)"):
        pickle.dumps(WHOLES["agent"]())


def test_the_module_of_an_agent_is_pickled_as_any_module() -> None:
    agent = WHOLES["agent"]()
    content = io.BytesIO()
    torch.save(agent.network.state_dict(), content)
    content.seek(0)
    loaded = torch.load(content)
    assert all(torch.equal(loaded[name], value) for name, value in agent.parameters().items())
