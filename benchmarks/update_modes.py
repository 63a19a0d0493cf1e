"""The update alone: every execution mode, in turns with eager and with a plain reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.guards import Guard, Measured, Selection, faster
from benchmarks.measure import Effort, Lap, Round, Timer, interleave, medians, rate_of
from benchmarks.naive import NaiveLearner
from benchmarks.random_replay import CAPACITY, NUM_ACTIONS, OBS_SIZE, random_replay
from fastdqn.device import resolve_device
from fastdqn.errors import UsageError
from fastdqn.execution.modes import EXECUTIONS, choose_execution
from fastdqn.learner.learner import Learner
from fastdqn.networks.mlp import MLP
from fastdqn.replay import Sampler, UniformSampler

__all__ = ["UpdateGroup", "learner_of", "possible_modes", "updates_of"]

UPDATES_PER_CALL = (1, 4, 16)
COMPILED_GOAL = 3.0
"""A compiled update should be so many times faster than an eager one, on the CPU."""

HEAD = """\
| execution | updates per call | updates/s | x eager (lowest to highest) | x reference (lowest to \
highest) | compiling so far, s |
|---|---|---|---|---|---|"""


def possible_modes(device: torch.device) -> tuple[list[str], dict[str, str]]:
    """Return the execution modes that the device has, and why the others are refused."""
    possible, refused = [], {}
    for mode in EXECUTIONS:
        if mode == "auto":
            continue
        try:
            choose_execution(mode, device, 0)
            learner_of(mode, 8, device)
        except UsageError as error:
            refused[f"update {mode}"] = str(error)
        else:
            possible.append(mode)
    return possible, refused


def learner_of(mode: str, hidden: int, device: torch.device, **options: Any) -> Learner:
    """Return a learner of LunarLander's sizes; the same weights each time; options of `MLP`."""
    torch.manual_seed(0)
    network = MLP((OBS_SIZE,), NUM_ACTIONS, (hidden, hidden), **options)
    return Learner(network, execution=mode, device=device)


def updates_of(learner: Learner, sampler: Sampler, updates: int) -> Callable[[], None]:
    """Return a call that makes `updates` updates as a run does: draws, then learns in order."""

    def update() -> None:
        learner.learn(sampler, updates)

    return update


def reference_updates(
    hidden: int, batch_size: int, updates: int, device: torch.device
) -> Callable[[], None]:
    """Return a call that makes as many updates of a tutorial's learner, from plain tensors."""
    torch.manual_seed(0)
    learner = NaiveLearner(OBS_SIZE, NUM_ACTIONS, hidden, device)
    obs, next_obs = torch.randn(2, CAPACITY, OBS_SIZE, device=device)
    action = torch.randint(NUM_ACTIONS, (CAPACITY, 1), device=device)
    reward = torch.randn(CAPACITY, device=device)
    alive = (torch.rand(CAPACITY, device=device) < 0.9).float()

    def update() -> None:
        for _ in range(updates):
            index = torch.randint(CAPACITY, (batch_size,), device=device)
            learner.update(obs[index], action[index], reward[index], next_obs[index], alive[index])

    return update


@dataclass(frozen=True)
class UpdateGroup:
    """Updates of one network and batch size.

    Attributes:
        hidden: Units of both hidden layers.
        batch_size: Transitions per update.
        device: Where they run.
        modes: Execution modes; None is every one that can run here.
        updates_per_call: Updates of one call.
    """

    hidden: int
    batch_size: int
    device: str = "auto"
    modes: tuple[str, ...] | None = None
    updates_per_call: tuple[int, ...] = UPDATES_PER_CALL

    def ratios(self) -> list[str]:
        """Return the names of the ratios that it may measure here."""
        modes, _ = self._modes()
        return [name for k in self.updates_per_call for name in self._names(modes, k)]

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time what the selected ratios need."""
        device = resolve_device(self.device)
        modes, refused = self._modes()
        modes = [mode for mode in modes if mode == "eager" or self._wanted(mode, selection)]
        sampler = UniformSampler(random_replay(device), self.batch_size)
        learners = {mode: learner_of(mode, self.hidden, device) for mode in modes}
        rows, guards, rates = [HEAD], [], {}
        for updates in self.updates_per_call:
            if not selection.any_of(self._names(modes, updates)):
                continue
            timers = self._timers(learners, sampler, updates, device)
            rounds = interleave(timers, effort.small, f"{self._title} K{updates}")
            found = self._guards(rounds, modes, updates)
            rates[f"K{updates}"] = medians(rounds)
            rows += [
                self._row(name, updates, rates[f"K{updates}"], found, learners) for name in timers
            ]
            guards += selection.among(found)
        text = f"### {self._title}, {device}\n\n" + "\n".join(rows)
        compile_s = {mode: learner.compile_s for mode, learner in learners.items()}
        data = {"rates": rates, "compile_s": compile_s}
        return Measured(self._title, text, guards, data, refused)

    @property
    def _title(self) -> str:
        return f"update, MLP {self.hidden}-{self.hidden}, batch {self.batch_size}"

    def _modes(self) -> tuple[list[str], dict[str, str]]:
        possible, refused = possible_modes(resolve_device(self.device))
        if self.modes is None:
            return possible, refused
        return [mode for mode in possible if mode in self.modes], {}

    def _name(self, mode: str, against: str, updates: int) -> str:
        sizes = f"{self.hidden}-{self.hidden} b{self.batch_size} K{updates}"
        return f"update {mode} x {against}, {sizes}"

    def _names(self, modes: list[str], updates: int) -> list[str]:
        return [
            self._name(mode, against, updates)
            for mode in modes
            for against in ("eager", "reference")
            if mode != against
        ]

    def _wanted(self, mode: str, selection: Selection) -> bool:
        return any(selection.any_of(self._names([mode], k)) for k in self.updates_per_call)

    def _timers(
        self,
        learners: dict[str, Learner],
        sampler: Sampler,
        updates: int,
        device: torch.device,
    ) -> dict[str, Timer]:
        calls = {"reference": reference_updates(self.hidden, self.batch_size, updates, device)}
        for mode, learner in learners.items():
            calls[mode] = updates_of(learner, sampler, updates)
        for call in calls.values():
            for _ in range(3):  # compiles, captures
                call()
        return {name: rate_of(call, device, updates) for name, call in calls.items()}

    def _guards(self, rounds: list[Round], modes: list[str], updates: int) -> list[Guard]:
        on_cpu = resolve_device(self.device).type == "cpu"
        found = []
        for mode in modes:
            if mode != "eager":
                goal = COMPILED_GOAL if on_cpu else None
                name = self._name(mode, "eager", updates)
                found.append(faster(name, rounds, mode, "eager", goal))
            name = self._name(mode, "reference", updates)
            found.append(faster(name, rounds, mode, "reference"))
        return found

    def _row(
        self,
        mode: str,
        updates: int,
        rates: Lap,
        guards: list[Guard],
        learners: dict[str, Learner],
    ) -> str:
        spreads = {guard.name: guard.spread for guard in guards}
        cells = [
            spreads.get(self._name(mode, than, updates), "-") for than in ("eager", "reference")
        ]
        start = f"{learners[mode].compile_s:.1f}" if mode in learners else "-"
        return f"| {mode} | {updates} | {rates[mode]:,.0f} | {' | '.join(cells)} | {start} |"
