"""episodes.csv and evaluations.csv: their columns, the logs that write them, and their readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastdqn.foundation.line_file import TableFormat, TableLog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastdqn.training.evaluation import Evaluation
    from fastdqn.training.events import Episode

__all__ = [
    "EPISODES",
    "EVALUATIONS",
    "EpisodeLog",
    "EpisodeTable",
    "EvaluationLog",
    "EvaluationTable",
    "episode_status",
    "solved_threshold",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SOLVED_LANDER = 200.0
LANDER_WORDS = ((100.0, "Landed"), (0.0, "Improving"), (-100.0, "Stabilizing"))
"""(smallest return, status word) of LunarLander's unsolved episodes, the highest first."""


def _is_lander(env_id: str) -> bool:
    return env_id.rpartition(":")[2].startswith("LunarLander")


def solved_threshold(env_id: str, solved_at: float | None) -> float | None:
    """Return the return from which an episode counts as solved.

    Args:
        env_id: Gymnasium id, with or without a ``module:`` prefix.
        solved_at: The threshold that the user chose; None is 200 for LunarLander, none elsewhere.
    """
    return SOLVED_LANDER if solved_at is None and _is_lander(env_id) else solved_at


def episode_status(return_: float, truncated: bool, *, env_id: str, solved_at: float | None) -> str:
    """Name the end of an episode with one word.

    A solved episode is Solved even when the time limit cut it; a cut one is Timeout whatever
    its return; the rest is named by its return for LunarLander and is Terminated elsewhere.

    Args:
        return_: Undiscounted sum of rewards.
        truncated: Ended by a time limit and not by the environment's own rules.
        env_id: See `solved_threshold`, as for `solved_at`.
        solved_at: See there.

    Returns:
        Solved, Timeout, Landed, Improving, Stabilizing, Crashed or Terminated.
    """
    threshold = solved_threshold(env_id, solved_at)
    if threshold is not None and return_ >= threshold:
        return "Solved"
    if truncated:
        return "Timeout"
    if not _is_lander(env_id):
        return "Terminated"
    return next((word for at_least, word in LANDER_WORDS if return_ >= at_least), "Crashed")


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeTable:
    """The columns of an episode log, one entry per finished episode.

    Attributes:
        episode: [E] int64, serial numbers from 1.
        env_step: [E] int64, env steps of the whole run when the episode ended.
        return_: [E] float64, undiscounted sums of rewards.
        length: [E] int64, env steps of the episode.
        status: E status words.
    """

    episode: Ints
    env_step: Ints
    return_: Floats
    length: Ints
    status: list[str]

    def __len__(self) -> int:
        return len(self.status)


EPISODES = TableFormat(EpisodeTable, "episodes.csv", "an episode")


class EpisodeLog(TableLog):
    """Appends finished episodes; lines are buffered, so a crash costs those since the last flush.

    Args:
        path: The file, ``episodes.csv`` of a run folder.
        env_id: Gymnasium id; chooses the status words.
        solved_at: Return that counts as solved; None takes the environment's own, if any.
    """

    def __init__(self, path: Path, *, env_id: str, solved_at: float | None) -> None:
        super().__init__(path, EPISODES)
        self._names: dict[str, Any] = {"env_id": env_id, "solved_at": solved_at}

    def append(self, episodes: Sequence[Episode]) -> None:
        """Append one line per episode; reading it back gives the same float."""
        for episode in episodes:
            return_ = float(episode.return_)
            status = episode_status(return_, episode.truncated, **self._names)
            self.add(f"{episode.episode},{episode.env_step},{return_!r},{episode.length},{status}")


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationTable:
    """The columns of an evaluation log, one entry per evaluation.

    Attributes:
        env_step: [K] int64, env steps of the run.
        wall_s: [K] float64, seconds since the command started.
        mean: [K] float64, mean return of the episodes.
        std: [K] float64, standard deviation of these returns.
        episodes: [K] int64, episodes of each: few in a screening.
        best: [K] bool, whether it made the policy the best one so far.
    """

    env_step: Ints
    wall_s: Floats
    mean: Floats
    std: Floats
    episodes: Ints
    best: Bools

    def __len__(self) -> int:
        return len(self.mean)


EVALUATIONS = TableFormat(EvaluationTable, "evaluations.csv", "an evaluation")


class EvaluationLog(TableLog):
    """Appends greedy evaluations, screenings included, each at once.

    Args:
        path: The file, ``evaluations.csv`` of a run folder.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            EVALUATIONS.read(path)  # refuses another file
        super().__init__(path, EVALUATIONS)

    def append(self, env_steps: int, wall_s: float, evaluation: Evaluation) -> None:
        """Append one line; reading it back gives the same mean and deviation.

        Args:
            env_steps: Env steps of the run so far.
            wall_s: Seconds since the command started.
            evaluation: The returns, and whether they made the policy the best one so far.

        Raises:
            OSError: The line cannot be written; it waits for the next one.
        """
        mean, std = float(evaluation.mean), float(evaluation.std)
        episodes, best = evaluation.episodes, int(evaluation.best)
        self.add(f"{env_steps},{wall_s:.3f},{mean!r},{std!r},{episodes},{best}")
        self.flush()
