"""Environments whose every transition can be checked from its contents alone.

Light on purpose: workers import this module, and they must not load PyTorch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete, MultiDiscrete

CHAIN_GAMMA = 0.5
CHAIN_Q = ((0.25, 0.5), (0.25, 1.0))
"""Q* of the ChainEnv under CHAIN_GAMMA: a row per state; columns left, right."""

Info = dict[str, Any]
Step = tuple[Any, Any, bool, bool, Info]
EnvFactory = Callable[[], gym.Env[Any, Any]]


# The counter and its rules


@dataclass(frozen=True)
class CounterRules:
    """What a CounterEnv does, as functions of what its observations show.

    Attributes:
        lengths: Env steps of an episode; environment i takes them in turn, starting at the i-th.
        ends_by: `terminated`, `truncated`, or `alternating`: even episodes are terminated.
    """

    lengths: tuple[int, ...] = (3,)
    ends_by: str = "truncated"

    def length(self, env_id: int, episode: int) -> int:
        return self.lengths[(env_id + episode) % len(self.lengths)]

    def reward(self, env_id: int, episode: int, t: int, action: int) -> float:
        """Return a whole number below 2^24, another one for all arguments; exact in float32."""
        return float(((env_id * 4096 + episode) * 64 + t) * 4 + action)

    def flags(self, env_id: int, episode: int, t: int) -> tuple[bool, bool]:
        """Return (terminated, truncated) of the step taken at `t`."""
        ended = t + 1 == self.length(env_id, episode)
        terminates = self.ends_by == "terminated" or (
            self.ends_by == "alternating" and episode % 2 == 0
        )
        return ended and terminates, ended and not terminates


class CounterEnv(gym.Env[Any, Any]):
    """Shows [env_id, episode, t]; its reward encodes all of that and the action.

    `wakes` counts its steps over all episodes, for the oracles that misbehave at one of them.
    """

    dtype: type[np.float32 | np.float64 | np.uint8] = np.float32
    first_action = 0

    def __init__(
        self,
        env_id: int = 0,
        episode_length: int | Sequence[int] = 3,
        ends_by: str = "truncated",
        num_actions: int = 3,
    ) -> None:
        lengths = (episode_length,) if isinstance(episode_length, int) else tuple(episode_length)
        self.rules = CounterRules(lengths, ends_by)
        self.env_id, self.episode, self.t, self.wakes = env_id, -1, 0, 0
        self.observation_space = Box(0, 255 if self.dtype is np.uint8 else 4096, (3,), self.dtype)
        self.action_space = Discrete(num_actions, start=self.first_action)
        self.render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        time.sleep((options or {}).get("nap_s", 0.0))
        self.episode, self.t = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action: int) -> Step:
        self.wakes += 1
        action = int(action) - self.first_action
        reward = self.rules.reward(self.env_id, self.episode, self.t, action)
        terminated, truncated = self.rules.flags(self.env_id, self.episode, self.t)
        self.t += 1
        return self._obs(), reward, terminated, truncated, {}

    def render(self) -> Any:
        return np.full((2, 2, 3), self.t, np.uint8)

    def now(self, offset: int = 0, *, scale: int = 1) -> int:
        """Return t, shifted and scaled: a method to `call` with arguments."""
        return (self.t + offset) * scale

    def nap(self, sleep_s: float) -> float:
        """Sleep, then return for how long."""
        time.sleep(sleep_s)
        return sleep_s

    def knows_id(self, env_id: str) -> bool:
        """Return whether Gymnasium knows the id in the process that hosts this environment."""
        return env_id in gym.registry

    def pid(self) -> int:
        """Return the process that hosts this environment."""
        return os.getpid()

    def has_imported(self, module: str) -> bool:
        """Return whether the process that hosts this environment has loaded a module."""
        return module in sys.modules

    def _obs(self) -> npt.NDArray[Any]:
        return np.array([self.env_id, self.episode, self.t], self.dtype)


class Float64CounterEnv(CounterEnv):
    """Shows float64."""

    dtype = np.float64


class Uint8CounterEnv(CounterEnv):
    """Shows uint8; for fewer than 256 episodes."""

    dtype = np.uint8


class OffsetCounterEnv(CounterEnv):
    """Counts its actions from 5, as Discrete(n, start=5)."""

    first_action = 5


class SameArrayCounterEnv(CounterEnv):
    """Returns the same array object from each step and reset, and overwrites it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffer = np.zeros(3, self.dtype)

    def _obs(self) -> npt.NDArray[Any]:
        self._buffer[:] = self.env_id, self.episode, self.t
        return self._buffer


