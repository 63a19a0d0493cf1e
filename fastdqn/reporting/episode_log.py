"""episodes.csv: the log of finished episodes, their status words, and its reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from fastdqn.foundation.line_file import TableFormat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastdqn.training.events import Episode

__all__ = [
    "EpisodeLog",
    "EpisodeTable",
    "episode_status",
    "read_episodes",
    "solved_threshold",
]

FORMAT = TableFormat("episode,env_step,return,length,status", "episodes.csv", "an episode")
LARGEST = 2**53
"""Largest count: a float64 holds all up to it exactly."""


@dataclass(frozen=True, slots=True)
class _Band:
    """Returns from at_least up to the next higher band share a status word."""

    at_least: float
    status: str


@dataclass(frozen=True, slots=True)
class _StatusWords:
    """How one family of environments names the ends of its episodes.

    Attributes:
        solved_at: Return that counts as solved unless the caller names another.
        bands: Words for episodes that ended by the rules, from the highest band down.
        otherwise: Word below the last band.
    """

    solved_at: float | None
    bands: tuple[_Band, ...]
    otherwise: str


_LUNAR_LANDER = _StatusWords(
    solved_at=200.0,
    bands=(_Band(100.0, "Landed"), _Band(0.0, "Improving"), _Band(-100.0, "Stabilizing")),
    otherwise="Crashed",
)
_ANY_ENV = _StatusWords(solved_at=None, bands=(), otherwise="Terminated")


def _status_words(env_id: str) -> _StatusWords:
    name = env_id.rpartition(":")[2]
    return _LUNAR_LANDER if name.startswith("LunarLander") else _ANY_ENV


def solved_threshold(env_id: str, solved_at: float | None) -> float | None:
    """Return the return from which an episode counts as solved.

    Args:
        env_id: Gymnasium id, with or without a ``module:`` prefix.
        solved_at: The threshold that the user chose; None asks for the environment's own.

    Returns:
        The threshold in units of return; None when neither the user nor this table knows one.
    """
    return _status_words(env_id).solved_at if solved_at is None else solved_at


def episode_status(return_: float, truncated: bool, *, env_id: str, solved_at: float | None) -> str:
    """Name the end of an episode with one word.

    A solved episode is Solved even when the time limit cut it; a cut one is Timeout whatever
    its return; the rest is named by its return for LunarLander and is Terminated elsewhere.

    Args:
        return_: Undiscounted sum of rewards.
        truncated: RunOutcome by a time limit and not by the environment's own rules.
        env_id: Gymnasium id, with or without a ``module:`` prefix.
        solved_at: Return that counts as solved; None takes 200 for LunarLander, none elsewhere.

    Returns:
        Solved, Timeout, Landed, Improving, Stabilizing, Crashed or Terminated.
    """
    threshold = solved_threshold(env_id, solved_at)
    if threshold is not None and return_ >= threshold:
        return "Solved"
    if truncated:
        return "Timeout"
    words = _status_words(env_id)
    reached = (band.status for band in words.bands if return_ >= band.at_least)
    return next(reached, words.otherwise)


class EpisodeLog:
    """Appends finished episodes to a CSV file, one line each.

    Lines are buffered: a crash costs those since the last flush. An existing log is continued.
    After an OSError the lines wait for room on the disk.

    Args:
        path: The file, ``episodes.csv`` of a run folder.
        env_id: Gymnasium id; chooses the status words.
        solved_at: Return that counts as solved; None takes the environment's own, if any.

    Raises:
        UsageError: The file exists and is not an episode log; it is left as it was.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, *, env_id: str, solved_at: float | None) -> None:
        self._env_id = env_id
        self._solved_at = solved_at
        self._file = FORMAT.open(path)

    def write(self, episodes: Sequence[Episode]) -> None:
        """Append one line per episode; reading it back gives the same float."""
        for episode in episodes:
            self._file.add(self._line(episode))

    def flush(self) -> None:
        """Pass all lines so far to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self, episode: Episode) -> str:
        return_ = float(episode.return_)
        status = episode_status(
            return_, episode.truncated, env_id=self._env_id, solved_at=self._solved_at
        )
        return f"{episode.episode},{episode.env_step},{return_!r},{episode.length},{status}"


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

    episode: npt.NDArray[np.int64]
    env_step: npt.NDArray[np.int64]
    return_: npt.NDArray[np.float64]
    length: npt.NDArray[np.int64]
    status: list[str]

    def __len__(self) -> int:
        return len(self.status)


def read_episodes(path: Path) -> EpisodeTable:
    """Read an episode log.

    A last line without its end, left by a crash while writing, is ignored.

    Args:
        path: The file that an EpisodeLog wrote.

    Returns:
        Its columns in the order of the file; the arrays are new.

    Raises:
        UsageError: The header is another one, or a line is not an episode.
        OSError: The file is missing or cannot be read.
    """
    rows = FORMAT.read(path, _parse)
    return EpisodeTable(
        episode=np.array([row[0] for row in rows], dtype=np.int64),
        env_step=np.array([row[1] for row in rows], dtype=np.int64),
        return_=np.array([row[2] for row in rows], dtype=np.float64),
        length=np.array([row[3] for row in rows], dtype=np.int64),
        status=[row[4] for row in rows],
    )


def _parse(cells: list[str]) -> tuple[int, int, float, int, str]:
    episode, env_step, return_, length, status = cells
    counts = int(episode), int(env_step), int(length)
    if max(map(abs, counts)) > LARGEST:
        raise ValueError("no count")
    return counts[0], counts[1], float(return_), counts[2], status
