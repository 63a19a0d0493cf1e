"""What a vector step does beside stepping and learning: write, sample, act; against plain tensors.

The plain side does the same work with nothing around it: it copies the same bytes, indexes the
same fields, calls the same layers. What fastdqn takes more is its bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.guards import Guard, Measured, Selection, slower
from benchmarks.measure import Effort, interleave, medians, rate_of
from benchmarks.random_replay import (
    CAPACITY,
    NUM_ACTIONS,
    NUM_ENVS,
    OBS_SIZE,
    random_replay,
    random_step,
)
from benchmarks.torchrl_replay import has_torchrl, torchrl_sample
from fastdqn.device import resolve_device
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies.policy import Policy
from fastdqn.replay import gather

__all__ = ["PartsGroup"]

BATCH = 256
HIDDEN = 64
EPSILON = 0.1
ONE_THIRD = 1 / 3
PAIRS: tuple[tuple[str, str, str, float | None], ...] = (
    (f"write({NUM_ENVS}) / plain copy of the same bytes", "write", "plain copy", None),
    (f"sample({BATCH}) / plain indexing", "sample", "plain indexing", None),
    (f"gather({BATCH}) / plain indexing", "gather", "plain indexing", None),
    (f"act({NUM_ENVS}) / plain act", "act", "plain act", None),
    (f"sample({BATCH}) / torchrl", "sample", "torchrl", ONE_THIRD),
    (f"gather({BATCH}) / torchrl", "gather", "torchrl", ONE_THIRD),
)
"""Name, the two that are timed, and the goal."""

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class PartsGroup:
    """Writing, sampling and acting.

    Attributes:
        device: Where replay and network live.
    """

    device: str = "auto"

    def ratios(self) -> list[str]:
        """Return the names of the ratios that it may measure here."""
        return [name for name, *pair, _ in PAIRS if "torchrl" not in pair or has_torchrl()]

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time what the selected ratios need."""
        device = resolve_device(self.device)
        asked = [pair for pair in PAIRS if selection.takes(pair[0]) and pair[0] in self.ratios()]
        needed = {part for _, *pair, _ in asked for part in pair}
        calls = {name: call for name, call in self._calls(device).items() if name in needed}
        for call in calls.values():
            for _ in range(3):
                call()
        timers = {name: rate_of(call, device) for name, call in calls.items()}
        rounds = interleave(timers, effort.small, "parts")
        guards = [slower(name, rounds, above, below, goal) for name, above, below, goal in asked]
        rates = medians(rounds)
        not_run = {} if has_torchrl() else {"torchrl": "it is not installed here"}
        text = f"### Parts, {device}\n\n{_table(rates, guards)}"
        return Measured("parts", text, guards, {"rates": rates}, not_run)

    def _calls(self, device: torch.device) -> Calls:
        calls = {**_replay_calls(device), **_acting_calls(device)}
        if has_torchrl():
            calls["torchrl"] = torchrl_sample(BATCH, device)
        return calls


def _replay_calls(device: torch.device) -> Calls:
    replay, step = random_replay(device), random_step(device)
    places = [torch.zeros(CAPACITY, *part.shape[1:], dtype=part.dtype) for part in step]
    places = [place.to(device) for place in places]
    fields = [torch.randn(CAPACITY, OBS_SIZE, device=device), *places]
    head = 0

    def plain_copy() -> None:
        nonlocal head
        for place, part in zip(places, step, strict=True):
            place[head : head + NUM_ENVS].copy_(part)
        head = (head + NUM_ENVS) % CAPACITY

    def plain_indexing() -> list[Tensor]:
        index = torch.randint(CAPACITY, (BATCH,), device=device)
        return [field[index] for field in fields]

    return {
        "write": lambda: replay.write(*step),
        "plain copy": plain_copy,
        "sample": lambda: replay.sample(BATCH),
        "gather": lambda: gather(replay.ring, replay.draw(1, BATCH)[0]),
        "plain indexing": plain_indexing,
    }


def _acting_calls(device: torch.device) -> Calls:
    network = MLP((OBS_SIZE,), NUM_ACTIONS, (HIDDEN, HIDDEN))
    policy = Policy(FlatNetwork(network, device))
    layers: list[nn.Module] = [nn.Linear(OBS_SIZE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN)]
    plain = nn.Sequential(*layers, nn.ReLU(), nn.Linear(HIDDEN, NUM_ACTIONS)).to(device)
    obs = torch.randn(NUM_ENVS, OBS_SIZE, device=device)

    def plain_act() -> Any:
        with torch.no_grad():
            best = plain(obs).argmax(1)
            chance = torch.rand(NUM_ENVS, device=device) < EPSILON
            other = torch.randint(NUM_ACTIONS, (NUM_ENVS,), device=device)
            return torch.where(chance, other, best).cpu().numpy()

    return {"act": lambda: policy.act(obs, EPSILON).cpu().numpy(), "plain act": plain_act}


def _table(rates: dict[str, float], guards: list[Guard]) -> str:
    lines = ["| part | us | |", "|---|---|---|"]
    lines += [f"| {name} | {1e6 / rate:,.1f} | |" for name, rate in rates.items()]
    lines += [f"| {guard.name} | | {guard.spread} |" for guard in guards]
    return "\n".join(lines)
