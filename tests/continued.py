"""Rollouts that are saved and go on in other environments, and what decides whether they can.

Workers import this module, so it loads PyTorch only where rollouts are built.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Container, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers.supervision import Supervision

if TYPE_CHECKING:
    from fastdqn.foundation.state import PartState
    from fastdqn.replay import ReplayBuffer
    from fastdqn.training.host.rollout import HostRollout
    from tests.oracles import Stored

Step = tuple[Any, Any, bool, bool, dict[str, Any]]
Factory = Callable[[], gym.Env[Any, Any]]


class NoiseEnv(gym.Env[Any, Any]):
    """Shows and pays noise of its generator; ends now and then.

    Shows [walk, tag of the episode, t, what else decides, env_id], so that a transition that joins
    two episodes is seen.

    Args:
        fate: What else decides: `generator` for nothing, `hidden`, `clock` or `layout`.
        env_id: Which one.
        first: The smallest action.
    """

    def __init__(self, fate: str = "generator", env_id: int = 0, first: int = 0) -> None:
        self.observation_space = Box(-np.inf, np.inf, (5,), np.float64)
        self.action_space = Discrete(3, start=first)
        self.fate, self.env_id = fate, env_id
        self.walk, self.tag, self.t, self.layout = 0.0, 0, 0, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        if seed is not None:
            self.layout = float(seed)
        self.walk, self.t = self.np_random.normal(), 0
        self.tag = int(self.np_random.integers(2**24, dtype=np.int32))  # half of a number is left
        return self._obs(), {}

    def step(self, action: int) -> Step:
        assert self.action_space.contains(action)
        self.t += 1
        self.walk += float(action) * self.np_random.normal()
        self.np_random.integers(7, dtype=np.int32)
        if self.fate == "hidden":
            self.walk += random.random()
        ended = bool(self.np_random.random() < 0.06)
        return self._obs(), self.walk * 0.3, ended, False, {}

    def _obs(self) -> Any:
        fates = {"clock": time.perf_counter(), "layout": self.layout}
        return np.array([self.walk, self.tag, self.t, fates.get(self.fate, 0.0), self.env_id])


class GlitchyNoiseEnv(NoiseEnv):
    """Pays a NaN, shows an infinity, or begins with a NaN, each with a tenth of probability."""

    def reset(self, **given: Any) -> tuple[Any, Any]:
        obs, info = super().reset(**given)
        return self._spoiled(obs, np.nan), info

    def step(self, action: int) -> Step:
        obs, reward, *rest = super().step(action)
        pays = self.np_random.random() < 0.1
        return self._spoiled(obs, np.inf), np.nan if pays else reward, *rest

    def _spoiled(self, obs: Any, value: float) -> Any:
        if self.np_random.random() < 0.1:
            obs[0] = value
        return obs


def noisy(num_envs: int, odd: Factory | None = None, index: int = 0) -> list[Factory]:
    """Return factories of environments 0 to num_envs - 1, one of which may be odd."""
    factories: list[Factory] = [partial(NoiseEnv, env_id=i) for i in range(num_envs)]
    return [*factories[:index], odd, *factories[index + 1 :]] if odd else factories


def assert_nothing_is_joined(stored: Stored) -> None:
    """Check that each transition leads from one step of an episode to the next."""
    assert len(stored.obs)
    assert (stored.obs[:, 1] == stored.next_obs[:, 1]).all()
    assert (stored.obs[:, 2] + 1 == stored.next_obs[:, 2]).all()


def rows_of(stored: Stored, envs: Container[int]) -> list[tuple[float, ...]]:
    """Return the transitions of some of the environments, in order."""
    ends = stored.terminated | stored.truncated
    columns = np.column_stack([stored.obs, stored.next_obs, stored.action, stored.reward, ends])
    return sorted(tuple(row) for row in columns.tolist() if int(row[4]) in envs)


class MaskedNoiseEnv(NoiseEnv):
    """Allows what the sign of its walk allows, and raises on the rest."""

    def reset(self, **given: Any) -> tuple[Any, Any]:
        return super().reset(**given)[0], self._info()

    def step(self, action: int) -> Step:
        assert self._info()["action_mask"][action]
        return *super().step(action)[:4], self._info()

    def _info(self) -> dict[str, Any]:
        return {"action_mask": np.array([self.walk < 0, True, self.walk >= 0], np.int8)}


class EpisodeCounter(gym.Wrapper[Any, Any, Any, Any]):
    """Shows how many episodes there were: a state across episodes."""

    episodes = 0

    def reset(self, **given: Any) -> Any:
        self.episodes += 1
        obs, info = self.env.reset(**given)
        return self._counted(obs), info

    def step(self, action: Any) -> Any:
        obs, *rest = self.env.step(action)
        return self._counted(obs), *rest

    def _counted(self, obs: Any) -> Any:
        obs[3] = self.episodes
        return obs


def counted(env_id: int) -> gym.Env[Any, Any]:
    return EpisodeCounter(NoiseEnv(env_id=env_id))


class Silent(NoiseEnv):
    """Has no generator that Gymnasium knows, and another tag in each episode."""

    tags = itertools.count()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.tag, self.t = next(self.tags), 0
        return self._obs(), {}

    def step(self, action: int) -> Step:
        self.t += 1
        return self._obs(), 1.0, self.t >= 15, False, {}


FACTORIES: dict[str, Factory] = {
    "CartPole": partial(gym.make, "CartPole-v1"),
    "Acrobot": partial(gym.make, "Acrobot-v1"),
    "MountainCar": partial(gym.make, "MountainCar-v0"),
    "LunarLander": partial(gym.make, "LunarLander-v3"),
    "windy LunarLander": partial(gym.make, "LunarLander-v3", enable_wind=True),
    "FrozenLake": partial(gym.make, "FrozenLake-v1"),
    "Taxi": partial(gym.make, "Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3"),
    "noise": NoiseEnv,
    "noise, actions from 5": partial(NoiseEnv, first=5),
    "layout": partial(NoiseEnv, "layout"),
    "masks": MaskedNoiseEnv,
}
"""Environments whose episodes come back."""


def keeping(factories: Sequence[Factory], num_workers: int = 0, **given: Any) -> GroupedVectorEnv:
    """Return a vector that keeps its open episodes."""
    masked = {"Taxi": 6, "masks": 3}
    names = [name for name in masked if FACTORIES[name] is factories[0]]
    kwargs = {
        "num_masked": masked[names[0]] if names else 0,
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "send_infos": False,
        "keep_episodes": True,
        "supervision": Supervision(delay_s=0.0),
        **given,
    }
    return GroupedVectorEnv(factories, num_workers=num_workers, **kwargs)


def saved_and_read(state: PartState) -> PartState:
    """Return a state as a file would give it back."""
    from fastdqn.foundation.state import PartState  # noqa: PLC0415 - see above

    values = json.loads(json.dumps(state.values, allow_nan=False))
    return PartState(values, {name: each.clone() for name, each in state.tensors.items()})


def resumed(
    rollout: HostRollout,
    envs: GroupedVectorEnv,
    state: PartState | None = None,
    *,
    replay: ReplayBuffer | None = None,
    limit_s: float = 60.0,
) -> HostRollout:
    """Return another rollout that goes on where one is now, in environments of its own.

    Policy and, where no other is given, ring are copied.
    """
    from fastdqn.envs.sources.source import source_of  # noqa: PLC0415 - see above
    from fastdqn.training.host.rollout import HostRollout  # noqa: PLC0415

    saved = saved_and_read(rollout.state()) if state is None else state
    policy, ring = copy.deepcopy((rollout.policy, rollout.replay if replay is None else replay))
    twin = HostRollout(source_of(envs), policy, ring, None, rollout._tally.on_nonfinite)
    twin.restore_limit_s = limit_s
    twin.restore(saved)
    return twin


class PaysNaN(NoiseEnv):
    """Pays a NaN in its ninth step, and touches a file."""

    def __init__(self, env_id: int, path: str) -> None:
        super().__init__(env_id=env_id)
        self.path = Path(path)

    def step(self, action: int) -> Step:
        obs, reward, *rest = super().step(action)
        if self.t == 9:
            self.path.touch()
            reward = float("nan")
        return obs, reward, *rest


class DiesAfter(NoiseEnv):
    """Ends its process once, in its n-th step from the first one that finds a file.

    Args:
        env_id: Which one.
        path: The file, and with a suffix, one that says that it has happened.
        n: See above.
    """

    def __init__(self, env_id: int, path: str, n: int) -> None:
        super().__init__(env_id=env_id)
        self.path, self.died, self.left = Path(path), Path(path + ".died"), n

    def step(self, action: int) -> Step:
        self.left -= self.path.exists()
        if self.left == 0 and not self.died.exists():
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class DiesBeginning(NoiseEnv):
    """Shows what a clock decides, and ends its process once, in its second reset.

    Args:
        env_id: Which one.
        path: A file that says whether it has happened.
    """

    resets = 0

    def __init__(self, env_id: int, path: str) -> None:
        super().__init__("clock", env_id)
        self.path = Path(path)

    def reset(self, **given: Any) -> tuple[Any, Any]:
        self.resets += 1
        if self.resets == 2 and not self.path.exists():
            self.path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset(**given)


class DiesOnce(NoiseEnv):
    """Ends its process, or raises, in one step of one of its lives.

    Args:
        env_id: Which one.
        path: A file that says whether it has happened.
        at: The step of the first episode that is long enough.
        how: `dies` or `raises`.
    """

    def __init__(self, env_id: int, path: str, at: int = 9, how: str = "dies") -> None:
        super().__init__(env_id=env_id)
        self.path, self.at, self.how = Path(path), at, how

    def step(self, action: int) -> Step:
        if self.t == self.at and not self.path.exists():
            self.path.touch()
            if self.how == "raises":
                raise ValueError("out of luck")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)
