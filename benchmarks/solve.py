"""`python -m benchmarks.solve`: train a preset with many seeds and tell how long each took."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.provenance import RESULTS, as_markdown, provenance

HEADER = (
    "| seed | status | env steps | training s | compile s | from the command s | greedy mean |\n"
    "|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Arguments:
    """Run `fastdqn train --preset PRESET` once per seed and print what result.json says."""

    preset: str = "lunarlander"
    """Preset to train."""
    seeds: int = 10
    """Seeds 0 to this, excluded."""
    save: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Write benchmarks/results/NAME.md."""


def main() -> None:
    """Train, print, save; exit code 1 if a seed was not solved."""
    arguments = tyro.cli(Arguments, description=Arguments.__doc__)
    results = []
    for seed in range(arguments.seeds):
        results.append(train(arguments.preset, seed))
        sys.stderr.write(row(results[-1]) + "\n")
    lines = [as_markdown(provenance("python -m benchmarks.solve")), "", HEADER]
    text = "\n".join([*lines, *map(row, results), "", summary(results)])
    sys.stdout.write(text + "\n")
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{arguments.save}.md").write_text(text + "\n")
    sys.exit(any(result["status"] != "solved" for result in results))


def train(preset: str, seed: int) -> dict[str, Any]:
    """Run the command and return its result.json."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "fastdqn", "train", "--preset", preset]
        subprocess.run(
            [*command, "--seed", str(seed), "--run-dir", str(run_dir), "--quiet"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        result: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return result


def row(result: dict[str, Any]) -> str:
    """Return one line of the table."""
    wall = result["wall_s"]
    return (
        f"| {result['seed']} | {result['status']} | {result['env_steps']:,} | {wall['train']:.1f} "
        f"| {wall['compile']:.1f} | {wall['total']:.1f} | {result['return']['eval_mean']:.1f} |"
    )


def summary(results: list[dict[str, Any]]) -> str:
    """Return the medians in a sentence."""
    solved = sum(result["status"] == "solved" for result in results)
    train_s = statistics.median(result["wall_s"]["train"] for result in results)
    total_s = statistics.median(result["wall_s"]["total"] for result in results)
    slowest = max(result["wall_s"]["train"] for result in results)
    return (
        f"{solved} of {len(results)} solved; median {train_s:.1f} s of training (slowest "
        f"{slowest:.1f} s), {total_s:.1f} s from the command to the end."
    )


if __name__ == "__main__":
    main()
