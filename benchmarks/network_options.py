"""What dueling heads and LayerNorm add to an update in C, over a ring of a million rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.guards import Measured, Selection
from benchmarks.measure import Effort
from benchmarks.random_replay import random_replay
from benchmarks.replay_options import BATCH, HIDDEN, ROWS, call_of, compared
from fastdqn.replay import UniformSampler

__all__ = ["NetworkOptionsGroup"]

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
        goals = {option: GOALS[option] for option in options}
        return compared("network options", effort, calls, goals, _name)


def _name(option: str) -> str:
    return f"update {option} / plain, native {HIDDEN}-{HIDDEN} b{BATCH}"
