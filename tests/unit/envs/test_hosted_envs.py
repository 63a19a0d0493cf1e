"""The host of environments: a step leaves in the block what the environments return."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiBinary, Space
from gymnasium.vector import AutoresetMode

from fastdqn.envs.workers.failures import EnvFailures
from fastdqn.envs.workers.hosted_envs import HostedEnvs
from fastdqn.envs.workers.settings import PoolSettings
from fastdqn.envs.workers.shared_block import RowSpec, SharedBlock
from tests.oracles import (
    CounterEnv,
    CrashingEnv,
    EnvFactory,
    Float64CounterEnv,
    SameArrayCounterEnv,
    Uint8CounterEnv,
    counters,
)


class ShowsEnv(CounterEnv):
    """Shows its counters in a space of its own, by values of another kind than the space's."""

    def __init__(self, space: Space[Any], shown: Any) -> None:
        super().__init__(episode_length=(3, 1, 2), ends_by="alternating")
        self.observation_space, self.shown = space, shown

    def _obs(self) -> Any:
        return self.shown(super()._obs())


def host_of(
    factories: list[EnvFactory], mode: AutoresetMode = AutoresetMode.SAME_STEP
) -> HostedEnvs:
    space = factories[0]().observation_space
    spec = RowSpec.of_spaces(len(factories), space, Discrete(3))
    settings = PoolSettings(spec, autoreset_mode=mode.value, plain_actions=True)
    host = HostedEnvs(settings, (0, len(factories)), factories, SharedBlock.allocate(spec))
    host.make()
    host.reset(list(range(len(factories))), None, [True] * len(factories))
    return host


def shows(space: Space[Any], shown: Any) -> list[EnvFactory]:
    return [lambda: ShowsEnv(space, shown)] * 3


IMAGE = Box(0, 255, (2, 3), np.uint8)
VECTOR = Box(0, 4096, (3,), np.float32)
KINDS: dict[str, list[EnvFactory]] = {
    "float32": counters(4, (3, 1, 4), "alternating"),
    "one array for all steps": counters(4, (3, 1, 4), kind=SameArrayCounterEnv),
    "float64": counters(4, (3, 1, 4), kind=Float64CounterEnv),
    "uint8": counters(4, (3, 1, 4), kind=Uint8CounterEnv),
    "float64 in float32": shows(VECTOR, lambda obs: obs.astype(np.float64)),
    "a list": shows(VECTOR, lambda obs: obs.tolist()),
    "every second number of an array": shows(VECTOR, lambda obs: np.repeat(obs, 2)[::2]),
    "images": shows(IMAGE, lambda obs: np.stack([obs, obs + 1]).astype(np.uint8)),
    "images of floats": shows(IMAGE, lambda obs: np.stack([obs, obs + 1])),
    "one number": shows(Discrete(4096), lambda obs: int(obs[2])),
    "flags": shows(MultiBinary(3), lambda obs: obs.astype(np.int8) % 2),
}


class ByHand:
    """One environment stepped without a host, and what its row should hold."""

    def __init__(self, factory: EnvFactory, mode: AutoresetMode) -> None:
        self.env, self.mode = factory(), mode
        self.row: dict[str, Any] = {"real": True}
        self.rewards: list[float] = []
        self.reset()

    def _shown(self, obs: Any) -> Any:
        return np.array(obs, self.env.observation_space.dtype).tolist()

    def reset(self) -> None:
        self.row["obs"] = self._shown(self.env.reset()[0])

    def step(self, action: int) -> None:
        row = self.row
        over = row.get("terminated", False) or row.get("truncated", False)
        if over and self.mode is AutoresetMode.NEXT_STEP:
            obs, _ = self.env.reset()
            row |= {"reward": 0.0, "terminated": False, "truncated": False, "real": False}
        else:
            obs, row["reward"], row["terminated"], row["truncated"], _ = self.env.step(action)
            self.rewards.append(row["reward"])
            row["real"] = True
        row["obs"] = self._shown(obs)
        if row["real"] and (row["terminated"] or row["truncated"]):
            row["episode_return"], row["episode_length"] = sum(self.rewards), len(self.rewards)
            self.rewards = []
            if self.mode is AutoresetMode.SAME_STEP:
                row["final_obs"] = row["obs"]
                self.reset()


