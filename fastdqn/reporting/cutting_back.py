"""Cuts the files of a run back to a checkpoint, so that they go on from there.

Rows are appended in order, so what came after the checkpoint is the end of each file, and it is
cut off in one call: a crash leaves the file cut or not, and the next resume cuts it as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Counts", "cut_back"]


@dataclass(frozen=True)
class Counts:
    """How far a checkpoint is.

    Attributes:
        env_steps: Env steps of the run.
        episodes: Finished episodes.
        reported: Env steps of the last report.
    """

    env_steps: int
    episodes: int
    reported: int


def cut_back(run_dir: Path, counts: Counts) -> list[str]:
    """Cut episodes.csv, evaluations.csv and metrics.jsonl back to a checkpoint.

    A last line without its end, left by a crash, goes too. Evaluations at the env step of the
    checkpoint stay, the one at the end of a run included: they are of its policy.

    Returns:
        What is missing of the rows before the checkpoint, in words; as a rule nothing.

    Raises:
        OSError: A file cannot be read or cut.
    """
    kept = _cut(run_dir / "episodes.csv", _cell, counts.episodes, header=True)
    _cut(run_dir / "evaluations.csv", _cell, counts.env_steps, header=True)
    _cut(run_dir / "metrics.jsonl", _reported, counts.reported)
    if kept < counts.episodes:
        missing = counts.episodes - kept
        return [f"episodes.csv lacks {missing:,} of the {counts.episodes:,} episodes so far"]
    return []


def _cut(path: Path, number: Callable[[bytes], int], most: int, *, header: bool = False) -> int:
    """Cut a file off after the last line that is kept; return how many rows are.

    A line that cannot be read stays between others, and goes at the end.
    """
    if not path.is_file():
        return 0
    position = end = kept = 0
    with path.open("rb") as lines:
        for index, line in enumerate(lines):
            position += len(line)
            found = 0 if header and index == 0 else number(line)
            if not line.endswith(b"\n") or found > most:
                break
            if found != UNREADABLE:
                end, kept = position, kept + (index > 0 or not header)
    if end < path.stat().st_size:
        os.truncate(path, end)
    return kept


UNREADABLE = -1


def _cell(line: bytes) -> int:
    """Return the first cell, the serial number of an episode or the env step of an evaluation."""
    return _whole(lambda: int(line.partition(b",")[0]))


def _reported(line: bytes) -> int:
    """Return the env steps of a report."""
    return _whole(lambda: int(json.loads(line)["env_steps"]))


def _whole(read: Callable[[], int]) -> int:
    try:
        return read()
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return UNREADABLE
