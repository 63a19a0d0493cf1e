"""What dueling heads and LayerNorm add to an update in C, over a ring of a million rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.guards import Measured, Selection, slower
from benchmarks.measure import Effort, interleave, medians, rate_of
from benchmarks.random_replay import random_replay
from benchmarks.replay_options import BATCH, HIDDEN, UPDATES, call_of
from fastdqn.replay import UniformSampler

__all__ = ["NetworkOptionsGroup"]

ROWS = 1_000_000
OPTIONS: dict[str, dict[str, Any]] = {
    "dueling": {"dueling": True},
    "with LayerNorm": {"layer_norm": True},
}
GOALS = {"dueling": 1.25, "with LayerNorm": None}
"""Option -> what its update may take, as a multiple of that of the plain MLP."""


@dataclass(frozen=True)
class NetworkOptionsGroup:
    """Updates of MLPs in C on the CPU, from one ring."""

    def ratios(self) -> list[str]:
        """Return the names of the ratios that it may measure here."""
        return list(map(_name, OPTIONS))

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time what the selected ratios need."""
        options = [option for option in OPTIONS if selection.takes(_name(option))]
        sampler = UniformSampler(random_replay(capacity=ROWS), BATCH)
        calls = {name: call_of(sampler, **OPTIONS.get(name, {})) for name in ("plain", *options)}
        device = torch.device("cpu")
        timers = {name: rate_of(call, device, UPDATES) for name, call in calls.items()}
        rounds = interleave(timers, effort.small, "network options")
        guards = [
            slower(_name(option), rounds, option, "plain", GOALS[option]) for option in options
        ]
        rates = medians(rounds)
        rows = [f"| {name} | {1e6 / rate:,.1f} |" for name, rate in rates.items()]
        table = "\n".join(["| update in C | us |", "|---|---|", *rows])
        text = f"### Network options, a ring of {ROWS:,} transitions, batch {BATCH}\n\n{table}"
        return Measured("network options", text, guards, {"rates": rates})


def _name(option: str) -> str:
    return f"update {option} / plain, native {HIDDEN}-{HIDDEN} b{BATCH}"
