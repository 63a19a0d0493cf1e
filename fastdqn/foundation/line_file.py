"""Files that grow by whole records or lines, on a disk that may be full for a while, and tables."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np

from fastdqn.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LineFile", "RecordFile", "TableFormat", "TableLog"]

Table = TypeVar("Table")

BUFFER_BYTES = 8_192
WAITING_BYTES = 2**22
"""Bytes that wait for room at most; beyond that the oldest records are dropped."""
LARGEST = 2**53
"""Largest count in a table: a float64 holds all up to it exactly."""


class RecordFile:
    """Appends records to a file; those that a full disk refuses wait and are tried again.

    A record is in the file as a whole or not at all: a part that an error left is cut off.
    Missing folders are made.

    Args:
        path: The file; made when missing.

    Attributes:
        is_new: Whether the file was empty.

    Raises:
        OSError: The file or its folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.is_new = os.fstat(self._file).st_size == 0
        self._waiting: list[bytes] = []
        self._waiting_bytes, self._due_bytes = 0, BUFFER_BYTES

    def write(self, record: bytes) -> None:
        """Take a record; it is written with the next flush or a few records later.

        Where that failed, it is tried again once as many bytes more have come in.

        Raises:
            OSError: Records could not be written; they wait.
            ValueError: The file is closed.
        """
        if self._file < 0:
            raise ValueError("the file is closed")
        self._waiting.append(record)
        self._waiting_bytes += len(record)
        if self._waiting_bytes > self._due_bytes:
            self.flush()

    def flush(self) -> None:
        """Pass all records so far to the operating system.

        Raises:
            OSError: They cannot be written; they wait.
        """
        if not self._waiting:
            return
        before = os.fstat(self._file).st_size
        try:
            _write_all(self._file, b"".join(self._waiting))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            self._give_up_oldest()
            self._due_bytes = self._waiting_bytes + BUFFER_BYTES
            raise
        self._waiting, self._waiting_bytes, self._due_bytes = [], 0, BUFFER_BYTES

    def _give_up_oldest(self) -> None:
        given_up = 0
        while self._waiting_bytes > WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting[given_up])
            given_up += 1
        del self._waiting[:given_up]

    def close(self) -> None:
        """Flush and close; a second call does nothing.

        Raises:
            OSError: Records could not be written and are lost; the file is closed.
        """
        if self._file < 0:
            return
        try:
            self.flush()
        finally:
            file, self._file, self._waiting = self._file, -1, []
            os.close(file)


class LineFile(RecordFile):
    """Appends lines of UTF-8. A last line without its end, left by a crash, is cut off first.

    Args:
        path: The file; made when missing.

    Raises:
        OSError: The file or its folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.is_file():  # and no device
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        super().__init__(path)

    def add(self, line: str) -> None:
        """Take a line, without its end; see `write`.

        Raises:
            OSError: Lines cannot be written; they wait.
        """
        self.write(f"{line}\n".encode(errors="backslashreplace"))


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _count(cell: str) -> int:
    number = int(cell)
    if abs(number) > LARGEST:
        raise ValueError("no count")
    return number


CELLS: dict[str, tuple[Callable[[str], object], Callable[[Sequence[Any]], object]]] = {
    "Ints": (_count, partial(np.array, dtype=np.int64)),
    "Floats": (float, partial(np.array, dtype=np.float64)),
    "Bools": (lambda cell: bool(int(cell)), partial(np.array, dtype=np.bool_)),
    "list[str]": (str, list),
}
"""Type of a column -> what reads a cell of it, or raises a ValueError, and what joins its cells."""


class TableFormat(Generic[Table]):
    """A CSV file of a run: a header, then one line per row.

    Args:
        table: A dataclass of its columns: a field `return_` is the column `return`.
        name: Its name in the folder of a run.
        row: What a row is, for messages, e.g. `an episode`.
    """

    def __init__(self, table: Callable[..., Table], name: str, row: str) -> None:
        columns = fields(cast("Any", table))
        self.header = ",".join(column.name.rstrip("_") for column in columns)
        self._cells = [CELLS[str(column.type)] for column in columns]
        self._table, self._name, self._row = table, name, row

    def read(self, path: Path) -> Table:
        """Return the table of a file; a last line without its end, left by a crash, is ignored.

        Raises:
            UsageError: The header is another one, or a line cannot be parsed.
            OSError: The file is missing or cannot be read.
        """
        lines = enumerate(self.lines(path), start=2)
        return self.table_of([self._parse(path, number, line) for number, line in lines])

    def table_of(self, rows: Sequence[Sequence[object]] = ()) -> Table:
        """Return the table of rows; its arrays and lists are new."""
        columns = zip(*rows, strict=True) if rows else [()] * len(self._cells)
        joined = zip(self._cells, columns, strict=True)
        return self._table(*(join(column) for (_, join), column in joined))

    def _parse(self, path: Path, number: int, line: str) -> list[object]:
        try:
            cells = zip(self._cells, line.split(","), strict=True)
            return [read(cell) for (read, _), cell in cells]
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number}",
                f"{line[:60]!r} is not {self._row} ({self.header})",
                "Repair or delete that line.",
            ) from error

    def lines(self, path: Path) -> list[str]:
        """Return the finished lines after the header; a torn header counts as none at all.

        Raises:
            UsageError: The header is another one.
            OSError: The file is missing or cannot be read.
        """
        *whole, torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
        first = whole[0] if whole else torn
        if first != self.header and (whole or not self.header.startswith(torn)):
            raise UsageError(
                str(path),
                f"not {self._row} log: it starts with {first[:60]!r} and not with {self.header!r}",
                f"Pass the {self._name} of a run, or move this file away.",
            )
        return whole[1:]


class TableLog(LineFile):
    """Appends lines to a table; a new one begins with its header, an existing one is continued.

    Args:
        path: The file; made when missing.
        table: Its format.

    Raises:
        UsageError: The file exists and is another one; it is left as it was.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, table: TableFormat[Any]) -> None:
        if path.exists():
            table.lines(path)
        super().__init__(path)
        if self.is_new:
            self.add(table.header)
            self.flush()
