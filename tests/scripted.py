"""An environment with scripted spaces, infos and errors.

Light on purpose: workers import this module, and they must not load PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

Info = dict[str, Any]


class WordSpace(gym.Space[str]):
    """A space that Gymnasium does not know: words."""

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "word" + "!" * int(self.np_random.integers(5))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordSpace)

    __hash__ = None  # type: ignore[assignment]


class ScriptedEnv(gym.Env[Any, Any]):
    """Shows samples of its space that depend on `env_id`, episode and t alone.

    Args:
        env_id: Takes part in every observation and reward.
        obs_space: What it shows.
        action_space: What it takes; the last action is kept as it came.
        length: Env steps of an episode; ends are terminated and truncated in turn.
        infos: What its steps say, in turn; resets return their seed and options beside the first.
        fails: Names of the methods that raise a ValueError.
        naps_s: Seconds that each of its methods takes, by name.
        render_mode: `rgb_array` or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        env_id: int,
        obs_space: gym.Space[Any] | None = None,
        action_space: gym.Space[Any] | None = None,
        *,
        length: int = 3,
        infos: Sequence[Info] = (),
        fails: Sequence[str] = (),
        naps_s: dict[str, float] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.env_id, self.length, self.infos = env_id, length, infos
        self.observation_space = obs_space or Box(-9, 9, (2,), np.float32)
        self.action_space = action_space or Discrete(3)
        self.fails, self.naps_s, self.render_mode = fails, naps_s or {}, render_mode
        self.episode, self.t, self.steps = -1, 0, 0
        self.last_action: Any = None

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        self._nap_or_fail("reset")
        self.episode, self.t = self.episode + 1, 0
        info = {"seed": str(seed), "options": repr(options), **self._info()} if self.infos else {}
        return self._obs(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Info]:
        self._nap_or_fail("step")
        self.last_action = action
        self.t, self.steps = self.t + 1, self.steps + 1
        ended = self.t == self.length
        even = self.episode % 2 == 0
        reward = self.env_id + self.t / 7
        return self._obs(), reward, ended and even, ended and not even, self._info()

    def render(self) -> Any:
        self._nap_or_fail("render")
        return self.render_mode and np.full((2, 2, 3), self.env_id, np.uint8)

    def message(self, offset: int = 0, *, scale: int = 1) -> int:
        """Return a number: a method to `call` with arguments."""
        self._nap_or_fail("message")
        return (self.env_id + offset) * scale

    @property
    def broken(self) -> int:
        """Raise: an attribute that cannot be read."""
        raise ValueError("no reading of this")

    def _nap_or_fail(self, method: str) -> None:
        time.sleep(self.naps_s.get(method, 0.0))
        if method in self.fails:
            raise ValueError(f"{method} of {self.env_id} is out of luck")

    def _obs(self) -> Any:
        self.observation_space.seed(self.env_id * 10_000 + self.episode * 100 + self.t)
        return self.observation_space.sample()

    def _info(self) -> Info:
        return self.infos[self.steps % len(self.infos)] if self.infos else {}


EnvFactory = Callable[[], ScriptedEnv]


def scripted(num_envs: int = 3, **each: Any) -> list[EnvFactory]:
    """Return factories of environments 0 to num_envs - 1, with episodes of 2, 3, 4, ... steps."""
    return [partial(ScriptedEnv, i, **{"length": 2 + i, **each}) for i in range(num_envs)]
