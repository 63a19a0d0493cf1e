"""fastdqn end to end, as a user runs it, in turns with the naive loop and the machine's limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

from benchmarks.guards import Guard, Measured, Selection, faster
from benchmarks.measure import (
    Effort,
    Lap,
    Round,
    Timer,
    bare_timer,
    interleave,
    medians,
    rate_of,
    repeat,
)
from benchmarks.naive import NaiveDQN
from benchmarks.update_modes import updates_of
from fastdqn import DQN
from fastdqn.device import available_cores, resolve_device, synchronize
from fastdqn.training.callbacks import Callback
from fastdqn.training.host.trainer import HostTrainer
from fastdqn.training.stopwatch import ACTIVITIES

__all__ = ["CPU_RATIOS", "CUDA_RATIOS", "EndToEndGroup", "Limits", "LoopTimer", "Setting"]

CPU_RATIOS = (1.0, 1 / 4, 1 / 16)
CUDA_RATIOS = (1.0, 1 / 4, 1 / 16, 1 / 64)
WARM_UP_STEPS = 4_000
TOTAL_TIMESTEPS = 10**9
"""Long enough that `auto` chooses what it would for a long run."""
UPDATES_PER_CALL = 16
FEW_ENVS = 16
"""So few are named in the ratio: each vector step is a barrier, which a reset holds up."""
SHORT = {"LunarLander-v3": "lander", "CartPole-v1": "cartpole"}


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
        execution: How fastdqn's updates run.
        env_groups: Groups of environments that take turns.
    """

    env_id: str = "LunarLander-v3"
    hidden: int = 64
    batch_size: int = 64
    num_envs: int = 64
    ratios: tuple[float, ...] = CPU_RATIOS
    device: str = "auto"
    execution: str = "auto"
    env_groups: int = 1


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


class LoopTimer:
    """Times the loop of a trainer, and adds up where its time goes.

    Args:
        trainer: Warmed up.

    Attributes:
        seconds: By activity, of all timings together.
    """

    def __init__(self, trainer: HostTrainer) -> None:
        self.trainer = trainer
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)

    def __call__(self, seconds: float) -> float:
        """Train for so many seconds and return env steps per second."""
        trainer, watch = self.trainer, self.trainer.watch
        device = trainer.learner.device
        watch.lap("other")  # what was timed in between is no training
        before, steps = dict(watch.seconds), trainer.rollout.env_steps
        start = time.perf_counter()
        repeat(trainer.vector_step, seconds)
        synchronize(device)
        elapsed = time.perf_counter() - start
        watch.lap("other")
        for activity in ACTIVITIES:
            self.seconds[activity] += watch.seconds[activity] - before[activity]
        return (trainer.rollout.env_steps - steps) / elapsed

    def shares(self) -> dict[str, float]:
        """Return each activity's fraction of the time."""
        total = sum(self.seconds.values()) or 1.0
        return {activity: spent / total for activity, spent in self.seconds.items()}


