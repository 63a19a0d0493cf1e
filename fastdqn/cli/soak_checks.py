"""What a soak looks for: losses in a run's files, growth of memory and of open files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from fastdqn.foundation.policy_folders import CHECKPOINTS

__all__ = [
    "Growth",
    "losses_of_result",
    "losses_of_resume",
    "losses_of_table",
    "newest_step",
    "return_of",
    "slope",
]

RESUMED = re.compile(r"Resumed at env step ([\d,]+) from ")
STEP = re.compile(r"step-(\d{12})")
RESULTS = ("result.json", "episodes.csv")


def losses_of_table(run_dir: Path) -> list[str]:
    """Return what is wrong with episodes.csv: numbers that miss or come twice, steps that fall."""
    path = run_dir / "episodes.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = []
    for number, row in enumerate(rows, 1):
        if row["episode"] != str(number):
            losses.append(f"episodes.csv: row {number} is episode {row['episode']}")
            break
    for before, after in pairwise(rows):
        if int(after["env_step"]) < int(before["env_step"]):
            losses.append(f"episodes.csv: env steps fall at episode {after['episode']}")
            break
    return losses


def newest_step(run_dir: Path) -> int | None:
    """Return the env steps of the newest checkpoint, by its name."""
    names = (STEP.fullmatch(folder.name) for folder in (run_dir / CHECKPOINTS).glob("step-*"))
    return max((int(name[1]) for name in names if name), default=None)


def losses_of_resume(run_dir: Path, resumes: int, expected: int) -> list[str]:
    """Return what is wrong with the last resume: none was logged, or from another checkpoint.

    Args:
        run_dir: The run.
        resumes: Resumes so far, this one included.
        expected: Env steps of the checkpoint that was the newest before it.
    """
    path = run_dir / "log.txt"
    log = path.read_text(errors="replace") if path.exists() else ""
    resumed = [int(words.replace(",", "")) for words in RESUMED.findall(log)]
    if len(resumed) < resumes:
        return [f"log.txt: {len(resumed)} resumes of {resumes}"]
    if resumed[-1] != expected:
        return [f"it resumed at env step {resumed[-1]}, and a checkpoint was at {expected}"]
    return []


def losses_of_result(run_dir: Path) -> list[str]:
    """Return where result.json, episodes.csv and the newest checkpoint differ after a stop."""
    if missing := [name for name in RESULTS if not (run_dir / name).is_file()]:
        return [f"{name} is missing" for name in missing]
    result = json.loads((run_dir / "result.json").read_text())
    with (run_dir / "episodes.csv").open(newline="") as file:
        rows = sum(1 for _ in csv.DictReader(file))
    losses = []
    if result["episodes"] != rows:
        losses.append(f"result.json has {result['episodes']} episodes, episodes.csv {rows}")
    if result["env_steps"] != newest_step(run_dir):
        losses.append(f"result.json is at {result['env_steps']}, the newest checkpoint is not")
    return losses


def return_of(run_dir: Path) -> float | None:
    """Return the mean return of the last hundred episodes, or None."""
    path = run_dir / "episodes.csv"
    if not path.exists():
        return None
    with path.open(newline="") as file:
        returns = [float(row["return"]) for row in csv.DictReader(file)][-100:]
    return sum(returns) / len(returns) if returns else None


@dataclass
class Growth:
    """Resident memory and open files of a trainer over time, one list for each process.

    Attributes:
        samples: (seconds, resident MiB, open files), of each process.
    """

    samples: list[list[tuple[float, float, int]]] = field(default_factory=list)

    def begin(self) -> None:
        """Begin a list: a process has started."""
        self.samples.append([])

    def look(self, pid: int, seconds: float, proc: Path = Path("/proc")) -> None:
        """Add a sample of a process that runs; none of one that has ended."""
        try:
            status = (proc / str(pid) / "status").read_text()
            files = sum(1 for _ in (proc / str(pid) / "fd").iterdir())
        except OSError:
            return
        if found := re.search(r"VmRSS:\s+(\d+)", status):
            self.samples[-1].append((seconds, int(found[1]) / 1024, files))

    def longest(self) -> list[tuple[float, float, int]]:
        """Return the samples of the process that ran longest, without its first third."""
        if not self.samples:
            return []
        most = max(self.samples, key=len)
        return most[len(most) // 3 :]

    def summary(self) -> dict[str, float | None]:
        """Return the largest values, and growth per minute in the process that ran longest."""
        every = [sample for samples in self.samples for sample in samples]
        seconds, memory, files = zip(*self.longest(), strict=True) if self.longest() else ((),) * 3
        return {
            "resident_mib_max": max((sample[1] for sample in every), default=None),
            "resident_mib_per_min": _per_minute(seconds, memory),
            "open_files_max": max((sample[2] for sample in every), default=None),
            "open_files_per_min": _per_minute(seconds, files),
        }


def _per_minute(seconds: Sequence[float], values: Sequence[float]) -> float | None:
    rate = slope(zip(seconds, values, strict=True))
    return None if rate is None else 60 * rate


def slope(points: Iterable[tuple[float, float]]) -> float | None:
    """Return the slope of the line of least squares; None of fewer than two different places."""
    known = list(points)
    if len({x for x, _ in known}) < 2:
        return None
    mean_x, mean_y = (sum(column) / len(known) for column in zip(*known, strict=True))
    above: float = sum((x - mean_x) * (y - mean_y) for x, y in known)
    beside: float = sum((x - mean_x) ** 2 for x, _ in known)
    return above / beside
