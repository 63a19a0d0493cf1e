"""One object in the place of two environments is refused by both indices, by every vectorizer."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import closing
from functools import lru_cache, partial
from itertools import cycle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from fastdqn import DQN, Supervision, UsageError
from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.sharing import (
    envs_in_use,
    refuse_shared_by_processes,
    refuse_the_same_again,
    register_holder,
)
from fastdqn.envs.sources.source import make_source, source_of
from fastdqn.envs.specs.ids import factory_of
from fastdqn.envs.workers.allocation import Allocation
from tests.oracles import CounterEnv, CrashError, CrashingEnv
from tests.unit.agent.test_dqn import small

SHARED = CounterEnv(0, 50)
ONE = r"^environments {} and {} that are one object: .*episodes would mix.*lambda: "


def one(first: int | str, second: int | str) -> str:
    return ONE.format(first, second)


def from_globals() -> CounterEnv:
    return SHARED


def factories_of_one() -> dict[str, Any]:
    """Return factories of one object each, made in different ways."""
    env = CounterEnv(0, 50)

    class Holds:
        def __init__(self) -> None:
            self.env = env

        def __call__(self) -> CounterEnv:
            return self.env

        def build(self) -> CounterEnv:
            return self.env

    return {
        "a lambda": lambda: env,
        "a default": lambda env=env: env,
        "a wrapper anew": lambda: gym.wrappers.TimeLimit(env, 5),
        "a partial": partial(gym.wrappers.TimeLimit, env, 5),
        "a list": lambda envs=[env]: envs[0],
        "an object": Holds(),
        "a method": Holds().build,
        "a module": from_globals,
        "a cache": lru_cache(CounterEnv),
    }


WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "by measurement": ({}, one("[0-3]", "[0-3]")),
    "no workers": ({"num_workers": 0}, one(0, 1)),
    "groups": ({"num_workers": 0, "num_groups": 2}, one(0, 1)),
    "one of each group": ({"num_workers": 2, "num_groups": 2}, one("[01]", "[23]")),
    "two in a worker": ({"num_workers": 2}, one("[02]", "[13]")),
    "one in a worker": ({"num_workers": 4}, one(0, 1)),
    "workers and the caller": ({"allocation": Allocation(1, 2)}, one("[02]", "[13]")),
    "supervised": ({"num_workers": 2, "supervision": Supervision()}, one("[02]", "[13]")),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_vector_of_one_object_is_refused_with_two_indices(way: str, nothing_left: None) -> None:
    settings, message = WAYS[way]
    env = CounterEnv(0, 50)
    with pytest.raises(UsageError, match=message):
        GroupedVectorEnv([lambda: env] * 4, **settings)


@pytest.mark.parametrize("form", factories_of_one())
@pytest.mark.parametrize("num_workers", [0, 2])
def test_whatever_form_the_factory_has_its_one_object_is_found(form: str, num_workers: int) -> None:
    with pytest.raises(UsageError, match=one(0, 1)):
        GroupedVectorEnv([factories_of_one()[form]] * 2, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_the_two_that_are_one_are_named(num_workers: int, nothing_left: None) -> None:
    a, b = CounterEnv(0), CounterEnv(1)
    factories = [lambda: a, lambda: b, lambda: gym.wrappers.TimeLimit(a, 9)]
    with pytest.raises(UsageError, match=one(0, 2)):
        GroupedVectorEnv(factories, num_workers=num_workers)


@pytest.mark.parametrize("vectorizer", ["grouped", "sync", "async"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_an_agent_of_one_object_is_refused_whatever_steps_it(
    vectorizer: str, num_envs: int
) -> None:
    for form, factory in factories_of_one().items():
        with pytest.raises(UsageError, match=one(0, 1)):
            small(factory, vectorizer=vectorizer, num_envs=num_envs)
        assert form


def test_a_lent_vector_of_one_object_is_refused() -> None:
    env = CounterEnv()
    for envs in (
        SyncVectorEnv([CounterEnv, lambda: env, CounterEnv, lambda: env]),
        gym.wrappers.vector.RecordEpisodeStatistics(
            SyncVectorEnv([CounterEnv, lambda: env, CounterEnv, lambda: env])
        ),
    ):
        with pytest.raises(UsageError, match=one(1, 3)):
            small(envs)


@pytest.mark.parametrize("vectorizer", ["grouped", "sync"])
def test_objects_that_are_handed_out_in_turn_are_found_when_they_come_again(
    vectorizer: str,
) -> None:
    envs = cycle([CounterEnv(0, 9), CounterEnv(1, 9), CounterEnv(2, 9)])
    factory = partial(next, envs)
    description = describe(factory)
    with pytest.raises(UsageError, match=one(0, 3)):
        make_source(vectorizer, factory, description, 4, 0)
    training = make_source(vectorizer, factory, description, 2, 0)
    with closing(training), pytest.raises(UsageError, match=r"of two vectors, such as training"):
        make_source(vectorizer, factory, description, 2, 0)
    with closing(make_source(vectorizer, factory, description, 3, 0)) as again:
        again.reset((1, 2, 3))  # they are free now


@pytest.mark.filterwarnings("ignore:.*ERROR")
def test_an_object_that_raised_and_comes_again_is_refused() -> None:
    env = CrashingEnv(0, 9, at=2)
    for supervision in (None, Supervision()):
        envs = GroupedVectorEnv([lambda: env], num_workers=0, supervision=supervision)
        env.wakes = 0
        with closing(envs):
            envs.reset(seed=0)
            envs.step(np.zeros(1, np.int64))
            with pytest.raises(UsageError, match=r"^environment 0 that was to be rebuilt"):
                _step_or_reset(envs)


def _step_or_reset(envs: GroupedVectorEnv) -> None:
    """Take the step that raises; without supervision, the reset after it builds anew."""
    try:
        envs.step(np.zeros(1, np.int64))
    except CrashError:
        envs.reset()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_environments_of_their_own_are_fine(num_workers: int, nothing_left: None) -> None:
    env, a, b = CounterEnv(), CounterEnv(0), CounterEnv(1)
    for factories in (
        [lambda: copy.deepcopy(env)] * 2,
        [lambda: a, lambda: b],
        [CounterEnv] * 2,
        [factory_of("CartPole-v1")] * 2,
    ):
        with closing(GroupedVectorEnv(factories, num_workers=num_workers)) as envs:
            envs.reset(seed=0)
            assert envs.step(np.zeros(2, np.int64))[0].shape[0] == 2


def test_vectors_may_follow_each_other_with_the_same_objects() -> None:
    a, b = CounterEnv(0), CounterEnv(1)
    for _ in range(2):
        with closing(GroupedVectorEnv([lambda: a, lambda: b], num_workers=0)) as envs:
            envs.reset(seed=0)
    given = SyncVectorEnv([lambda: a, lambda: b])
    assert isinstance(small(given).learn(60), DQN)
    assert isinstance(small(given).learn(60), DQN)
    assert source_of(given).num_envs == 2


class ActionSpaceInfo:
    """Counts what it builds."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self) -> CounterEnv:
        self.built += 1
        return CounterEnv()


