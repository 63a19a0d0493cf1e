"""Vectors that reuse their arrays: copied where that can be, refused where it cannot."""

from __future__ import annotations

import random
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from fastdqn import UsageError
from fastdqn.envs.sources.adapted_envs import CopiedObservations, copied_observations_in
from fastdqn.envs.sources.reused_arrays import SUSPICIOUS_ENDS, ReuseWatch, refuse_reused_arrays
from fastdqn.envs.sources.source import source_of
from fastdqn.envs.workers.process import without_main_module
from tests.batched import BatchedCounter
from tests.drive import MODES, everything_in, roll, rollout_of
from tests.masked import DictMaskedCounterEnv, MaskedCounterEnv, assert_masked
from tests.oracles import (
    CounterEnv,
    CounterRules,
    Info,
    OneStateEnv,
    SameArrayCounterEnv,
    Step,
    assert_counted,
    counters,
)
from tests.unit.agent.test_dqn import small

SAME_STEP, LENGTHS = AutoresetMode.SAME_STEP, (3, 1, 7, 2, 5)
RULES = CounterRules(LENGTHS)
REUSES = r"^environment \d of a vector in mode SAME_STEP that reuses its arrays: .*NEXT_STEP"


def names(mode: AutoresetMode) -> str:
    return mode.name


@pytest.mark.parametrize("mode", MODES, ids=names)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_lent_sync_vector_that_reuses_its_arrays_is_learned_from_as_it_was(
    mode: AutoresetMode, wrapped: bool
) -> None:
    vector = SyncVectorEnv(counters(2, LENGTHS, kind=SameArrayCounterEnv), autoreset_mode=mode)
    envs: Any = RecordEpisodeStatistics(vector) if wrapped else vector
    given = list(vector.envs)
    agent = small(envs)
    for _ in range(2):
        agent.learn(150)
        assert_counted(everything_in(agent.replay), RULES)
        assert vector.envs == given
    assert isinstance(given[0], SameArrayCounterEnv)


@pytest.mark.parametrize("kind", [MaskedCounterEnv, DictMaskedCounterEnv])
def test_its_masks_are_copied_too(kind: type[MaskedCounterEnv]) -> None:
    factory = partial(kind, -1, LENGTHS)
    agent = small(SyncVectorEnv([factory] * 3, autoreset_mode=SAME_STEP)).learn(300)
    assert_masked(everything_in(agent.replay), RULES)


def test_the_environments_are_put_back_after_an_error() -> None:
    vector = SyncVectorEnv(counters(2), autoreset_mode=SAME_STEP)
    given = list(vector.envs)

    def fail() -> None:
        assert all(isinstance(env, CopiedObservations) for env in vector.envs)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), copied_observations_in(vector):
        fail()
    assert vector.envs == given


def test_a_sync_vector_without_an_agent_is_found_out_by_its_ends() -> None:
    envs = SyncVectorEnv(counters(2, LENGTHS, kind=SameArrayCounterEnv), autoreset_mode=SAME_STEP)
    rollout = rollout_of(source_of(envs))
    rollout.reset((1, 2))
    with pytest.raises(UsageError, match=REUSES):
        roll(rollout, 60)
    assert rollout.env_steps < 80


def _async(factories: Any, mode: AutoresetMode = SAME_STEP) -> AsyncVectorEnv:
    with without_main_module():
        return AsyncVectorEnv(factories, context="spawn", autoreset_mode=mode)


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        (partial(SameArrayCounterEnv, 0, LENGTHS), "observation"),
        (partial(SameArrayCounterEnv, 0, 1), "observation"),
        (partial(MaskedCounterEnv, 0, LENGTHS), "mask"),
    ],
)
def test_processes_whose_environments_reuse_their_arrays_are_refused_at_once(
    factory: Any, named: str
) -> None:
    with closing(_async([factory])) as envs, pytest.raises(UsageError, match=named):
        small(envs)


class Closing(SameArrayCounterEnv):
    """Counts its instances and cannot be closed here."""

    made = 0

    def __init__(self, *args: Any) -> None:
        Closing.made += 1
        random.random()
        super().__init__(*args)

    def close(self) -> None:
        raise RuntimeError("it is not closed")


def test_a_trial_that_cannot_be_closed_counts_and_leaves_no_trace() -> None:
    vector = _async([partial(SameArrayCounterEnv, 0, LENGTHS)])
    vector.env_fns = (partial(Closing, 0, LENGTHS),)
    before = Closing.made, random.getstate()
    with closing(vector) as envs, pytest.raises(UsageError, match="observation"):
        refuse_reused_arrays(envs, masks=False)
    assert (Closing.made, random.getstate()) == before


