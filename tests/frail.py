"""Environments that fail in ways of their own.

Light on purpose: workers import this module, and they must not load PyTorch.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from tests.oracles import CounterEnv, LivingEnv
from tests.scripted import ScriptedEnv


class FallsInReset(LivingEnv):
    """Environment 0 raises in its second reset."""

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        if self.env_id == 0 and self.episode == 1:
            raise RuntimeError("it fell")
        return result


class FailsOnce(LivingEnv):
    """Raises in its first life, at its second step."""

    def step(self, action: Any) -> Any:
        if self.life == 2 and self.wakes == 1:
            raise RuntimeError("it fell")
        return super().step(action)


class Shrinks(LivingEnv):
    """Shows two numbers where its space promises five, once a file is there."""

    def __init__(self, env_id: int, flaw: str) -> None:
        super().__init__(env_id)
        self.flaw = Path(flaw)

    def _obs(self) -> Any:
        obs = super()._obs()
        return obs[:2] if self.flaw.exists() else obs


class SometimesFails(ScriptedEnv):
    """Environment 0 raises at every third step of a life."""

    def step(self, action: Any) -> Any:
        if self.env_id == 0 and self.steps == 2:
            raise RuntimeError("the third step")
        return super().step(action)


class Deadly(LivingEnv):
    """Has a method that kills its process."""

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Heavy(LivingEnv):
    """Its infos fill more than a socket; environment 0 stops its process while it sends them."""

    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        if self.env_id == 0 and self.life == 1:
            threading.Thread(target=_stop_soon, daemon=True).start()
        return *rest, {"heavy": bytes(50_000_000)}


class Keeper(LivingEnv):
    """Keeps a program running for as long as it is open, and writes a file when it is closed.

    Args:
        folder: Where `program-PID` and `closed-PID` go.
        hangs: How its second step after a reset hangs: `sleep`, or `lock` with the lock of the
            interpreter held; nothing is not at all.
    """

    def __init__(self, env_id: int, folder: str, hangs: str = "") -> None:
        super().__init__(env_id, 1000)
        self.folder, self.hangs = Path(folder), hangs
        # Neither a terminal nor a scheduler that ends its whole group ends this program.
        self.program = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        (self.folder / f"program-{self.program.pid}").touch()

    def step(self, action: Any) -> Any:
        result = super().step(action)
        if self.hangs and self.t == 2:
            time.sleep(1000) if self.hangs == "sleep" else sum(itertools.repeat(0))
        return result

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        (self.folder / f"closed-{self.program.pid}").touch()

    def signals_of_program(self) -> tuple[int, int]:
        """Return which signals its program has blocked, and which it ignores, as bits."""
        lines = Path(f"/proc/{self.program.pid}/status").read_text().splitlines()
        said = dict(line.split(":", 1) for line in lines)
        return int(said["SigBlk"], 16), int(said["SigIgn"], 16)


class FrailCartPole(CartPoleEnv):
    """CartPole that crashes with probability 1e-4 per step, and stalls 2 s with 5e-4.

    Every other crash raises, the others kill the worker.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = np.random.default_rng()
        self.mortal = multiprocessing.parent_process() is not None

    def step(self, action: Any) -> Any:
        fate = self.dice.random() if self.mortal else 1.0
        if fate < 0.5e-4:
            os.kill(os.getpid(), signal.SIGKILL)
        if fate < 1e-4:
            raise RuntimeError("the pole broke")
        if fate < 6e-4:
            time.sleep(2.0)
        return super().step(action)  # type: ignore[no-untyped-call]


class Bare:
    """No more than a training needs: two methods and two spaces."""

    def __init__(self) -> None:
        self.inner = CartPoleEnv()
        self.action_space, self.observation_space = self.inner.action_space, Box(-9, 9, (4,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.inner.reset(seed=seed)

    def step(self, action: Any) -> Any:
        return self.inner.step(action)  # type: ignore[no-untyped-call]


class Stuck(CartPoleEnv):
    def close(self) -> None:
        raise OSError("the window is gone")


def _nothing() -> None:
    """Do nothing, in a process."""


class Parental(CartPoleEnv):
    """Starts a process with multiprocessing."""

    def __init__(self) -> None:
        super().__init__()
        process = multiprocessing.get_context("fork").Process(target=_nothing)
        process.start()
        process.join()


def frail_cartpole() -> TimeLimit[Any, Any]:
    """Return a FrailCartPole with the time limit of CartPole-v1."""
    return TimeLimit(FrailCartPole(), 500)


def _stop_soon() -> None:
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGSTOP)


class GlitchyEnv(CounterEnv):
    """Returns numbers that are not finite, again and again.

    Args:
        env_id: See `CounterEnv`.
        rewards: Of each number of steps so far, the remainder by 100 after which it pays a NaN.
        shows: Likewise, after which the last number of its observation is an infinity.
        starts: Numbers of resets, from 0, whose first observation is a NaN.
        value: What it shows.
        length: Env steps of an episode.
    """

    def __init__(
        self,
        env_id: int = 0,
        rewards: Sequence[int] = (),
        shows: Sequence[int] = (),
        starts: Sequence[int] = (),
        *,
        value: float = float("inf"),
        length: int | Sequence[int] = 4,
        ends_by: str = "truncated",
    ) -> None:
        super().__init__(env_id, length, ends_by)
        self.rewards, self.shows, self.starts = rewards, shows, starts
        self.value = value

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        if self.episode in self.starts:
            obs[-1] = np.nan
        return obs, info

    def step(self, action: int) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.wakes % 100 in self.rewards:
            reward = float("nan")
        if self.wakes % 100 in self.shows:
            obs[-1] = self.value
        return obs, reward, terminated, truncated, info
