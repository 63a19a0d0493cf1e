"""evaluations.csv: the log of greedy evaluations, screenings included, and its reader."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastdqn.foundation.line_file import TableFormat

if TYPE_CHECKING:
    from pathlib import Path

    from fastdqn.training.events import EvaluationReport

__all__ = ["EvaluationLog", "EvaluationTable", "no_evaluations", "read_evaluations"]

FORMAT = TableFormat("env_step,wall_s,mean,std,episodes,best", "evaluations.csv", "an evaluation")


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationTable:
    """The columns of an evaluation log, one entry per evaluation.

    Attributes:
        env_step: [K] int64, env steps of the run.
        wall_s: [K] float64, seconds since the command started.
        mean: [K] float64, mean return of the episodes.
        std: [K] float64, standard deviation of these returns.
        episodes: [K] int64, episodes of each: few in a screening.
        best: [K] bool, whether the mean was above that of every one before it.
    """

    env_step: npt.NDArray[np.int64]
    wall_s: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    episodes: npt.NDArray[np.int64]
    best: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.mean)


class EvaluationLog:
    """Appends evaluations to a CSV file; an existing one is continued.

    A line reaches the operating system at once, or waits for room on the disk.

    Args:
        path: The file, ``evaluations.csv`` of a run folder.

    Raises:
        UsageError: The file exists and is not an evaluation log; it is left as it was.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        earlier = read_evaluations(path).mean if path.exists() else np.zeros(0)
        self._best = max(earlier[np.isfinite(earlier)].tolist(), default=-math.inf)
        self._file = FORMAT.open(path)

    def is_best(self, mean: float) -> bool:
        """Return whether a mean return is above those of all evaluations so far."""
        return mean > self._best

    def write(self, found: EvaluationReport) -> None:
        """Append one line; reading it back gives the same floats.

        Raises:
            OSError: The line cannot be written; it waits for the next one.
        """
        if found.best:
            self._best = found.mean
        mean, std = float(found.mean), float(found.std)
        self._file.add(
            f"{found.env_steps},{found.wall_s:.3f},{mean!r},{std!r},{found.episodes},"
            f"{int(found.best)}"
        )
        self._file.flush()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        self._file.close()


def no_evaluations() -> EvaluationTable:
    """Return the table of a run without evaluations."""
    return _table([])


def read_evaluations(path: Path) -> EvaluationTable:
    """Read an evaluation log.

    A last line without its end, left by a crash while writing, is ignored.

    Args:
        path: The file that an EvaluationLog wrote.

    Returns:
        Its columns in the order of the file; the arrays are new.

    Raises:
        UsageError: The header is another one, or a line is not an evaluation.
        OSError: The file is missing or cannot be read.
    """
    return _table(FORMAT.read(path, _parse))


Row = tuple[int, float, float, float, int, bool]


def _table(rows: list[Row]) -> EvaluationTable:
    return EvaluationTable(
        env_step=np.array([row[0] for row in rows], dtype=np.int64),
        wall_s=np.array([row[1] for row in rows], dtype=np.float64),
        mean=np.array([row[2] for row in rows], dtype=np.float64),
        std=np.array([row[3] for row in rows], dtype=np.float64),
        episodes=np.array([row[4] for row in rows], dtype=np.int64),
        best=np.array([row[5] for row in rows], dtype=np.bool_),
    )


def _parse(cells: list[str]) -> Row:
    env_step, wall_s, mean, std, episodes, best = cells
    return int(env_step), float(wall_s), float(mean), float(std), int(episodes), bool(int(best))
