"""`python -m benchmarks.compare A.json B.json`: is a guarded ratio of B worse than that of A?

Exit status 1 if one is more than 10 % worse, or has vanished; 2 where files cannot be compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from benchmarks.guards import Guard, Selection
from benchmarks.saved import guards_of, load
from fastdqn.errors import UsageError

__all__ = ["ALLOWED", "Verdict", "compare", "conclusion", "differences", "table"]

ALLOWED = 0.10
"""A ratio may be worse than the saved one by this fraction of it."""
ROUNDING = 1e-9
WORSE, VANISHED, NEW, BETTER, SAME = "WORSE", "VANISHED", "new", "better", "same"


@dataclass(frozen=True)
class Verdict:
    """How one ratio compares with the saved one.

    Attributes:
        name: Of the ratio.
        base: As saved, or None.
        now: As measured, or None.
        why: Why it was not measured, where that is known.
    """

    name: str
    base: Guard | None
    now: Guard | None
    why: str = ""

    @property
    def word(self) -> str:
        """WORSE, VANISHED, new, better (by more than may be worse) or same."""
        if self.base is None:
            return NEW
        if self.now is None:
            return VANISHED
        worse = self.now.worse_than(self.base)
        if worse > ALLOWED + ROUNDING:
            return WORSE
        return BETTER if worse < -ALLOWED - ROUNDING else SAME

    @property
    def fails(self) -> bool:
        """Whether this makes the comparison fail."""
        return self.word in {WORSE, VANISHED}


def compare(
    base: Iterable[Guard], now: Iterable[Guard], not_run: dict[str, str] | None = None
) -> list[Verdict]:
    """Compare every ratio of either side, those that fail first.

    Args:
        base: As saved.
        now: As measured.
        not_run: What could not be measured, and why.
    """
    saved, measured = ({guard.name: guard for guard in side} for side in (base, now))
    verdicts = [
        Verdict(name, saved.get(name), measured.get(name), _why(name, not_run or {}))
        for name in dict.fromkeys([*saved, *measured])
    ]
    return sorted(verdicts, key=lambda verdict: not verdict.fails)


def _why(name: str, not_run: dict[str, str]) -> str:
    return next((why for what, why in not_run.items() if what in name), "")


def conclusion(verdicts: Sequence[Verdict]) -> str:
    """Return a sentence that names what failed, or says that nothing did."""
    failed = [verdict for verdict in verdicts if verdict.fails]
    if not failed:
        return f"No guarded ratio of {len(verdicts)} is more than {ALLOWED:.0%} worse."
    message = "; ".join(f"{verdict.name} {_outcome(verdict)}" for verdict in failed)
    return f"{len(failed)} of {len(verdicts)} guarded ratios failed: {message}"


def _outcome(verdict: Verdict) -> str:
    if verdict.base is None or verdict.now is None:
        return "is no longer measured" + (f" ({verdict.why})" if verdict.why else "")
    return f"is {verdict.now.worse_than(verdict.base):.0%} worse"


def table(verdicts: Sequence[Verdict]) -> str:
    """Return a Markdown table with a row for each ratio."""
    lines = [
        "| guarded ratio | better | saved | now (lowest to highest) | worse by | |",
        "|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        base, now = verdict.base, verdict.now
        known = base or now
        assert known is not None  # a verdict is about one side at least
        worse = f"{now.worse_than(base):+.0%}" if base and now else "-"
        again = ", measured again" if now and now.again else ""
        cells = [
            known.better,
            base.spread if base else "-",
            now.spread if now else verdict.why or "-",
            worse,
            verdict.word + again,
        ]
        lines.append(f"| {verdict.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(base: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs between two provenances and may move ratios that hold workers."""
    message = []
    for key in ("machine", "cores", "gpu"):
        if base.get(key) != now.get(key):
            message.append(f"{key}: {base.get(key)} when saved, {now.get(key)} now")
    return message


@dataclass(frozen=True)
class Arguments:
    """Compare the guarded ratios of two saved results without measuring."""

    base: Annotated[str, tyro.conf.Positional]
    """Name in benchmarks/results, or path of a JSON file."""
    now: Annotated[str, tyro.conf.Positional]
    """What is compared with it."""
    only: tuple[str, ...] = ()
    """Patterns of ratios to compare."""
    skip: tuple[str, ...] = ()
    """Patterns of ratios to leave out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two files and return the exit status."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__, args=argv)
    selection = Selection(arguments.only, arguments.skip)
    try:
        base, now = load(arguments.base), load(arguments.now)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    saved, measured = (selection.among(guards_of(side)) for side in (base, now))
    verdicts = compare(saved, measured, now["not_run"])
    message = differences(base["provenance"], now["provenance"])
    sys.stdout.write("\n".join([*message, "", table(verdicts), "", conclusion(verdicts), ""]))
    return int(any(verdict.fails for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
