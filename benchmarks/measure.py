"""What is timed: the limits of the machine, the naive loop, and fastdqn end to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import gymnasium as gym
import torch

from benchmarks.naive import NaiveDQN
from fastdqn import DQN
from fastdqn.device import available_cores, resolve_device, synchronize
from fastdqn.loop import NullWitness
from fastdqn.trainer import Trainer

__all__ = ["Limits", "Setting", "Timer", "bare_timer", "limits_of", "open_timers", "repeat"]

Timer = Callable[[float], float]
"""Runs for so many seconds and returns a rate per second."""


@dataclass(frozen=True)
class Setting:
    """One comparison.

    Attributes:
        env_id: Gymnasium id.
        hidden: Units of both hidden layers.
        batch_size: Transitions per update.
        num_envs: Environments of fastdqn's side.
        ratios: Replay ratios of fastdqn's side; the naive loop has 1.
        device: Where fastdqn learns.
    """

    env_id: str = "LunarLander-v3"
    hidden: int = 64
    batch_size: int = 64
    num_envs: int = 16
    ratios: tuple[float, ...] = (1.0, 0.25, 0.0625)
    device: str = "auto"


@dataclass(frozen=True)
class Limits:
    """The rates that bound every loop on this machine.

    Attributes:
        bare_sps: Env steps per second of one process that steps the bare environment, r1.
        updates_per_s: Updates per second of the learner alone, U.
        cores: CPU cores, c.
        on_cpu: Whether learner and workers share the cores.
    """

    bare_sps: float
    updates_per_s: float
    cores: int
    on_cpu: bool

    def sps_max(self, ratio: float) -> float:
        """Return the env steps per second that no loop of this replay ratio can pass."""
        learner = self.updates_per_s / ratio
        if not self.on_cpu:
            return min(self.cores * self.bare_sps, learner)
        return min(self.cores / (1 / self.bare_sps + ratio / self.updates_per_s), learner)


@contextmanager
def open_timers(setting: Setting) -> Iterator[dict[str, Timer]]:
    """Build everything that will be timed, warmed up; nothing of it runs between the timings.

    Yields:
        By name: `bare`, `updates`, `naive`, and `fastdqn@RATIO` for each ratio.
    """
    with ExitStack() as stack:
        naive = NaiveDQN(setting.env_id, setting.hidden, setting.batch_size)
        stack.callback(naive.close)
        naive.run_for(0.5)
        timers: dict[str, Timer] = {
            "bare": bare_timer(setting.env_id, stack),
            "naive": naive.run_for,
        }
        for ratio in setting.ratios:
            trainer = stack.enter_context(_trainer(setting, ratio))
            timers[f"fastdqn@{ratio:g}"] = _loop(trainer)
            if ratio == setting.ratios[0]:
                timers["updates"] = _updates(trainer)
        yield timers


@contextmanager
def _trainer(setting: Setting, ratio: float) -> Iterator[Trainer]:
    agent = DQN(
        setting.env_id,
        num_envs=setting.num_envs,
        hidden_sizes=(setting.hidden, setting.hidden),
        batch_size=setting.batch_size,
        replay_ratio=ratio,
        total_timesteps=10**9,
        device=setting.device,
    )
    with agent.trainer(None, NullWitness()) as trainer:
        assert isinstance(trainer, Trainer)
        trainer.begin(agent.env_seeds())
        while trainer.rollout.env_steps < 4_000 or not trainer.ratio.updates:
            trainer.vector_step()
        yield trainer


def _loop(trainer: Trainer) -> Timer:
    def run_for(seconds: float) -> float:
        steps = trainer.rollout.env_steps
        elapsed = repeat(trainer.vector_step, seconds)
        return (trainer.rollout.env_steps - steps) / elapsed

    return run_for


def _updates(trainer: Trainer, updates_per_call: int = 16) -> Timer:
    def update() -> None:
        trainer.learner.learn_sampled(trainer.sampler, updates_per_call)

    def run_for(seconds: float) -> float:
        before = int(trainer.learner.state.updates)
        synchronize(trainer.learner.device)
        start = time.perf_counter()
        repeat(update, seconds)
        synchronize(trainer.learner.device)
        elapsed = time.perf_counter() - start
        return (int(trainer.learner.state.updates) - before) / elapsed

    return run_for


def bare_timer(env_id: str, stack: ExitStack) -> Timer:
    """Time one process that steps one environment at random; resets take time, count nothing."""
    env = gym.make(env_id, disable_env_checker=True)
    stack.callback(env.close)
    actions = env.action_space.n  # type: ignore[attr-defined]
    choices = torch.randint(int(actions), (1024,)).tolist()
    env.reset(seed=0)

    def steps() -> None:
        for action in choices[:100]:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    def run_for(seconds: float) -> float:
        calls = 0

        def counted() -> None:
            nonlocal calls
            calls += 1
            steps()

        elapsed = repeat(counted, seconds)
        return calls * 100 / elapsed

    return run_for


def repeat(call: Callable[[], None], seconds: float) -> float:
    """Call again and again until the time is over; return the seconds that it took."""
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        call()
    return elapsed


def limits_of(rates: dict[str, float], device: str) -> Limits:
    """Return the limits that the measured rates `bare` and `updates` set."""
    on_cpu = resolve_device(device).type == "cpu"
    return Limits(rates["bare"], rates["updates"], available_cores(), on_cpu)