class TalkativeCounterEnv(CounterEnv):
    """Fills its infos with one of each kind; some keys come only now and then."""

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        obs, _ = super().reset(seed=seed, options=options)
        info: Info = {"seed": -1 if seed is None else seed, "lives": 3}
        if options is not None:
            info["options"] = sorted(options)
        return obs, info

    def step(self, action: int) -> Step:
        obs, reward, terminated, truncated, _ = super().step(action)
        info: Info = {
            "t": self.t,
            "half": self.t / 2,
            "small": np.float32(self.t),
            "frame": np.arange(self.t, self.t + 2),
            "word": f"t{self.t}",
            "nested": {"episode": self.episode, "deep": {"even": self.t % 2 == 0}},
        }
        if self.t == 2:
            info["rare"] = self.env_id
        return obs, reward, terminated, truncated, info


class QuietCounterEnv(TalkativeCounterEnv):
    """Says something at every third step only, so that most steps send no info."""

    def step(self, action: int) -> Step:
        result = super().step(action)
        return result if self.wakes % 3 == 0 else (*result[:4], {})


# Counters that misbehave


class CrashError(Exception):
    """What a CrashingEnv raises."""


class UnpicklableError(Exception):
    """Cannot cross a process border: it holds a function of its own."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.hook = lambda: message

    def __reduce__(self) -> Any:
        raise TypeError("no pickling of this")


class HalfPicklableError(Exception):
    """Pickles, and then fails to be read: its arguments are not those of the constructor."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class CrashingEnv(CounterEnv):
    """Raises in its constructor, in `close`, in its n-th reset or in its n-th step.

    Args:
        where: `constructor`, `close`, `reset` or `step`.
        at: The call that raises, from 1.
        error: Makes the exception from a message.
    """

    def __init__(
        self,
        *args: Any,
        where: str = "step",
        at: int = 1,
        error: Callable[[str], BaseException] = CrashError,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.where, self.at, self.error = where, at, error
        if where == "constructor":
            raise error("out of luck")

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        result = super().reset(seed=seed, options=options)
        if self.where == "reset" and self.episode + 1 == self.at:
            raise self.error("out of luck")
        return result

    def step(self, action: int) -> Step:
        result = super().step(action)
        if self.where == "step" and self.wakes == self.at:
            raise self.error("out of luck")
        return result

    def close(self) -> None:
        if self.where == "close":
            raise self.error("out of luck")


class ChattyEnv(CounterEnv):
    """Puts something into its info that cannot be pickled."""

    def step(self, action: int) -> Step:
        *_, info = result = super().step(action)
        info["lock"] = threading.Lock()
        return result


class HangingEnv(CounterEnv):
    """Sleeps in its n-th step.

    Args:
        at: The step that sleeps, from 1; 0 is every step.
        sleep_s: For how long.
    """

    def __init__(self, *args: Any, at: int = 1, sleep_s: float = 60.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.at, self.sleep_s = at, sleep_s

    def step(self, action: int) -> Step:
        result = super().step(action)
        start = time.monotonic()
        if self.at in {0, self.wakes}:
            time.sleep(self.sleep_s)
        return *result[:4], {"span": np.array([start, time.monotonic()])}


class NonFiniteEnv(CounterEnv):
    """Shows or pays a NaN or an infinity in its n-th step.

    Args:
        what: `reward` or `obs`; the observation's last number is spoilt.
        at: The step, from 1; 0 is the first reset.
        value: What is not finite.
    """

    def __init__(
        self,
        *args: Any,
        what: str = "reward",
        at: int = 1,
        value: float = float("nan"),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.what, self.at, self.value = what, at, value

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        obs, info = super().reset(seed=seed, options=options)
        if self.at == 0 and self.episode == 0:
            obs[-1] = self.value
        return obs, info

    def step(self, action: int) -> Step:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.wakes == self.at:
            if self.what == "reward":
                reward = self.value
            else:
                obs[-1] = self.value
        return obs, reward, terminated, truncated, info


class ArrayRewardEnv(CounterEnv):
    """Pays an array of shape (1,)."""

    def step(self, action: int) -> Step:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, np.array([reward]), terminated, truncated, info


class WrongShapeEnv(CounterEnv):
    """Shows two numbers where its space promises three."""

    def _obs(self) -> npt.NDArray[Any]:
        return super()._obs()[:2]


# Counters with other spaces


class KeepsActionEnv(CounterEnv):
    """Takes two numbers, keeps them, and pays for the change since the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(-9, 9, (2,), np.float32)
        self.before: Any = np.zeros(2, np.float32)

    def step(self, action: Any) -> Step:
        change = float(np.abs(action - self.before).sum())
        self.before = action
        obs, _, terminated, truncated, info = super().step(0)
        return obs, change, terminated, truncated, info


class PairEnv(CounterEnv):
    """Takes two whole numbers and adds them."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = MultiDiscrete([2, 3])

    def step(self, action: Any) -> Step:
        return super().step(int(action.sum()))


def counter_with(obs: gym.Space[Any]) -> CounterEnv:
    """Return a counter that claims another observation space."""
    env = CounterEnv()
    env.observation_space = obs
    return env


# Small environments whose values are known


class ChainEnv(gym.Env[Any, Any]):
    """Two states, one-hot: right leads from the first to the second and from there to +1.

    Left returns to the first state for nothing. Its Q* is CHAIN_Q.
    """

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (2,), np.float32)
        self.action_space = Discrete(2)
        self.state = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        self.state = 0
        return self._obs(), {}

    def step(self, action: int) -> Step:
        goal = self.state == 1 and action == 1
        self.state = int(action)
        return self._obs(), float(goal), goal, False, {}

    def _obs(self) -> npt.NDArray[np.float32]:
        return np.array([self.state == 0, self.state == 1], np.float32)


class OneStateEnv(gym.Env[Any, Any]):
    """Shows [1.0] for ever and pays 1; ends after five steps.

    With gamma 0.9 its value is 10 if the end is a truncation.

    Args:
        ends_by: `truncated` or `terminated`.
        length: Env steps of an episode.
    """

    def __init__(self, ends_by: str = "truncated", length: int = 5) -> None:
        self.observation_space = Box(0.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(2)
        self.ends_by, self.length, self.t = ends_by, length, 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> Step:
        self.t += 1
        ended = self.t == self.length
        terminates = self.ends_by == "terminated"
        return np.ones(1, np.float32), 1.0, ended and terminates, ended and not terminates, {}


# Factories and the check


def counters(
    num_envs: int,
    episode_length: int | Sequence[int] = 3,
    ends_by: str = "truncated",
    kind: type[CounterEnv] = CounterEnv,
    **kwargs: Any,
) -> list[EnvFactory]:
    """Return picklable factories of counters 0 to num_envs - 1."""
    return [partial(kind, env_id, episode_length, ends_by, **kwargs) for env_id in range(num_envs)]


def one_of(odd: EnvFactory, index: int, num_envs: int) -> list[EnvFactory]:
    """Return factories of counters, `odd` taking the place of one of them."""
    factories = counters(num_envs)
    factories[index] = odd
    return factories


@dataclass(frozen=True)
class Stored:
    """Transitions as numpy arrays; B of them, in any order."""

    obs: npt.NDArray[Any]
    action: npt.NDArray[Any]
    reward: npt.NDArray[Any]
    next_obs: npt.NDArray[Any]
    terminated: npt.NDArray[Any]
    truncated: npt.NDArray[Any]
    next_action_mask: npt.NDArray[Any] | None = None


def assert_counted(stored: Stored, rules: CounterRules) -> None:
    """Check every transition of counters against what its own contents say."""
    rows = zip(
        stored.obs.astype(int).tolist(),
        stored.action.tolist(),
        stored.reward.tolist(),
        stored.next_obs.astype(int).tolist(),
        stored.terminated.tolist(),
        stored.truncated.tolist(),
        strict=True,
    )
    for (env_id, episode, t), action, reward, next_obs, terminated, truncated in rows:
        message = f"environment {env_id}, episode {episode}, t {t}"
        assert next_obs == [env_id, episode, t + 1], message
        assert reward == rules.reward(env_id, episode, t, action), message
        assert (terminated, truncated) == rules.flags(env_id, episode, t), message


def assert_complete(stored: Stored, rules: CounterRules, num_envs: int) -> None:
    """Check that every environment's transitions are there, each once, without a gap."""
    seen = sorted(map(tuple, stored.obs.astype(int).tolist()))
    expected = []
    for env_id in range(num_envs):
        count = sum(row[0] == env_id for row in seen)
        episode, t = 0, 0
        for _ in range(count):
            expected.append((env_id, episode, t))
            t += 1
            if t == rules.length(env_id, episode):
                episode, t = episode + 1, 0
    assert seen == expected


# Lives: environments that die, and transitions that say whose they are

LONGEST_LIFE = 2**20


class LivingEnv(CounterEnv):
    """Shows [env_id, life, episode, t, more]: a life begins with the seed that also names it.

    A transition from before a restart to after it joins two lives. `life` and `more` are the lower
    20 bits of the seed and the others: float32 does not hold all of them in one number, and the
    lower ones alone are now and then those of two lives of a test.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.life = self.more = 0
        self.observation_space = Box(0, 2**24, (5,), self.dtype)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        if seed is not None:
            (self.more, self.life), self.episode = divmod(seed, LONGEST_LIFE), -1
        return super().reset(seed=seed, options=options)

    def _obs(self) -> npt.NDArray[Any]:
        return np.array([self.env_id, self.life, self.episode, self.t, self.more], self.dtype)


class MortalEnv(LivingEnv):
    """Dies, hangs or raises at random moments of its steps and resets, by its seed's dice.

    It kills and hangs workers alone, never the process that runs the tests.

    Args:
        kills: Probability, per step and per reset, that it kills its process.
        hangs: Probability that it sleeps for `sleep_s`.
        raises: Probability that it raises something, readable or not.
        sleep_s: How long it hangs.
    """

    def __init__(
        self,
        *args: Any,
        kills: float = 0.0,
        hangs: float = 0.0,
        raises: float = 0.0,
        sleep_s: float = 1000.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.kills, self.hangs, self.raises, self.sleep_s = kills, hangs, raises, sleep_s
        self.dice = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        if seed is not None:
            self.dice = np.random.default_rng(seed)
        early, late = self._fates()
        self._meet(early)
        result = super().reset(seed=seed, options=options)
        self._meet(late)
        return result

    def step(self, action: int) -> Step:
        early, late = self._fates()
        self._meet(early)
        result = super().step(action)
        self._meet(late)
        return result

    def _fates(self) -> tuple[float, float]:
        """Return what happens before and after the act: something at one of the two at most."""
        fate = float(self.dice.random())
        return (fate, 1.0) if self.dice.random() < 0.5 else (1.0, fate)

    def _meet(self, fate: float) -> None:
        if multiprocessing.parent_process() is not None:
            if fate < self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            fate -= self.kills
            if 0 <= fate < self.hangs:
                time.sleep(self.sleep_s)
            fate -= self.hangs
        if 0 <= fate < self.raises:
            kinds = (CrashError, UnpicklableError, partial(HalfPicklableError, 7))
            raise kinds[int(self.dice.integers(3))]("out of luck")


class FlawedEnv(CounterEnv):
    """Cannot be built in a worker once a file is there; without the file all is well.

    Args:
        env_id: See `CounterEnv`.
        flaw: Path of the file.
        how: `raises`, `exits`, `dies` or `hangs`.
    """

    def __init__(self, env_id: int, flaw: str, how: str = "raises") -> None:
        super().__init__(env_id)
        if multiprocessing.parent_process() is None or not os.path.exists(flaw):  # noqa: PTH110
            return
        if how == "raises":
            raise HalfPicklableError(7, "out of parts")
        if how == "exits":
            raise SystemExit(9)
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000.0)


def assert_lived(stored: Stored, rules: CounterRules) -> dict[int, int]:
    """Check every transition of LivingEnvs from its contents: none joins two lives.

    Every life is there from its first step to where it was cut, each transition once.

    Returns:
        How many lives each environment has had.
    """
    obs, after = stored.obs.astype(np.int64), stored.next_obs.astype(np.int64)
    assert ((after - obs) == [0, 0, 0, 1, 0]).all()
    env_id, life, episode, t, more = obs.T
    life = more * LONGEST_LIFE + life
    np.testing.assert_array_equal(
        stored.reward.astype(np.int64), ((env_id * 4096 + episode) * 64 + t) * 4 + stored.action
    )
    flags = [rules.flags(e, k, s) for e, k, s in zip(env_id, episode, t, strict=True)]
    np.testing.assert_array_equal(np.stack([stored.terminated, stored.truncated], 1), flags)
    lives: dict[int, int] = {}
    for e, one in np.unique(np.stack([env_id, life], 1), axis=0).tolist():
        lives[e] = lives.get(e, 0) + 1
        mine = (env_id == e) & (life == one)
        seen = sorted(zip(episode[mine].tolist(), t[mine].tolist(), strict=True))
        assert seen == _first_steps(rules, e, len(seen)), f"environment {e}, life {one}: {seen}"
    return lives


def _first_steps(rules: CounterRules, env_id: int, count: int) -> list[tuple[int, int]]:
    """Return (episode, t) of the first steps of a life."""
    steps: list[tuple[int, int]] = []
    episode = t = 0
    while len(steps) < count:
        steps.append((episode, t))
        t += 1
        if t == rules.length(env_id, episode):
            episode, t = episode + 1, 0
    return steps
