"""`python -m benchmarks.studies.solve`: how long `fastdqn train` takes, with many seeds.

Seconds run from the start of the command to its end, measured from outside: the interpreter, the
imports, the compile, the evaluations and the plots are in them. By default every run starts cold,
with empty compile caches of its own; `--warm` lets all runs share caches that a first run, which
is not counted, has filled.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks.provenance import as_markdown, provenance, save_result
from fastdqn import DQN
from fastdqn.cli.commands import SMALLEST
from fastdqn.errors import UsageError
from fastdqn.foundation.formatting import format_return
from fastdqn.foundation.policy_folders import has_best

__all__ = [
    "COLUMNS",
    "UNCOUNTED_SEED",
    "first_update_s",
    "main",
    "row",
    "seeds_of",
    "split",
    "summary",
    "train",
]

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME")
"""Where compiled artefacts are kept between runs."""
FRESH_EPISODES = 100
FRESH_SEED = 1_000_000
"""Plus the run's seed: environments that neither the training nor its evaluations have seen."""

UNCOUNTED_SEED = 1_000
"""Of the runs that fill the caches."""

Run = dict[str, Any]
"""What a run's result.json says, with `seconds` by activity and `fresh_mean`."""

COLUMNS: dict[str, Callable[[Run], str]] = {
    "seed": lambda run: str(run["seed"]),
    "status": lambda run: str(run["status"]),
    "env steps": lambda run: f"{run['env_steps']:,}",
    "command s": lambda run: f"{run['seconds']['command']:.1f}",
    "start s": lambda run: f"{run['seconds']['startup']:.1f}",
    "compile s": lambda run: f"{run['seconds']['compile']:.1f}",
    "train s": lambda run: f"{run['seconds']['train']:.1f}",
    "evaluate s": lambda run: f"{run['seconds']['evaluate']:.1f}",
    "around s": lambda run: f"{run['seconds']['around']:.1f}",
    "first update within s": lambda run: _or_dash(run["seconds"]["first_update"]),
    "mean that stopped it": lambda run: _mean_or_dash(run["return"]["eval_mean"]),
    "fresh greedy mean": lambda run: format_return(run["fresh_mean"]),
}

LEGEND = """\
`command`: from the start of the command to its end. `start`: until environments and network stand.
`evaluate`: the evaluations that may stop the run, and what little is left. `around`: the
interpreter and the command line before, the plots after. `first update within`: the first line of
metrics.jsonl that knows a loss, from the start of the program. `fresh greedy mean`: 100 episodes of
environments that the run never saw, played after it by its best policy."""


@dataclass(frozen=True)
class Arguments:
    """Run `fastdqn train --preset PRESET` once per seed and print where the seconds went."""

    preset: str = "lunarlander"
    """Preset to train."""
    seeds: int = 10
    """How many seeds."""
    first_seed: int = 0
    """The first of them: seeds that chose a preset's settings say little about it."""
    cold: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Give every run empty compile caches of its own; the default."""
    warm: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Let the runs share caches that a first run, not counted, fills."""
    train_args: str = ""
    """More flags of the command, in one word: --train-args='--execution eager --num-envs 8'."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.md and NAME.json."""

    def __post_init__(self) -> None:
        if self.cold and self.warm:
            raise UsageError("--cold --warm", "a cache is one or the other", "Choose one.")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print, save; return 1 if a seed was not solved, 2 for wrong arguments."""
    try:
        arguments = tyro.cli(Arguments, description=__doc__, args=argv)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    train_args = shlex.split(arguments.train_args)
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) if arguments.warm else None
        if shared:
            train(arguments.preset, UNCOUNTED_SEED, shared, train_args)
        runs = []
        for seed in seeds_of(arguments.first_seed, arguments.seeds):
            runs.append(train(arguments.preset, seed, shared, train_args))
            sys.stderr.write(row(runs[-1]) + "\n")
    header = provenance("python -m benchmarks.studies.solve")
    caches = "Caches warm." if arguments.warm else "Caches cold: empty at the start of each run."
    head = "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|"
    lines = [as_markdown(header), "", caches, LEGEND, "", head, *map(row, runs), "", summary(runs)]
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    save_result(arguments.save, {"provenance": header, "warm": arguments.warm, "runs": runs}, text)
    return int(any(run["status"] != "solved" for run in runs))


def seeds_of(first: int, count: int) -> range:
    """Return so many seeds from the first one on."""
    return range(first, first + count)


def train(preset: str, seed: int, caches: Path | None, train_args: Sequence[str] = ()) -> Run:
    """Run the command and return what it came to.

    Args:
        preset: To train.
        seed: Of the run.
        caches: Folder of compiled artefacts; None is an empty one for this run.
        train_args: More flags of the command.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "fastdqn", "train", "--preset", preset, "--quiet"]
        command += ["--seed", str(seed), "--run-dir", str(run_dir)]
        kept = caches or Path(folder) / "caches"
        environment = {**os.environ, **{name: str(kept / name.lower()) for name in CACHES}}
        command_s = timed([*command, *train_args], environment)
        run: Run = json.loads((run_dir / "result.json").read_text())
        metrics = (run_dir / "metrics.jsonl").read_text()
        run["seconds"] = split(run["wall_s"], command_s, first_update_s(metrics))
        run["fresh_mean"] = _fresh_mean(run_dir, seed)
    return run


def timed(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command to its end and return the seconds that it took; it must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def split(wall_s: dict[str, float], command_s: float, first_s: float | None) -> Run:
    """Return the seconds by activity; they sum to `command`.

    Args:
        wall_s: Of result.json.
        command_s: From the start of the command to its end.
        first_s: See `first_update_s`.
    """
    parts = {name: wall_s[name] for name in ("startup", "compile", "train")}
    inside = wall_s["total"]
    rest = {"evaluate": inside - sum(parts.values()), "around": command_s - inside}
    return {"command": command_s, **parts, **rest, "first_update": first_s}


def first_update_s(metrics: str) -> float | None:
    """Return when the first report that knows a loss was written, in seconds; None without one."""
    for line in metrics.splitlines():
        record = json.loads(line)
        if record["loss"] is not None:
            return float(record["wall_s"])
    return None


def _fresh_mean(run_dir: Path, seed: int) -> float:
    policy: Literal["best", "last"] = "best" if has_best(run_dir) else "last"
    agent = DQN.load(run_dir, policy=policy, device="cpu", execution="eager", **SMALLEST)
    return float(agent.evaluate(FRESH_EPISODES, seed=FRESH_SEED + seed).mean)


def row(run: Run) -> str:
    """Return one line of the table."""
    return "| " + " | ".join(cell(run) for cell in COLUMNS.values()) + " |"


def summary(runs: Sequence[Run]) -> str:
    """Return the medians in a sentence."""
    solved = sum(run["status"] == "solved" for run in runs)
    medians = {
        name: statistics.median(run["seconds"][name] for run in runs)
        for name in ("command", "startup", "compile", "train", "evaluate")
    }
    slowest = max(run["seconds"]["command"] for run in runs)
    fresh = statistics.median(run["fresh_mean"] for run in runs)
    return (
        f"{solved} of {len(runs)} solved; medians: {medians['command']:.1f} s from the command to "
        f"its end (slowest {slowest:.1f} s), of which {medians['startup']:.1f} s start, "
        f"{medians['compile']:.1f} s compiling, {medians['train']:.1f} s training, "
        f"{medians['evaluate']:.1f} s evaluating; fresh greedy mean {format_return(fresh)}."
    )


def _mean_or_dash(value: float | None) -> str:
    return "-" if value is None else format_return(value)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
