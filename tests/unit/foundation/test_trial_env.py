"""A trial environment leaves no trace: generators, spaces and classes are as they were."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from fastdqn import DQN
from fastdqn.envs import spaces
from fastdqn.envs.description import describe
from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.provider import GymnasiumEnvs
from fastdqn.envs.spaces import read_spaces
from fastdqn.foundation.trial_env import generators_restored, trial_env

if TYPE_CHECKING:
    from collections.abc import Callable


class Mixin:
    count = 0


class Noisy(Mixin, gym.Env[Any, Any]):
    """Draws from everything and counts everything, in its constructor, its resets and its steps."""

    made, steps, rate, name, last = 0, 0, 1.0, "none", None
    log: list[Any] = []  # noqa: RUF012 - shared on purpose, as all that follows
    table: dict[str, Any] = {"resets": 0, "of": {"a": []}}  # noqa: RUF012
    seen: set[int] = set()  # noqa: RUF012
    kinds: Counter[str] = Counter()  # noqa: RUF012
    recent: deque[int] = deque(maxlen=3)  # noqa: RUF012
    ids = itertools.count(5)
    visits = np.zeros(2)
    rng = np.random.default_rng(3)
    old_rng = np.random.RandomState(3)
    python_rng = random.Random(3)
    shared_space = Discrete(50, seed=1)

    def __init__(self) -> None:
        cls = type(self)
        cls.made, Mixin.count, cls.last = cls.made + 1, Mixin.count + 1, self
        self.index = next(Noisy.ids)
        self.action_space = Discrete(50, seed=3)
        self.observation_space = Box(0, 1, (2,), seed=4)
        self._draw()

    def _draw(self) -> None:
        cls = type(self)
        cls.steps, cls.rate, cls.name = cls.steps + 1, cls.rate / 2, cls.name + "!"
        cls.fresh = cls.steps  # type: ignore[attr-defined]
        cls.log.append(self)
        cls.table["resets"] += 1
        cls.table["of"]["a"].append(1)
        cls.seen.add(cls.steps)
        cls.kinds["draw"] += 1
        cls.recent.append(cls.steps)
        cls.visits += 1
        for draw in (cls.rng.random, cls.old_rng.rand, cls.python_rng.random, random.random):
            draw()
        np.random.rand()
        torch.rand(1)
        self.shared_space.sample()
        self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._draw()
        self.action_space.seed(seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self._draw()
        return np.zeros(2, np.float32), 0.0, False, False, {}


def shown() -> list[str]:
    """Return what Noisy holds and what all generators would draw next."""
    data = {name: value for name, value in vars(Noisy).items() if not name.startswith("_")}
    rngs = [data.pop(name) for name in ("rng", "old_rng", "python_rng", "shared_space")]
    numbers = [random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()]
    states = [
        rngs[0].bit_generator.state,
        rngs[1].get_state(),
        rngs[2].getstate(),
        rngs[3].np_random.bit_generator.state,
    ]
    return [repr(value) for value in (data, Mixin.count, *numbers, *states)]


def read() -> None:
    """Look as a vector does before it chooses its workers; the choice itself is left out."""
    assert read_spaces([Noisy] * 2, "same", measure=True).step_s is not None


def seconds() -> None:
    """Time an env step as the trainer does before it chooses its workers."""
    built = GymnasiumEnvs(lambda: (Noisy(), CartPoleEnv())[1])
    assert built._seconds(lambda: 1e-4)[0] is not None


TRIALS: dict[str, Callable[[], Any]] = {
    "choice of workers": read,
    "different spaces": lambda: read_spaces([Noisy] * 2, "different", measure=False),
    "workers": lambda: GroupedVectorEnv([Noisy] * 2, num_workers=2).close(),
    "description": lambda: describe(Noisy),
    "agent": lambda: DQN(Noisy, num_envs=2, device="cpu"),
    "timing": seconds,
}


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_leaves_generators_and_classes_as_they_were(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "PATIENCE_S", 5.0)  # of a busy machine
    before = shown()
    TRIALS[name]()
    assert shown() == before


def test_an_untried_environment_does_leave_traces_which_all_are_seen() -> None:
    with trial_env(CartPoleEnv):
        env, before = Noisy(), shown()
        env.step(0)
        assert all(a != b for i, (a, b) in enumerate(zip(before, shown(), strict=True)) if i != 1)


def test_a_trial_that_raises_leaves_no_trace_either() -> None:
    before = shown()
    with pytest.raises(gym.error.Error), trial_env(Noisy) as env:
        env.reset(seed="on purpose")  # type: ignore[arg-type]
    assert shown() == before


def test_a_class_that_took_up_a_resource_is_left_as_the_trial_made_it() -> None:
    """Its other data may speak of the resource: a flag put back would start it once more."""

    class Connected(CartPoleEnv):
        lock, is_open, made = None, False, 0

        def __init__(self) -> None:
            super().__init__()
            type(self).made += 1
            if not self.is_open:
                assert self.lock is None, "it was opened twice"
                type(self).lock, type(self).is_open = threading.Lock(), True

    for _ in range(2):
        with trial_env(Connected):
            assert Connected.is_open
    assert (Connected.lock is not None, Connected.is_open, Connected.made) == (True, True, 1)


class Composite(CartPoleEnv):
    """Seeds its composite spaces in its constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space.seed(7)
        self.action_space = Dict(  # type: ignore[assignment]
            {"a": Discrete(99), "b": Tuple([Discrete(99), MultiDiscrete([99, 99])])}, seed=7
        )

    def step(self, action: Any) -> Any:
        return super().step(action["a"] % 2)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", [Noisy, Composite])
def test_spaces_give_the_samples_that_they_give_with_gymnasiums_vectors(
    kind: Callable[[], gym.Env[Any, Any]],
) -> None:
    factories = [kind] * 4
    vectors: list[Callable[[], Any]] = [
        partial(SyncVectorEnv, factories),
        partial(AsyncVectorEnv, factories),
        *(partial(GroupedVectorEnv, factories, num_workers=n) for n in (None, 0, 2)),
    ]
    message = []
    for make in vectors:
        with generators_restored():
            envs = make()
            spaces = envs.single_action_space, envs.single_observation_space, envs.action_space
            message.append(repr([space.sample() for space in spaces for _ in range(3)]))
            envs.close()
    assert message == message[:1] * len(vectors)


@pytest.mark.parametrize("num_workers", [0, None])
def test_the_environments_of_this_process_are_numbered_as_with_gymnasiums_vector(
    num_workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdqn.envs.workers.allocation.available_cores", lambda: 1)
    monkeypatch.setattr(Noisy, "ids", itertools.count())
    envs = GroupedVectorEnv([Noisy] * 3, num_workers=num_workers)
    assert envs.num_workers == 0
    assert envs.get_attr("index") == (0, 1, 2)
    envs.close()


def test_an_environment_whose_close_raises_or_is_missing_can_be_looked_at() -> None:
    class Stuck(CartPoleEnv):
        def close(self) -> None:
            raise OSError("the window is gone")

    with trial_env(Stuck) as env:
        assert env.action_space == Discrete(2)
