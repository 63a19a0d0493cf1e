"""`python -m benchmarks.studies.family`: what each option does to learning, beside Double DQN.

Every variant is a preset with a few more flags. The variants take turns: each seed trains all of
them, so that an hour in which the machine is slow is slow for all. Compile caches are shared and
filled by runs that are not counted.
"""

from __future__ import annotations

import math
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import tyro

from benchmarks.provenance import as_markdown, provenance, save_result
from benchmarks.studies.solve import UNCOUNTED_SEED, Run, seeds_of, train
from fastdqn.errors import UsageError
from fastdqn.foundation.formatting import format_return

__all__ = ["VARIANTS", "main", "row", "table"]

BASE = "double"
VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        BASE: "",
        "prioritized": "--replay prioritized",
        "n-step 3": "--n-step 3",
        "dueling": "--dueling",
        "noisy": "--noisy",
        "c51": "--objective c51",
        "qr": "--objective qr",
        "iqn": "--objective iqn",
        "munchausen": "--objective munchausen",
        "rainbow": "--objective c51 --dueling --noisy --replay prioritized --n-step 3",
    }
)
"""More flags of the preset, by the name of a variant."""
SUPPORTS: Mapping[str, str] = MappingProxyType({"cartpole": "--v-min 0 --v-max 50"})
"""Flags of C51, by preset: what discounted returns can be there. Others have the defaults."""
HEADS = (
    "variant | solved | env steps to target | of double | train s | command s "
    "| worst fresh greedy mean"
)
LEGEND = """\
`env steps to target`: median and range over the seeds, of runs that reached the preset's
`stop_at_return` in a greedy evaluation; `of double`: the median as a share of Double DQN's.
`train s`, `command s`: medians over all seeds. `worst fresh greedy mean`: of the seeds, over 100
episodes of environments that the run never saw."""


@dataclass(frozen=True)
class Arguments:
    """Train a preset with each option of the family and print how long each took."""

    preset: str = "cartpole"
    """Preset to train."""
    seeds: int = 3
    """How many seeds."""
    first_seed: int = 0
    """The first of them."""
    variants: tuple[str, ...] = field(default_factory=lambda: tuple(VARIANTS))
    """Names of variants; see the source for their flags."""
    train_args: str = ""
    """More flags of all variants, in one word: --train-args='--num-envs 8'."""
    caches: Path | None = None
    """Folder of compiled artefacts that stays for later calls; None is one of this call's own."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.md and NAME.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print, save; return 1 if a run did not reach its target, 2 for wrong arguments."""
    arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    unknown = [name for name in arguments.variants if name not in VARIANTS]
    if unknown:
        way_out = f"Choose among {', '.join(VARIANTS)}."
        error = UsageError(f"--variants {unknown[0]}", "there is no such variant", way_out)
        sys.stderr.write(f"{error}\n")
        return 2
    runs: dict[str, list[Run]] = {name: [] for name in arguments.variants}
    with tempfile.TemporaryDirectory() as folder:
        for name, run in _trained(arguments, arguments.caches or Path(folder)):
            runs[name].append(run)
            steps, seconds = run["env_steps"], run["seconds"]["command"]
            sys.stderr.write(f"{name}, seed {run['seed']}: {run['status']} after {steps:,} env ")
            sys.stderr.write(f"steps, {seconds:.1f} s, {format_return(run['fresh_mean'])}\n")
    header = provenance("python -m benchmarks.studies.family")
    flags = [
        f"`{name}`: `{shlex.join(flags_of(name, arguments.preset))}`"
        for name in arguments.variants
        if VARIANTS[name]
    ]
    about = f"Preset `{arguments.preset}` {arguments.train_args}, {arguments.seeds} seeds."
    text = "\n\n".join((as_markdown(header), about, "; ".join(flags) + ".", LEGEND, table(runs)))
    sys.stdout.write(text + "\n")
    content: dict[str, Any] = {"provenance": header, "preset": arguments.preset, "runs": runs}
    save_result(arguments.save, content, text)
    return int(any(run["status"] != "solved" for some in runs.values() for run in some))


def _trained(arguments: Arguments, caches: Path) -> Iterator[tuple[str, Run]]:
    """Train every variant with every seed, after a first time that is not counted."""
    more = shlex.split(arguments.train_args)
    commands = {name: [*more, *flags_of(name, arguments.preset)] for name in arguments.variants}
    for command in commands.values():
        train(arguments.preset, UNCOUNTED_SEED, caches, [*command, *SHORT])
    for seed in seeds_of(arguments.first_seed, arguments.seeds):
        for name, command in commands.items():
            yield name, train(arguments.preset, seed, caches, command)


def flags_of(variant: str, preset: str) -> list[str]:
    """Return the flags of a variant, with the support of C51 that suits the preset."""
    flags = VARIANTS[variant]
    return shlex.split(f"{flags} {SUPPORTS.get(preset, '')}" if "c51" in flags else flags)


SHORT = ("--total-timesteps", "5000", "--execution", "compile")
"""Of the runs that fill the caches."""


def table(runs: Mapping[str, Sequence[Run]]) -> str:
    """Return a row for each variant, the medians over its seeds."""
    base = _median_steps(runs.get(BASE, ()))
    head = [f"| {HEADS} |", "|---" * (HEADS.count("|") + 1) + "|"]
    return "\n".join([*head, *(row(name, some, base) for name, some in runs.items())])


def row(name: str, runs: Sequence[Run], base: float) -> str:
    """Return one line of the table.

    Args:
        name: Of the variant.
        runs: One for each seed.
        base: Median env steps to the target of Double DQN; NaN is unknown.
    """
    steps = [run["env_steps"] for run in runs if run["status"] == "solved"]
    median = _median_steps(runs)
    spread = f"{median:,.0f} ({min(steps):,} to {max(steps):,})" if steps else "-"
    share = median / base
    seconds = [statistics.median(run["seconds"][of] for run in runs) for of in ("train", "command")]
    cells = (
        name,
        f"{len(steps)} of {len(runs)}",
        spread,
        "-" if math.isnan(share) else f"{share:.2f}",
        *(f"{each:.1f}" for each in seconds),
        format_return(min(run["fresh_mean"] for run in runs)),
    )
    return f"| {' | '.join(cells)} |"


def _median_steps(runs: Sequence[Run]) -> float:
    steps = [run["env_steps"] for run in runs if run["status"] == "solved"]
    return statistics.median(steps) if steps else math.nan


if __name__ == "__main__":
    sys.exit(main())
