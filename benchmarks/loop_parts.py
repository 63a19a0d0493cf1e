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
from fastdqn.device import resolve_device
from fastdqn.networks.flat_network import FlatNetwork
from fastdqn.networks.mlp import MLP
from fastdqn.policies.policy import Policy
from fastdqn.replay import gather

__all__ = ["PartsGroup"]

BATCH = 256
HIDDEN = 64
EPSILON = 0.1
PAIRS = {
    f"write({NUM_ENVS}) / plain copy of the same bytes": ("write", "plain copy"),
    f"sample({BATCH}) / plain indexing": ("sample", "plain indexing"),
    f"gather({BATCH}) / plain indexing": ("gather", "plain indexing"),
    f"act({NUM_ENVS}) / plain act": ("act", "plain act"),
}
"""Name, and the two that are timed."""

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
        return list(PAIRS)

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time what the selected ratios need."""
        device = resolve_device(self.device)
        asked = {name: pair for name, pair in PAIRS.items() if selection.takes(name)}
        needed = {part for pair in asked.values() for part in pair}
        every = {**_replay_calls(device), **_acting_calls(device)}
        calls = {name: call for name, call in every.items() if name in needed}
        for call in calls.values():
            for _ in range(3):
                call()
        timers = {name: rate_of(call, device) for name, call in calls.items()}
        rounds = interleave(timers, effort.small, "parts")
        guards = [slower(name, rounds, *pair) for name, pair in asked.items()]
        rates = medians(rounds)
        text = f"### Parts, {device}\n\n{_table(rates, guards)}"
        return Measured("parts", text, guards, {"rates": rates})


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
