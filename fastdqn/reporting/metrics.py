"""Logs of reports: JSON lines, and TensorBoard events."""

from __future__ import annotations

import importlib
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastdqn.errors import UsageError
from fastdqn.foundation.line_file import LineFile, RecordFile
from fastdqn.foundation.saved_files import without_nan

if TYPE_CHECKING:
    from pathlib import Path

    from fastdqn.training.events import Report

__all__ = ["MetricsLog", "TensorBoardMetrics", "read_metrics"]


class MetricsLog(LineFile):
    """Appends every report to a file as one JSON object per line.

    A line reaches the operating system at once. Figures that JSON lacks, NaN and the
    infinities, become null. An existing log is continued, less a torn last line.

    Args:
        path: The file, ``metrics.jsonl`` of a run folder.

    Raises:
        OSError: The file cannot be written.
    """

    def append(self, report: Report) -> None:
        """Append one line.

        Raises:
            OSError: The line cannot be written, the disk may be full; it waits for the next one.
        """
        self.add(json.dumps(without_nan(asdict(report)), allow_nan=False))
        self.flush()

    def forget_after(self, env_steps: int) -> None:
        """Do nothing: the file has been cut back."""


class TensorBoardMetrics(RecordFile):
    """Writes every finite figure of a report as a TensorBoard scalar over env steps.

    Figures come under ``train/``, nested ones such as the time shares under their own name.
    TensorBoard is imported here and not before. Its own writer has a thread, which dies with a
    traceback on a full disk; here events wait for room.

    Args:
        folder: Folder for the event files; made when missing.

    Raises:
        UsageError: TensorBoard is not installed.
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._proto: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
            records: Any = importlib.import_module("tensorboard.summary.writer.record_writer")
        except ImportError as error:
            raise UsageError(
                "TensorBoard metrics",
                "the package tensorboard cannot be imported",
                'Install it with: pip install "fastdqn[tensorboard]"',
            ) from error
        super().__init__(folder / _event_file_name())
        self._records: Any = records.RecordWriter(self)
        self._add_event(file_version="brain.Event:2")

    def append(self, report: Report) -> None:
        """Add one point to each scalar.

        Raises:
            OSError: The points cannot be written, the disk may be full; they wait.
        """
        values = [{"tag": tag, "simple_value": value} for tag, value in _scalars(asdict(report))]
        self._add_event(step=report.env_steps, summary={"value": values})
        self.flush()

    def forget_after(self, env_steps: int) -> None:
        """Let TensorBoard forget the points of older files beyond so many env steps.

        Raises:
            OSError: It cannot be written; it waits.
        """
        start = self._proto.SessionLog.START
        self._add_event(step=env_steps + 1, session_log=self._proto.SessionLog(status=start))
        self.flush()

    def _add_event(self, **fields: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


def _event_file_name() -> str:
    """Return a name that TensorBoard recognizes, unique by process and time."""
    moment = time.time_ns()
    stamp = f"{moment // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{moment % 10**9}"
    return f"events.out.tfevents.{stamp}"


def read_metrics(path: Path) -> list[dict[str, object]]:
    """Read the records that a MetricsLog wrote.

    A last line without its end, left by a crash while writing, is ignored.

    Args:
        path: The file.

    Returns:
        One mapping per line, in the order of the file; unknown figures are None.

    Raises:
        UsageError: A line is not a JSON object.
        OSError: The file is missing or cannot be read.
    """
    *whole, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_parse(path, number, line) for number, line in enumerate(whole, start=1)]


def _parse(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        record: object = json.loads(line)
    except (ValueError, RecursionError):  # also a number of thousands of digits
        record = None
    if not isinstance(record, dict):
        raise UsageError(
            f"{path}, line {number}",
            f"{line[:60]!r} is not a JSON object",
            "Pass the metrics.jsonl of a run, or repair or delete that line.",
        )
    return record


_X_AXIS = frozenset({"env_steps", "total_env_steps"})


def _scalars(figures: Mapping[str, object], group: str = "train") -> Iterator[tuple[str, float]]:
    """Yield the tag and value of every finite number, nested mappings under their own name."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, group=name)
        elif isinstance(value, int | float) and name not in _X_AXIS and math.isfinite(value):
            yield f"{group}/{name}", float(value)
