"""`python -m benchmarks.studies.stepping`: env steps per second of random actions, no learning.

Every kind of vector is built first and then timed in turn, round after round, so that what else
the machine does falls on all alike. A step is a real transition: rows that only reset an
environment take time and count nothing.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import tyro

from benchmarks.provenance import as_markdown, provenance, save_result
from benchmarks.steppers import KINDS, Crowd, open_steppers
from fastdqn.device import available_cores

Lap = dict[str, float]
"""Env steps per second by kind, timed in one round."""

LEGEND = """\
`bare`: one process, one environment; `bare on all cores`: as many of them at once as there are
cores, which often is less than cores times one. `sync`, `async`: Gymnasium's vectors, `async`
with one process per environment. `grouped`: fastdqn's vector through the same `step`, as it
comes, where the caller takes a share; `grouped, all workers`: one worker per core and an idle
caller. `grouped source`: the same workers by `send` and `recv`, as the trainer drives them;
`grouped in a run`: with one core left for the learner, a run's default; `grouped in 2 groups`:
two groups that take turns, where the caller takes a share. `envpool`: C++ threads, one per core,
by its own `step`; `envpool source`: as the trainer drives them. `tensor`: the environment as
PyTorch operations on one thread. Steps/s are medians (lowest to highest); a ratio is the median
of the ratios within each round. `-`: not to be had here or not asked for."""


@dataclass(frozen=True)
class Arguments:
    """Time stepping alone, all kinds in turn, and print rates and ratios."""

    rounds: int = 5
    """Rounds in which everything is timed once, in turn."""
    seconds: float = 1.0
    """Seconds of each timing."""
    envs: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of environments."""
    env_id: tuple[str, ...] = ("LunarLander-v3", "CartPole-v1")
    """Gymnasium ids."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Kinds of vectors, by name."""
    async_limit: int = 64
    """Most environments for AsyncVectorEnv, which starts a process for each."""
    quick: bool = False
    """Take a minute: 2 rounds of 0.3 s with 1 and 16 environments."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.json and NAME.md."""


def main() -> None:
    """Measure, print, save."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__)
    if arguments.quick:
        arguments = replace(arguments, rounds=2, seconds=0.3, envs=(1, 16))
    torch.set_num_threads(1)
    cores = available_cores()
    measured = [
        compare(Crowd(env_id, n, cores, arguments.async_limit), arguments)
        for env_id in arguments.env_id
        for n in arguments.envs
    ]
    header = provenance("python -m benchmarks.studies.stepping")
    header["versions"]["envpool"] = _version("envpool")
    text = "\n\n".join([as_markdown(header), LEGEND, *tables(measured)])
    sys.stdout.write(text + "\n")
    save_result(arguments.save, {"provenance": header, "comparisons": measured}, text)


def compare(crowd: Crowd, arguments: Arguments) -> dict[str, Any]:
    """Time every kind in turn, `rounds` times.

    Returns:
        `env_id`, `num_envs`, `cores`, `laps`, and medians with spread: `rates` by kind and
        `ratios` by name.
    """
    with open_steppers(crowd, arguments.kinds) as timers:
        laps = []
        for number in range(arguments.rounds):
            laps.append({kind: timer(arguments.seconds) for kind, timer in timers.items()})
            message = f"{crowd.env_id}, {crowd.num_envs} envs: round {number + 1}\n"
            sys.stderr.write(message)
    return summary(crowd, laps)


def summary(crowd: Crowd, laps: Sequence[Lap]) -> dict[str, Any]:
    """Return what was measured with medians, lowest and highest."""
    return {
        "env_id": crowd.env_id,
        "num_envs": crowd.num_envs,
        "cores": crowd.cores,
        "laps": list(laps),
        "rates": {kind: spread([lap[kind] for lap in laps]) for kind in laps[0]},
        "ratios": ratios(laps, crowd.cores),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def ratios(laps: Sequence[Lap], cores: int) -> dict[str, dict[str, float]]:
    """Return the ratios of which both sides were timed, each taken within a round."""
    pairs = {
        "grouped / (cores x bare)": ("grouped", "bare", cores),
        "grouped source / (cores x bare)": ("grouped source", "bare", cores),
        "grouped in 2 groups / (cores x bare)": ("grouped in 2 groups", "bare", cores),
        "grouped source / bare on all cores": ("grouped source", "bare on all cores", 1),
        "grouped in 2 groups / bare on all cores": ("grouped in 2 groups", "bare on all cores", 1),
        "grouped / async": ("grouped", "async", 1),
        "grouped / sync": ("grouped", "sync", 1),
        "envpool source / envpool": ("envpool source", "envpool", 1),
    }
    return {
        name: spread([lap[above] / (times * lap[below]) for lap in laps])
        for name, (above, below, times) in pairs.items()
        if above in laps[0] and below in laps[0]
    }


def tables(measured: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of rates and one of ratios for each id, a row for each number of envs."""
    texts = []
    for env_id in dict.fromkeys(entry["env_id"] for entry in measured):
        rows = [entry for entry in measured if entry["env_id"] == env_id]
        texts.append(f"### {env_id}, env steps/s\n\n{_table(rows, 'rates', _rate)}")
        texts.append(f"### {env_id}, ratios\n\n{_table(rows, 'ratios', _ratio)}")
    return texts


def _table(
    entries: Sequence[dict[str, Any]], what: str, write: Callable[[dict[str, float]], str]
) -> str:
    names = list(dict.fromkeys(name for entry in entries for name in entry[what]))
    lines = [" | ".join(["| envs", *names]) + " |", "|---" * (len(names) + 1) + "|"]
    for entry in entries:
        cells = [write(entry[what][name]) if name in entry[what] else "-" for name in names]
        lines.append(" | ".join([f"| {entry['num_envs']}", *cells]) + " |")
    return "\n".join(lines)


def _rate(value: dict[str, float]) -> str:
    return f"{value['median']:,.0f} ({value['lowest']:,.0f} to {value['highest']:,.0f})"


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['lowest']:.2f} to {value['highest']:.2f})"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