def test_a_factory_that_must_build_anew_is_not_called_again() -> None:
    first = CounterEnv()
    for factory in (CounterEnv, factory_of("CartPole-v1"), partial(gym.make, "CartPole-v1")):
        refuse_the_same_again(_refusing(factory), first)
    counted = ActionSpaceInfo()
    refuse_the_same_again(counted, first)
    refuse_the_same_again(counted, first)
    assert counted.built == 1


class _Made(partial):  # type: ignore[type-arg]
    """Fails where it is called."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        pytest.fail("was built again")


def _refusing(factory: Any) -> Any:
    return _Made(factory)


def test_few_environments_are_built_before_there_are_processes() -> None:
    counted = ActionSpaceInfo()
    refuse_shared_by_processes([counted] * 8, [[(0, 4)], [(4, 8)]])
    assert counted.built == 0
    refuse_shared_by_processes([counted] * 8, [[(i, i + 1)] for i in range(8)])
    assert counted.built == 2
    refuse_shared_by_processes([counted] * 8, [[(i, i + 1)] for i in range(8)])
    assert counted.built == 2


def test_a_factory_that_cannot_build_a_second_one_yet_is_left_to_its_next_call() -> None:
    calls = iter([CounterEnv()])
    refuse_the_same_again(lambda: next(calls), next(calls))


def test_environments_in_use_stay_alive_while_others_are_compared_with_them() -> None:
    """Otherwise a new environment could get the address of a freed one, and be refused."""

    class Keeper:
        vector = "a vector"

        def __init__(self) -> None:
            self.env = CounterEnv()

        def held(self) -> list[tuple[int, Any]]:
            return [(0, self.env)]

    keeper = Keeper()
    register_holder(keeper)
    env = weakref.ref(keeper.env)
    taken = envs_in_use()
    del keeper
    gc.collect()
    assert env() is not None
    del taken
    gc.collect()
    assert env() is None
