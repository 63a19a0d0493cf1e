"""Where reports go to be kept: JSON lines, TensorBoard, several places, or nowhere."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastdqn.episodes import open_lines
from fastdqn.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from fastdqn.report import Report

__all__ = [
    "Metrics",
    "MetricsGroup",
    "MetricsLog",
    "NullMetrics",
    "TensorBoardMetrics",
    "read_metrics",
]


class Metrics(Protocol):
    """A place that keeps reports."""

    def write(self, report: Report, extra: Mapping[str, object] | None = None) -> None:
        """Keep one report.

        Args:
            report: The figures, already off the device.
            extra: More figures by name, such as those of an evaluation.

        Raises:
            ValueError: A name in extra is one of the report's own.
        """

    def close(self) -> None:
        """Keep what is still under way and let go of the place; a second call does nothing."""


class NullMetrics:
    """Keeps nothing."""

    def write(self, report: Report, extra: Mapping[str, object] | None = None) -> None:
        """Forget the report."""

    def close(self) -> None:
        """Do nothing."""


class MetricsLog:
    """Appends every report to a file as one JSON object per line.

    A line reaches the operating system at once. Figures that JSON lacks, NaN and the
    infinities, become null. An existing log is continued, less a torn last line.

    Args:
        path: The file, ``metrics.jsonl`` of a run folder.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_lines(path, buffering=1)

    def write(self, report: Report, extra: Mapping[str, object] | None = None) -> None:
        """Append one line; see Metrics.write.

        Raises:
            ValueError: A name in extra is one of the report's own.
            TypeError: A value in extra has no form in JSON.
            OSError: The line cannot be written, the disk may be full.
        """
        record = _plain(_record(report, extra))
        self._file.write(json.dumps(record, allow_nan=False) + "\n")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


class _ScalarWriter(Protocol):
    """The part of TensorBoard's SummaryWriter that is used here."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardMetrics:
    """Writes every finite figure of a report as a TensorBoard scalar over env steps.

    Figures come under ``train/``, nested ones such as the time shares under their own name.
    TensorBoard is imported here and not before.

    Args:
        folder: Folder for the event files; made when missing.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UsageError(
                "TensorBoard metrics",
                "the package tensorboard cannot be imported",
                'Install it with: pip install "fastdqn[tensorboard]"',
            ) from error
        self._writer: _ScalarWriter = module.SummaryWriter(str(folder))

    def write(self, report: Report, extra: Mapping[str, object] | None = None) -> None:
        """Add one point to each scalar; see Metrics.write.

        Raises:
            ValueError: A name in extra is one of the report's own.
        """
        for tag, value in _scalars(_record(report, extra)):
            self._writer.add_scalar(tag, value, global_step=report.env_steps)

    def close(self) -> None:
        """Write the events out and close their file; a second call does nothing."""
        self._writer.close()


class MetricsGroup:
    """Hands every report to several places, in the order given.

    Args:
        members: The places; they belong to the group, which closes them.
    """

    def __init__(self, *members: Metrics) -> None:
        self._members = members

    def write(self, report: Report, extra: Mapping[str, object] | None = None) -> None:
        """Keep one report in every place; see Metrics.write."""
        for member in self._members:
            member.write(report, extra)

    def close(self) -> None:
        """Close every place, also when one of them raises; the error comes afterwards."""
        with ExitStack() as stack:
            for member in reversed(self._members):
                stack.callback(member.close)


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
            "Give the metrics.jsonl of a run, or repair or delete that line.",
        )
    return record


def _record(report: Report, extra: Mapping[str, object] | None) -> dict[str, object]:
    """Join a report and the extra figures under one set of names."""
    record: dict[str, object] = asdict(report)
    taken = sorted(record.keys() & (extra or {}).keys())
    if taken:
        raise ValueError(f"extra metrics {taken}: names of the report itself; choose others")
    return record | dict(extra or {})


def _plain(value: object) -> object:
    """Turn a value into what JSON can hold; NaN and the infinities become None."""
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


_X_AXIS = frozenset({"env_steps", "total_env_steps"})


def _scalars(figures: Mapping[str, object], group: str = "train") -> Iterator[tuple[str, float]]:
    """Yield the tag and value of every finite number, nested mappings under their own name."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, group=name)
        elif isinstance(value, int | float | np.number) and name not in _X_AXIS:
            number = float(value)
            if math.isfinite(number):
                yield f"{group}/{name}", number
