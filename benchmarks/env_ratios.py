"""Guarded ratios of stepping alone and of tensor environments, at the sizes of a usual run.

The studies of all sizes are `benchmarks.studies.stepping` and `benchmarks.studies.tensor_cartpole`.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.end_to_end import SHORT
from benchmarks.guards import Guard, Measured, Selection, faster
from benchmarks.measure import Effort, Lap, Timer, interleave, medians
from benchmarks.steppers import Crowd, open_steppers
from benchmarks.tensor_rollout import build, rate
from benchmarks.update_modes import possible_modes
from fastdqn.device import available_cores, resolve_device
from fastdqn.errors import UsageError
from fastdqn.training.tensor.blocks import plan

__all__ = ["SteppingGroup", "TensorEnvGroup"]

STEPPERS = ("bare", "sync", "grouped", "grouped in a run")
UNROLLED = 4
"""Iterations of one call of tensor environments."""


@dataclass(frozen=True)
class SteppingGroup:
    """Kinds of vectors that step N environments at random.

    Attributes:
        env_id: Gymnasium id.
        num_envs: Environments, N.
    """

    env_id: str
    num_envs: int

    def ratios(self) -> list[str]:
        """Return the names of the ratios that it may measure here."""
        return list(self._pairs())

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time what the selected ratios need."""
        crowd = Crowd(self.env_id, self.num_envs, available_cores())
        asked = {name: pair for name, pair in self._pairs().items() if selection.takes(name)}
        kinds = [kind for kind in STEPPERS if any(kind in pair for pair in asked.values())]
        title = f"stepping alone, {self.env_id}, {self.num_envs} envs"
        with open_steppers(crowd, kinds) as timers:
            rounds = interleave(timers, Effort(effort.rounds, effort.seconds / 3).loops, title)
        guards = [faster(name, rounds, *pair) for name, pair in asked.items()]
        rates = medians(rounds)
        return Measured(title, _text(title, rates, guards), guards, {"rates": rates})

    def _pairs(self) -> dict[str, tuple[str, str]]:
        crowd = f"{SHORT.get(self.env_id, self.env_id)} {self.num_envs} envs"
        pairs = {f"stepping grouped x sync, {crowd}": ("grouped", "sync")}
        if available_cores() > 1:  # with one core, no worker is left beside the learner
            pairs[f"stepping grouped in a run x bare, {crowd}"] = ("grouped in a run", "bare")
        return pairs


@dataclass(frozen=True)
class TensorEnvGroup:
    """CartPole on the device with its updates, one function: the fast modes against eager.

    Attributes:
        device: Where it runs.
        num_envs: Environments, N; one update per vector step.
    """

    device: str = "auto"
    num_envs: int = 64

    def ratios(self) -> list[str]:
        """Return the names of the ratios that it may measure here."""
        return [self._name(mode) for mode in self._fast()]

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time eager and the fast modes that are asked for."""
        device, n = resolve_device(self.device), self.num_envs
        asked = [mode for mode in self._fast() if selection.takes(self._name(mode))]
        rollouts, not_run = {}, {}
        for mode in ("eager", *asked):
            try:
                rollouts[mode] = build(n, mode, device)
            except UsageError as error:
                not_run[f"fused {mode}"] = str(error)
        block = plan(1 / n, n, UNROLLED)

        def timer(mode: str) -> Timer:
            rate(rollouts[mode], block, 0.2)
            return lambda seconds: rate(rollouts[mode], block, seconds)

        title = f"tensor environments, {n} x CartPole, {device}"
        timers = {mode: timer(mode) for mode in rollouts}
        rounds = interleave(timers, Effort(effort.rounds, effort.seconds / 3).loops, title)
        ran = [mode for mode in asked if mode in rollouts]
        guards = [faster(self._name(mode), rounds, mode, "eager") for mode in ran]
        rates = medians(rounds)
        return Measured(title, _text(title, rates, guards), guards, {"rates": rates}, not_run)

    def _fast(self) -> list[str]:
        possible, _ = possible_modes(resolve_device(self.device))
        return [mode for mode in possible if mode != "eager"]

    def _name(self, mode: str) -> str:
        return f"fused {mode} x eager, cartpole {self.num_envs} envs"


def _text(title: str, rates: Lap, guards: list[Guard]) -> str:
    lines = [f"### {title[0].upper()}{title[1:]}", "", "| | env steps/s | |", "|---|---|---|"]
    lines += [f"| {kind} | {rate:,.0f} | |" for kind, rate in rates.items()]
    lines += [f"| {guard.name} | | {guard.spread} |" for guard in guards]
    return "\n".join(lines)