@dataclass(frozen=True)
class EndToEndGroup:
    """A setting at each of its replay ratios.

    Attributes:
        setting: What is trained, and how.
    """

    setting: Setting

    def ratios(self) -> list[str]:
        """Return the names of the ratios that it may measure here."""
        return [name for ratio in self.setting.ratios for name in self._names(ratio)]

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time what the selected ratios need."""
        setting = self.setting
        asked = [ratio for ratio in setting.ratios if selection.any_of(self._names(ratio))]
        with ExitStack() as stack:
            agents = {ratio: _agent(setting, ratio) for ratio in asked}
            loops = {
                ratio: LoopTimer(stack.enter_context(_warm(agent)))
                for ratio, agent in agents.items()
            }
            timers = self._timers(agents[asked[0]], loops, stack)
            rounds = interleave(timers, effort.loops, setting.env_id)
        for lap in chain.from_iterable(rounds):
            self._add_limits(lap, asked)
        guards = [guard for ratio in asked for guard in self._guards(rounds, ratio)]
        runs = [_run_of(agents[ratio], loop) for ratio, loop in loops.items()]
        rates = medians(rounds)
        data = {"setting": asdict(setting), "rates": rates, "runs": runs}
        text = _text(setting, rates, runs, guards)
        return Measured(setting.env_id, text, selection.among(guards), data)

    def _names(self, ratio: float) -> tuple[str, str]:
        setting = self.setting
        mode = "" if setting.execution == "auto" else f" {setting.execution}"
        env = SHORT.get(setting.env_id, setting.env_id)
        few = FEW_ENVS if setting.num_envs == FEW_ENVS else ""
        loop = f"{env}{few}@{Fraction(ratio)}{mode}"
        return f"{loop} x naive", f"{loop} SPS/SPS_max"

    def _timers(
        self, agent: DQN, loops: dict[float, LoopTimer], stack: ExitStack
    ) -> dict[str, Timer]:
        setting, learner = self.setting, agent.learner
        sampler = next(iter(loops.values())).trainer.sampler
        naive = NaiveDQN(setting.env_id, setting.hidden, setting.batch_size)
        stack.callback(naive.close)
        naive.run_for(0.5)
        update = updates_of(learner, sampler, UPDATES_PER_CALL)
        for _ in range(3):
            update()
        return {
            "bare": bare_timer(setting.env_id, stack),
            "updates": rate_of(update, learner.device, UPDATES_PER_CALL),
            "naive": naive.run_for,
            **{f"fastdqn@{ratio:g}": loop for ratio, loop in loops.items()},
        }

    def _add_limits(self, lap: Lap, ratios: list[float]) -> None:
        """Add what bounded each loop in this round."""
        on_cpu = resolve_device(self.setting.device).type == "cpu"
        limits = Limits(lap["bare"], lap["updates"], available_cores(), on_cpu)
        for ratio in ratios:
            lap[f"limit@{ratio:g}"] = limits.sps_max(ratio)

    def _guards(self, rounds: list[Round], ratio: float) -> list[Guard]:
        x_naive, of_limit = self._names(ratio)
        loop = f"fastdqn@{ratio:g}"
        return [
            faster(x_naive, rounds, loop, "naive"),
            faster(of_limit, rounds, loop, f"limit@{ratio:g}"),
        ]


def _agent(setting: Setting, ratio: float) -> DQN:
    return DQN(
        setting.env_id,
        num_envs=setting.num_envs,
        env_groups=setting.env_groups,
        hidden_sizes=(setting.hidden, setting.hidden),
        batch_size=setting.batch_size,
        replay_ratio=ratio,
        total_timesteps=TOTAL_TIMESTEPS,
        device=setting.device,
        execution=setting.execution,
    )


@contextmanager
def _warm(agent: DQN) -> Iterator[HostTrainer]:
    with agent.trainer(None, Callback()) as trainer:
        assert isinstance(trainer, HostTrainer)
        trainer.begin(agent.env_seeds())
        while trainer.rollout.env_steps < WARM_UP_STEPS or not trainer.ratio.updates:
            trainer.vector_step()
        yield trainer


def _run_of(agent: DQN, loop: LoopTimer) -> dict[str, Any]:
    """Return how a run was executed and where its time went."""
    trainer = loop.trainer
    return {
        "replay_ratio": agent.config.replay_ratio,
        "execution": agent.learner.execution,
        "reason": agent.execution_reason,
        "num_workers": trainer.rollout.num_workers,
        "compile_s": agent.learner.compile_s,
        "time_share": loop.shares(),
    }


def _text(setting: Setting, rates: Lap, runs: list[dict[str, Any]], guards: list[Guard]) -> str:
    lines = [
        f"### {setting.env_id}, MLP {setting.hidden}-{setting.hidden}, "
        f"batch {setting.batch_size}, {setting.num_envs} envs{_in_groups(setting.env_groups)}",
        "",
        f"Naive loop {rates['naive']:,.0f} steps/s; bare env {rates['bare']:,.0f} steps/s; "
        f"update alone {rates['updates']:,.0f}/s. {_executions(runs)}",
        "",
        "| updates per env step | steps/s | x naive (lowest to highest) | SPS / SPS_max | "
        + " | ".join(ACTIVITIES)
        + " |",
        "|---" * (4 + len(ACTIVITIES)) + "|",
    ]
    for run, x_naive, of_limit in zip(runs, guards[::2], guards[1::2], strict=True):
        ratio = run["replay_ratio"]
        shares = " | ".join(f"{run['time_share'][name]:.0%}" for name in ACTIVITIES)
        lines.append(
            f"| {Fraction(ratio)} | {rates[f'fastdqn@{ratio:g}']:,.0f} | {x_naive.spread} "
            f"| {of_limit.spread} | {shares} |"
        )
    return "\n".join(lines)


def _in_groups(num_groups: int) -> str:
    return f" in {num_groups} groups" if num_groups > 1 else ""


def _executions(runs: list[dict[str, Any]]) -> str:
    """Return the executions of the runs with their reasons, each once."""
    executions = [
        f"execution {run['execution']} ({run['reason']}), {run['num_workers']} workers"
        for run in runs
    ]
    compile_s = statistics.median(run["compile_s"] for run in runs)
    message = "; ".join(dict.fromkeys(executions))
    return f"{message[0].upper()}{message[1:]}; {compile_s:.1f} s of compiling not counted."
