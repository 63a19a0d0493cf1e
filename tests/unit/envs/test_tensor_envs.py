"""Environments on the device: what they offer, how they start, what they never do."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from fastdqn.envs.tensor import (
    TENSOR_ENVS,
    Acrobot,
    CartPole,
    MountainCar,
    PureTensorEnv,
    TensorEnv,
    make_tensor_env,
)
from fastdqn.errors import UsageError
from tests.hotpath.test_hotpath import Calls, Operations

IDS = sorted(TENSOR_ENVS)
STARTS = {
    "Acrobot-v1": [(-0.1, 0.1)] * 4,
    "CartPole-v1": [(-0.05, 0.05)] * 4,
    "MountainCar-v0": [(-0.6, -0.4), (0.0, 0.0)],
}
"""Lowest and highest value of every part of a first state."""

each_id = pytest.mark.parametrize("env_id", IDS)


def build(env_id: str, num_envs: int, **settings: Any) -> Any:
    return TENSOR_ENVS[env_id](num_envs, **settings)


def any_actions(env: TensorEnv, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(int(env.single_action_space.n), (env.num_envs,), generator=generator)


# What they offer


@each_id
def test_they_speak_both_protocols(env_id: str) -> None:
    env: PureTensorEnv = make_tensor_env(env_id, 3, "cpu")
    assert isinstance(env, PureTensorEnv)
    assert isinstance(env, TensorEnv)
    assert (env.env_id, env.num_envs, env.device) == (env_id, 3, torch.device("cpu"))
    assert all(len(tensor) == 3 for tensor in env.state)
    env.close()
    env.close()


def test_a_vector_environment_of_gymnasium_is_no_tensor_environment() -> None:
    vector = gym.make_vec("CartPole-v1", num_envs=1, vectorization_mode="sync")
    assert not isinstance(vector, TensorEnv)
    vector.close()


@each_id
def test_spaces_are_gymnasiums(env_id: str) -> None:
    ours, theirs = make_tensor_env(env_id, 1, "cpu"), gym.make(env_id)
    assert ours.single_observation_space == theirs.observation_space
    assert ours.single_action_space == theirs.action_space
    theirs.close()


@each_id
@pytest.mark.parametrize("num_envs", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_are_those_of_the_protocol(
    env_id: str, num_envs: int, dtype: torch.dtype
) -> None:
    env = build(env_id, num_envs, dtype=dtype, max_episode_steps=2)
    shape = (num_envs, *env.single_observation_space.shape)
    assert env.state[0].dtype is dtype
    assert env.state[1].dtype is torch.int32
    obs = env.reset(0)
    assert (obs.shape, obs.dtype) == (shape, torch.float32)
    for _ in range(3):  # a step within an episode, its end, and the next episode
        step = env.step(any_actions(env))
        assert (step.obs.shape, step.obs.dtype) == (shape, torch.float32)
        assert (step.final_obs.shape, step.final_obs.dtype) == (shape, torch.float32)
        assert (step.reward.shape, step.reward.dtype) == ((num_envs,), torch.float32)
        for flag in (step.terminated, step.truncated):
            assert (flag.shape, flag.dtype) == ((num_envs,), torch.bool)
        assert all(env.single_observation_space.contains(row.numpy()) for row in step.final_obs)


def test_an_unknown_id_is_refused_with_what_there_is_and_the_way_out() -> None:
    with pytest.raises(UsageError, match="LunarLander-v3") as refusal:
        make_tensor_env("LunarLander-v3", 4, "cpu")
    assert all(env_id in refusal.value.reason for env_id in IDS)
    assert "--vectorizer grouped" in refusal.value.way_out


@pytest.mark.parametrize("kind", [CartPole, MountainCar, Acrobot])
@pytest.mark.parametrize(
    ("num_envs", "settings", "named"),
    [
        (0, {}, "--num-envs 0"),
        (1, {"max_episode_steps": 0}, "max_episode_steps=0"),
        (1, {"dtype": torch.float16}, "float16"),
        (1, {"device": "abacus"}, "--device abacus"),
    ],
)
def test_what_cannot_be_used_is_refused(
    kind: type[CartPole | MountainCar | Acrobot],
    num_envs: int,
    settings: dict[str, Any],
    named: str,
) -> None:
    with pytest.raises(UsageError) as refusal:
        kind(num_envs, **settings)
    assert named in refusal.value.got


# How they start


def distance_from_uniform(sample: Tensor, low: float, high: float) -> float:
    """Return the Kolmogorov-Smirnov distance between a sample [K] and uniform(low, high)."""
    place = (sample.double().sort().values - low) / (high - low)
    rank = torch.arange(len(sample) + 1, dtype=torch.float64) / len(sample)
    return float(torch.maximum(place - rank[:-1], rank[1:] - place).max())


def first_states(env_id: str, num_envs: int, *, by_reset: bool) -> Tensor:
    """Return first states [K, S], drawn by `reset` or by steps that end every episode."""
    env = build(env_id, num_envs, max_episode_steps=1)
    env.reset(7)
    if not by_reset:
        assert bool(env.step(any_actions(env)).truncated.any())
    physics: Tensor = env.state[0]
    return physics.clone()


@each_id
@pytest.mark.parametrize("by_reset", [True, False])
def test_first_states_are_uniform_within_gymnasiums_bounds(env_id: str, by_reset: bool) -> None:
    count = 20_000
    states = first_states(env_id, count, by_reset=by_reset)
    for part, (low, high) in zip(states.unbind(1), STARTS[env_id], strict=True):
        if low == high:
            assert bool((part == low).all())
            continue
        assert low - 1e-7 <= float(part.min()) < low + 1e-4
        assert high - 1e-4 < float(part.max()) <= high + 1e-7
        assert abs(float(part.mean()) - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * count)
        # 1.95 / sqrt(K) is passed by chance once in a thousand samples.
        assert distance_from_uniform(part, low, high) < 1.95 / math.sqrt(count)
        assert len(set(part.tolist())) > 0.98 * count


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "CartPole-v1"])
def test_the_parts_of_a_first_state_are_independent(env_id: str) -> None:
    correlation = torch.corrcoef(first_states(env_id, 20_000, by_reset=True).T)
    assert float((correlation - torch.eye(4)).abs().max()) < 5 / math.sqrt(20_000)


def test_gymnasiums_own_first_states_lie_within_the_same_bounds() -> None:
    for env_id, bounds in STARTS.items():
        env = gym.make(env_id)
        for seed in range(200):
            env.reset(seed=seed)
            inner: Any = env.unwrapped
            for value, (low, high) in zip(inner.state, bounds, strict=True):
                assert low - 1e-7 <= value <= high + 1e-7
        env.close()


@each_id
def test_a_seed_decides_everything_from_the_reset_on(env_id: str) -> None:
    env, again = (build(env_id, 6, max_episode_steps=3) for _ in range(2))

    def played(env: Any, seed: int) -> Tensor:
        seen = [env.reset(seed)]
        seen += [env.step(any_actions(env, index)).obs for index in range(8)]
        return torch.stack(seen)

    first, other = played(env, 1), played(env, 2)
    assert torch.equal(played(again, 1), first)
    assert torch.equal(played(env, 1), first)  # two steps into an episode, it begins anew
    assert not bool((first[0] == other[0]).all(1).any())
    assert len({tuple(row) for row in first[0].tolist()}) == 6


@each_id
def test_a_reset_begins_every_episode_anew(env_id: str) -> None:
    env = build(env_id, 3, max_episode_steps=4)
    env.reset(0)
    for _ in range(3):
        env.step(any_actions(env))
    assert env.state[1].tolist() == [3, 3, 3]
    env.reset(0)
    cuts = [bool(env.step(any_actions(env)).truncated.any()) for _ in range(4)]
    assert cuts == [False, False, False, True]


def test_an_environment_that_was_never_reset_starts_like_one_that_was() -> None:
    assert torch.equal(CartPole(3).state[0], CartPole(3).reset(0))


# One step


@each_id
def test_a_step_is_an_advance_with_numbers_of_its_own(env_id: str) -> None:
    env, twin = (build(env_id, 4, max_episode_steps=2) for _ in range(2))
    env.reset(9)
    generator = torch.Generator().manual_seed(9)
    first = torch.rand(4, env.num_random, generator=generator)
    assert torch.equal(env.state[0], twin._start(first))
    twin.reset(9)
    for index in range(5):
        action = any_actions(env, index)
        uniform = torch.rand(4, env.num_random, generator=generator)
        ours, other = env.step(action), twin.advance(action, uniform)
        for name in ("obs", "final_obs", "reward", "terminated", "truncated"):
            assert torch.equal(getattr(ours, name), getattr(other, name))


@each_id
def test_only_those_that_ended_begin_anew(env_id: str) -> None:
    env, plain = (build(env_id, 4, max_episode_steps=10) for _ in range(2))
    env.reset(0)
    plain.reset(0)
    env.state[1].copy_(torch.tensor([9, 0, 9, 3], dtype=torch.int32))
    action, uniform = any_actions(env), torch.rand(4, env.num_random)
    step, without = env.advance(action, uniform), plain.advance(action, uniform)
    assert step.truncated.tolist() == [True, False, True, False]
    assert not bool(without.truncated.any())
    assert torch.equal(step.final_obs, without.obs)  # what it would have been, had none ended
    assert torch.equal(step.obs[[1, 3]], step.final_obs[[1, 3]])
    assert torch.equal(step.obs[[0, 2]], env._observe(env._start(uniform))[[0, 2]])
    assert not bool((step.obs[[0, 2]] == step.final_obs[[0, 2]]).all(1).any())
    assert env.state[1].tolist() == [0, 1, 0, 4]


@each_id
def test_the_state_stays_where_it_was_born_and_results_are_the_callers(env_id: str) -> None:
    env = build(env_id, 4, max_episode_steps=3)
    state, places = env.state, [tensor.data_ptr() for tensor in env.state]
    obs = env.reset(0)
    step = env.step(any_actions(env))
    kept = [obs.clone(), step.obs.clone(), step.final_obs.clone(), step.reward.clone()]
    for _ in range(4):
        env.step(any_actions(env))
    now = [obs, step.obs, step.final_obs, step.reward]
    assert all(torch.equal(left, right) for left, right in zip(kept, now, strict=True))
    assert env.state is state
    assert [tensor.data_ptr() for tensor in env.state] == places

    before = env.state[0].clone()
    env.step(any_actions(env)).obs.fill_(9.0)
    assert not bool((env.state[0] == 9.0).any())
    assert not torch.equal(env.state[0], before)


@each_id
def test_actions_and_random_numbers_are_only_read(env_id: str) -> None:
    env = build(env_id, 4)
    action, uniform = any_actions(env), torch.rand(4, env.num_random)
    kept = action.clone(), uniform.clone()
    env.advance(action, uniform)
    assert torch.equal(action, kept[0])
    assert torch.equal(uniform, kept[1])


# What they never do


@each_id
def test_a_step_makes_no_float64_and_never_looks_at_the_device(env_id: str) -> None:
    env = build(env_id, 4, max_episode_steps=3)
    action = any_actions(env)
    with Operations() as operations, Calls() as calls:
        env.reset(0)
        for _ in range(5):
            env.step(action)
    assert operations.doubles == []
    assert operations.looks == []
    assert not calls.names
    assert operations.names["aten.where"] == 5


@each_id
def test_float64_physics_would_be_noticed(env_id: str) -> None:
    env = build(env_id, 4, dtype=torch.float64)
    with Operations() as operations:
        env.step(any_actions(env))
    assert operations.doubles


@each_id
def test_a_step_does_as_many_operations_for_many_environments_as_for_one(env_id: str) -> None:
    counts = []
    for num_envs in (1, 64):
        env = build(env_id, num_envs)
        action = any_actions(env)
        with Operations() as operations:
            env.step(action)
        counts.append(operations.names)
    assert counts[0] == counts[1]
