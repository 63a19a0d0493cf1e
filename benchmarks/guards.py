"""Guarded ratios: what may not become worse, and which of them are asked for."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from benchmarks.measure import Effort, Round

__all__ = ["EVERYTHING", "Group", "Guard", "Measured", "Selection", "faster", "slower", "summed_up"]


@dataclass(frozen=True)
class Guard:
    """A ratio of two things timed in the same rounds; ratios travel between machines.

    Attributes:
        name: Says what is divided by what, and at which sizes.
        better: Whether a higher or a lower ratio is better.
        values: The ratio of each round, in order.
        goal: What the ratio should reach, or None.
        again: Whether the values are those of a second measurement.
    """

    name: str
    better: Literal["higher", "lower"]
    values: tuple[float, ...]
    goal: float | None = None
    again: bool = False

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """The median and, in brackets, the lowest and the highest value."""
        return f"{self.median:.2f} ({min(self.values):.2f} to {max(self.values):.2f})"

    @property
    def aim(self) -> str:
        """The goal and whether the median reaches it, or a dash."""
        if self.goal is None:
            return "-"
        if self.better == "higher":
            return f">= {self.goal:g} {'yes' if self.median >= self.goal else 'NO'}"
        return f"<= {self.goal:.2g} {'yes' if self.median <= self.goal else 'NO'}"

    def worse_than(self, base: Guard) -> float:
        """Return how much worse this is than `base`, as a fraction; negative is better."""
        now = self.median / base.median
        return 1.0 - now if base.better == "higher" else now - 1.0

    def measured_again(self) -> Guard:
        """Return it marked as a second measurement."""
        return replace(self, again=True)

    def as_json(self) -> dict[str, Any]:
        """Return what the file of results holds."""
        spread = {"median": self.median, "lowest": min(self.values), "highest": max(self.values)}
        kept = {"name": self.name, "better": self.better, **spread, "values": list(self.values)}
        return {**kept, "goal": self.goal, "again": self.again}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Guard:
        """Return what `as_json` wrote."""
        values, goal = tuple(entry["values"]), entry.get("goal")
        return cls(entry["name"], entry["better"], values, goal, entry.get("again", False))


def faster(
    name: str, rounds: Sequence[Round], above: str, below: str, goal: float | None = None
) -> Guard:
    """Return rate over rate, written `above x below`: how many times faster; higher is better."""
    return Guard(name, "higher", _ratios(rounds, above, below), goal)


def slower(
    name: str, rounds: Sequence[Round], above: str, below: str, goal: float | None = None
) -> Guard:
    """Return time over time, written `above / below`: a multiple of its time; lower is better."""
    return Guard(name, "lower", _ratios(rounds, below, above), goal)


def _ratios(rounds: Sequence[Round], above: str, below: str) -> tuple[float, ...]:
    """Return the median of the ratios within the laps of each round.

    Laps in which a side was not called at all, since the machine was busy, are left out.
    """
    return tuple(
        statistics.median([lap[above] / lap[below] for lap in laps if lap[above] and lap[below]])
        for laps in rounds
    )


@dataclass(frozen=True)
class Selection:
    """Which guarded ratios are asked for.

    A pattern has `*` and `?` as in a shell; without either it may stand anywhere in the name.

    Attributes:
        only: Patterns of which one must match; none is everything.
        skip: Patterns of which none may match.
        names: The exact names, or None.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    names: frozenset[str] | None = None

    def takes(self, name: str) -> bool:
        """Return whether a ratio is asked for."""
        if self.names is not None:
            return name in self.names
        wanted = not self.only or any(_matches(name, pattern) for pattern in self.only)
        return wanted and not any(_matches(name, pattern) for pattern in self.skip)

    def any_of(self, names: Iterable[str]) -> bool:
        """Return whether one of the ratios is asked for."""
        return any(self.takes(name) for name in names)

    def among(self, guards: Iterable[Guard]) -> list[Guard]:
        """Return the ratios that are asked for."""
        return [guard for guard in guards if self.takes(guard.name)]


EVERYTHING = Selection()


def _matches(name: str, pattern: str) -> bool:
    whole = pattern if "*" in pattern or "?" in pattern else f"*{pattern}*"
    return fnmatchcase(name.lower(), whole.lower())


@dataclass(frozen=True)
class Measured:
    """What one group of things timed together came to.

    Attributes:
        title: Of its table.
        text: The table and what must be known to read it, Markdown.
        guards: Its guarded ratios.
        data: Settings and rates, plain JSON values.
        not_run: What could not be timed here, and why.
    """

    title: str
    text: str
    guards: list[Guard]
    data: dict[str, Any] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


class Group(Protocol):
    """Things that are timed in turns with each other."""

    def ratios(self) -> list[str]:
        """Return the names of the ratios that it may measure here."""

    def measure(self, effort: Effort, selection: Selection) -> Measured:
        """Time what the selected ratios need."""


def summed_up(guards: Sequence[Guard]) -> str:
    """Return the guarded ratios as a Markdown table."""
    lines = ["| guarded ratio | better | median (lowest to highest) | goal |", "|---|---|---|---|"]
    lines += [f"| {g.name} | {g.better} | {g.spread} | {g.aim} |" for g in guards]
    return "\n".join(lines)