def test_processes_whose_environments_return_new_arrays_are_learned_from() -> None:
    with closing(_async(counters(2, LENGTHS))) as envs:
        assert_counted(everything_in(small(envs).learn(150).replay), RULES)


def test_masks_that_are_not_read_may_be_overwritten() -> None:
    with closing(_async([partial(MaskedCounterEnv, 0, LENGTHS, strict=False)])) as envs:
        small(envs, action_masks=False)


# Vectors of the caller's own


class ReusingVector(BatchedCounter):
    """Returns the same arrays at each step, and overwrites them.

    Args:
        overwrites: Whether the reset within a step spoils the last observations, too.
    """

    def __init__(self, mode: AutoresetMode, *, overwrites: bool = False) -> None:
        super().__init__(3, mode)
        self.single_observation_space = CounterEnv().observation_space
        self.kept: list[Any] = []
        self.overwrites = overwrites

    def _same(self, arrays: Any) -> list[Any]:
        self.kept = self.kept or [array.copy() for array in arrays]
        for kept, array in zip(self.kept, arrays, strict=True):
            kept[:] = array
        return self.kept

    def reset(self, **kwargs: Any) -> Any:
        obs, infos = super().reset(**kwargs)
        nothing = np.zeros(3), np.zeros(3, np.bool_), np.zeros(3, np.bool_)
        kept = self._same((obs, *nothing))
        return kept[0], infos

    def step(self, actions: Any) -> Any:
        *results, infos = super().step(actions)
        kept = self._same(results)
        if self.overwrites and "final_obs" in infos:
            infos["final_obs"] = kept[0].copy()
        return *kept, infos


@pytest.mark.parametrize("mode", MODES, ids=names)
def test_a_vector_that_reuses_the_whole_batch_is_copied_in_time(mode: AutoresetMode) -> None:
    rollout = rollout_of(source_of(ReusingVector(mode)))
    rollout.reset((1, 2, 3))
    roll(rollout, 60)
    assert_counted(everything_in(rollout.replay), CounterRules((3, 2)))


def test_a_vector_that_spoils_its_last_observations_is_refused_within_a_few_ends() -> None:
    agent = small(ReusingVector(SAME_STEP, overwrites=True), learning_starts=50)
    with pytest.raises(UsageError, match=REUSES):
        agent.learn(400)


# No false alarms


class RingEnv(gym.Env[Any, Any]):
    """Goes around three states and ends where it started, always or anywhere.

    Args:
        starts: How many states an episode may start in.
    """

    def __init__(self, starts: int = 1) -> None:
        self.observation_space = gym.spaces.Box(0, 2, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.starts, self.state, self.t = starts, 0, 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        self.state, self.t = int(self.np_random.integers(self.starts)), 0
        return np.full(1, self.state, np.float32), {}

    def step(self, action: int) -> Step:
        self.state, self.t = (self.state + 1) % 3, self.t + 1
        return np.full(1, self.state, np.float32), 1.0, False, self.t == 3, {}


@pytest.mark.parametrize(
    "factory", [RingEnv, partial(RingEnv, 3), OneStateEnv, CounterEnv], ids=str
)
def test_environments_that_end_where_they_start_raise_no_alarm(factory: Any) -> None:
    source = source_of(SyncVectorEnv([factory] * 3, autoreset_mode=SAME_STEP))
    rollout = rollout_of(source)
    rollout.reset((1, 2, 3))
    assert len(roll(rollout, 90)) >= 50


def _shown(number: float) -> Any:
    return np.array([number], np.float32)


def test_the_watch_clears_an_environment_for_good_and_the_others_not() -> None:
    watch = ReuseWatch(2)
    watch.look(0, _shown(1), _shown(2), _shown(0))
    for start in range(SUSPICIOUS_ENDS):
        watch.look(0, _shown(-1), _shown(start), _shown(start))
        assert not watch.over
        watch.look(1, _shown(-1), _shown(start), _shown(start))
    with pytest.raises(UsageError, match=r"^environment 1 of a vector"):
        watch.look(1, _shown(-1), _shown(99), _shown(99))
    watch.look(1, _shown(1), _shown(2), _shown(0))
    assert watch.over


def test_ends_in_the_memory_of_the_next_start_are_suspicious_from_the_first_on() -> None:
    watch = ReuseWatch(1)
    for _ in range(SUSPICIOUS_ENDS - 1):
        watch.look(0, _shown(1), _shown(0), _shown(0), one_memory=True)
    with pytest.raises(UsageError, match="10 episodes ended"):
        watch.look(0, _shown(1), _shown(0), _shown(0), one_memory=True)