@pytest.mark.parametrize("mode", AutoresetMode, ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_leaves_in_the_block_what_the_environments_tell(
    kind: str, mode: AutoresetMode
) -> None:
    host = host_of(KINDS[kind], mode)
    by_hand = [ByHand(factory, mode) for factory in KINDS[kind]]
    for step in range(30):
        over = host.rows.terminated | host.rows.truncated
        if mode is AutoresetMode.DISABLED and over.any():
            host.reset([None] * len(over), None, over.tolist())
            for i in np.flatnonzero(over).tolist():
                by_hand[i].reset()
        host.rows.action[:] = np.arange(len(by_hand)) % 3
        host.rows.resting[:] = False
        host.rows.resting[step % 2 :: 3] = step % 5 == 4
        assert host.step() is None
        for i in np.flatnonzero(~host.rows.resting).tolist():
            by_hand[i].step(i % 3)
        for i, env in enumerate(by_hand):
            row = {name: getattr(host.rows, name)[i].tolist() for name in env.row}
            assert row == env.row, (step, i)
    assert all(env.row["episode_length"] > 0 for env in by_hand)


@pytest.mark.parametrize("shape", [(2,), (1,), (4,), (1, 3), ()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("space", [VECTOR, Box(0, 1, (2, 3), np.float32)])
def test_an_observation_of_another_shape_is_never_broadcast(
    shape: tuple[int, ...], dtype: type[np.floating[Any]], space: Space[Any]
) -> None:
    right = np.zeros(space.shape or (), np.float32)
    shown = [right]
    host = host_of([lambda: ShowsEnv(space, lambda _: shown[0])] * 2)
    host.step()
    shown[0] = np.zeros(shape, dtype)
    with pytest.raises(EnvFailures) as raised:
        host.step()
    first, second = map(str, raised.value.failures)
    assert first.startswith("environment 0 raised on action 0")
    assert second.startswith("environment 1 raised on action 0")
    assert f"an observation of shape {shape}: the observation space says {space.shape}" in first


def test_one_that_raises_in_a_step_costs_the_others_nothing() -> None:
    factories: list[EnvFactory] = [CounterEnv, lambda: CrashingEnv(1, at=1), CounterEnv]
    host = host_of(factories)
    with pytest.raises(EnvFailures) as raised:
        host.step()
    assert [failure.env for failure in raised.value.failures] == [1]
    assert host.rows.obs[[0, 2], 2].tolist() == [1, 1]


def test_a_reward_that_is_no_scalar_is_refused_in_a_step() -> None:
    class Pays(CounterEnv):
        def step(self, action: int) -> Any:
            obs, reward, *rest = super().step(action)
            return obs, np.array([reward]), *rest

    host = host_of([Pays])
    with pytest.raises(EnvFailures, match="1 environments raised") as raised:
        host.step()
    assert "the reward must be a scalar" in str(raised.value.failures[0])


class Strange(CounterEnv):
    """Returns something strange in the place of one of its five values."""

    place, value = 1, None

    def step(self, action: int) -> Any:
        returned: list[Any] = list(super().step(action))
        returned[self.place] = self.value
        return tuple(returned)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (1, None, "reward None: it is no number"),
        (1, "1.0", "reward '1.0': it is no number"),
        (2, "False", "terminated 'False': it is a str, and no flag"),
        (2, float("nan"), "terminated nan: it is a float"),
        (3, {"TimeLimit.truncated": False}, "truncated {'TimeLimit.truncated': False}"),
    ],
)
def test_rewards_and_flags_that_are_none_are_refused(place: int, value: Any, said: str) -> None:
    kind = type("Kind", (Strange,), {"place": place, "value": value})
    with pytest.raises(EnvFailures) as raised:
        host_of([kind]).step()
    assert said in str(raised.value.failures[0])
    assert raised.value.final()


@pytest.mark.parametrize("flag", [True, np.True_, 1, np.array([True])])
def test_flags_of_any_make_end_an_episode(flag: Any) -> None:
    host = host_of([type("Kind", (Strange,), {"place": 2, "value": flag})])
    host.step()
    assert host.rows.terminated.tolist() == [True]


def test_gymnasiums_own_environments_are_stepped_as_they_step_themselves() -> None:
    host, env = host_of([lambda: gym.make("CartPole-v1")]), gym.make("CartPole-v1")
    env.reset(seed=0)
    for action in (np.arange(200) % 3 > 0).astype(int).tolist():
        host.rows.action[:] = action
        host.step()
        obs, reward, terminated, truncated, _ = env.step(action)
        assert host.rows.reward[0] == reward
        assert (host.rows.terminated[0], host.rows.truncated[0]) == (terminated, truncated)
        last = host.rows.final_obs if terminated or truncated else host.rows.obs
        assert last[0].tolist() == obs.tolist()
        if terminated or truncated:
            obs, _ = env.reset()
            assert host.rows.obs[0].tolist() == obs.tolist()
    host.close()
