"""Environments that fail in ways of their own.

Light on purpose: workers import this module, and they must not load PyTorch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TimeLimit

from tests.oracles import LivingEnv
from tests.scripted import ScriptedEnv


class FallsInReset(LivingEnv):
    """Environment 0 raises in its second reset."""

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        if self.env_id == 0 and self.episode == 1:
            raise RuntimeError("it fell")
        return result


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


def frail_cartpole() -> TimeLimit[Any, Any]:
    """Return a FrailCartPole with the time limit of CartPole-v1."""
    return TimeLimit(FrailCartPole(), 500)


def _stop_soon() -> None:
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGSTOP)
