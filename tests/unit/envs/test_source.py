"""Sources: what differs between vectors and modes ends here."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sources.source import GroupedSource, VectorSource, make_source, source_of
from fastdqn.envs.specs.ids import factory_of
from fastdqn.errors import UsageError
from tests.batched import BatchedCounter
from tests.drive import MODES, everything_in, roll, rollout_of, vector_of
from tests.oracles import (
    ArrayRewardEnv,
    CounterEnv,
    CounterRules,
    OffsetCounterEnv,
    OneStateEnv,
    assert_complete,
    assert_counted,
    counters,
)

every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def _sync(mode: AutoresetMode, **kwargs: Any) -> VectorSource:
    return VectorSource(
        SyncVectorEnv(counters(2, **kwargs), autoreset_mode=mode), describe(CounterEnv)
    )


def _step(source: VectorSource, *actions: int) -> None:
    source.send(np.array(actions))
    source.recv()


# One step at a time


def test_within_a_step_the_last_observation_and_the_next_first_one_lie_apart() -> None:
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        source = _sync(mode, episode_length=(2, 3))
        source.reset([0, 1])
        assert source.rows.obs.tolist() == [[0, 0, 0], [1, 0, 0]]
        _step(source, 0, 0)
        _step(source, 0, 0)
        rows = source.rows
        assert rows.truncated.tolist() == [True, False]
        assert rows.final_obs[0].tolist() == [0, 0, 2]
        assert rows.obs.tolist() == [[0, 1, 0], [1, 0, 2]]
        assert rows.real.tolist() == [True, True]
        assert (rows.episode_return[0], rows.episode_length[0]) == (0 + 4, 2)
        source.close()


def test_in_next_step_mode_the_reset_is_a_row_that_is_not_real() -> None:
    source = _sync(AutoresetMode.NEXT_STEP, episode_length=(2, 3), ends_by="terminated")
    rows = source.rows
    source.reset([0, 1])
    _step(source, 0, 0)
    _step(source, 0, 0)
    assert rows.obs.tolist() == [[0, 0, 2], [1, 0, 2]]
    assert (rows.terminated.tolist(), rows.real.tolist()) == ([True, False], [True, True])
    _step(source, 1, 1)
    assert rows.obs.tolist() == [[0, 1, 0], [1, 0, 3]]
    assert (rows.terminated.tolist(), rows.real.tolist()) == ([False, True], [False, True])
    _step(source, 1, 1)
    assert rows.obs.tolist() == [[0, 1, 1], [1, 1, 0]]
    assert rows.real.tolist() == [True, False]
    source.close()


@every_mode
def test_results_are_copied_even_from_a_vector_that_hands_out_its_own_buffer(
    mode: AutoresetMode,
) -> None:
    envs = SyncVectorEnv(counters(2), autoreset_mode=mode, copy=False)
    rollout = rollout_of(source_of(envs))
    rollout.reset([0, 1])
    roll(rollout, 20)
    rollout.source.close()
    assert_counted(everything_in(rollout.replay), CounterRules())


@every_mode
def test_a_reset_clears_the_rewards_and_ends_of_the_last_step(mode: AutoresetMode) -> None:
    for kind in ("grouped 0", "grouped 1", "sync"):
        source = source_of(vector_of(kind, counters(2, 1), mode))
        source.reset([0, 1])
        source.send(np.array([1, 2]))
        source.recv()
        assert source.rows.reward.all()
        assert source.rows.truncated.all()
        source.reset([0, 1])
        rows = source.rows
        assert not rows.reward.any()
        assert not rows.truncated.any()
        assert rows.real.all()
        source.close()


# Actions


@pytest.mark.parametrize("kind", ["grouped 0", "grouped 2", "sync", "async"])
def test_actions_count_from_zero_whatever_the_space_says(kind: str) -> None:
    factories = counters(2, kind=OffsetCounterEnv)
    source = source_of(vector_of(kind, factories, AutoresetMode.SAME_STEP))
    assert source.description.first_action == 5
    rollout = rollout_of(source)
    rollout.reset([0, 1])
    roll(rollout, 30)
    source.close()
    stored = everything_in(rollout.replay)
    assert set(stored.action) == {0, 1, 2}
    assert_counted(stored, CounterRules())


# Vectors that are one program


@every_mode
def test_a_vector_that_is_one_program_gives_true_transitions(mode: AutoresetMode) -> None:
    envs = BatchedCounter(3, mode)
    rollout = rollout_of(source_of(envs))
    rollout.reset([31, 32, 33])
    roll(rollout, 40)
    stored = everything_in(rollout.replay)
    assert envs.seed == 31
    assert_counted(stored, envs.rules)
    assert_complete(stored, envs.rules, 3)


def test_gymnasiums_own_batched_cartpole_rolls_out() -> None:
    """Euler's x' = x + 0.02 v holds within an episode and at no reset."""
    envs = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    rollout = rollout_of(source_of(envs))
    rollout.reset([1, 2, 3, 4])
    episodes = roll(rollout, 100)
    stored = everything_in(rollout.replay)
    assert len(episodes) > 8
    assert rollout.env_steps == 400 - sum(e.env_step < rollout.env_steps for e in episodes)
    expected = stored.obs[:, 0] + 0.02 * stored.obs[:, 1]
    assert np.allclose(stored.next_obs[:, 0], expected, atol=1e-5)
    envs.close()


@pytest.mark.parametrize("mode", [None, "Sometimes"])
def test_a_vector_that_does_not_say_its_mode_is_refused(mode: str | None) -> None:
    with pytest.raises(UsageError, match=r"BatchedCounter with autoreset_mode .*Set envs.metadata"):
        source_of(BatchedCounter(2, mode))


# What is refused


def test_a_vector_with_dict_observations_is_refused() -> None:
    envs = BatchedCounter(2, AutoresetMode.NEXT_STEP)
    envs.single_observation_space = Dict({"a": Discrete(2)})
    with pytest.raises(UsageError, match="BatchedCounter with Dict observations"):
        source_of(envs)


def test_a_vector_with_continuous_actions_is_refused() -> None:
    envs = BatchedCounter(2, AutoresetMode.NEXT_STEP)
    envs.single_action_space = Box(-1, 1, (2,), np.float32)
    with pytest.raises(UsageError, match="BatchedCounter with action space Box"):
        source_of(envs)


@pytest.mark.parametrize("kind", ["grouped 1", "async"])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_reward_of_shape_1_is_refused_with_the_way_out(num_envs: int, kind: str) -> None:
    """Also for one environment, where an array of shape (1, 1) would fit by broadcasting."""
    envs = vector_of(kind, counters(num_envs, kind=ArrayRewardEnv), AutoresetMode.SAME_STEP)
    source = source_of(envs)
    source.reset(range(num_envs))
    source.send(np.zeros(num_envs, np.int64))
    with pytest.raises(ValueError, match=r"scalar.*shape|shape.*scalar") as refused:
        source.recv()
    source.close()
    assert "float(reward[0])" in str(refused.value)


# Kinds of source


def test_only_a_grouped_vector_in_same_step_mode_shares_its_block() -> None:
    for mode in MODES:
        envs = GroupedVectorEnv(counters(2), autoreset_mode=mode, num_workers=1)
        source = source_of(envs)
        shares = isinstance(source, GroupedSource)
        assert shares is (mode is AutoresetMode.SAME_STEP)
        assert (source.rows is envs.rows) is shares
        source.close()
        assert envs.closed


@pytest.mark.parametrize(
    ("kind", "mode", "num_workers"),
    [
        ("grouped 0", AutoresetMode.SAME_STEP, 0),
        ("grouped 1", AutoresetMode.SAME_STEP, 1),
        ("grouped 1", AutoresetMode.NEXT_STEP, 1),
        ("async", AutoresetMode.NEXT_STEP, 2),
        ("sync", AutoresetMode.NEXT_STEP, 0),
    ],
)
def test_a_source_says_how_many_processes_step(
    kind: str, mode: AutoresetMode, num_workers: int
) -> None:
    bare = vector_of(kind, counters(2), mode)
    source = source_of(bare)
    wrapped = source_of(gym.wrappers.vector.RecordEpisodeStatistics(bare))
    source.close()
    assert (source.num_envs, source.num_workers) == (2, num_workers)
    assert wrapped.num_workers == num_workers


def test_a_source_of_a_vector_is_described_by_its_spec() -> None:
    envs = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    described = source_of(envs).description
    envs.close()
    assert (described.env_id, described.solved_at, described.num_actions) == (
        "CartPole-v1",
        475.0,
        2,
    )


@pytest.mark.parametrize("vectorizer", ["grouped", "async", "sync"])
def test_made_sources_reset_within_the_step_and_send_no_infos(vectorizer: str) -> None:
    factory = factory_of("CartPole-v1", max_episode_steps=2)
    source = make_source(vectorizer, factory, describe(factory), 2)
    source.reset([1, 2])
    for _ in range(2):
        source.send(np.array([0, 1]))
        source.recv()
    assert source.resets_within_step
    assert source.rows.truncated.all()
    assert not np.array_equal(source.rows.final_obs, source.rows.obs)
    source.close()


def test_made_sources_start_no_more_workers_than_environments() -> None:
    factory = partial(OneStateEnv)
    source = make_source("grouped", factory, describe(factory), 2, 9)
    source.close()
    assert source.num_workers == 2
