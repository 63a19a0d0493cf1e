"""Files that grow by whole lines or records, on a disk that may be full for a while."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fastdqn.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["LineFile", "RecordFile", "TableFormat"]

Row = TypeVar("Row")

BUFFER_BYTES = 8_192
WAITING_BYTES = 2**22
"""Bytes that wait for room at most; beyond that the oldest records are dropped."""


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


@dataclass(frozen=True)
class TableFormat:
    """A CSV file of a run: a header, then one line per row.

    Attributes:
        header: Its first line.
        name: Its name in the folder of a run.
        row: What a row is, for messages, e.g. `an episode`.
    """

    header: str
    name: str
    row: str

    def open(self, path: Path) -> LineFile:
        """Open a file to append lines to; a new one begins with the header.

        Raises:
            UsageError: The file begins with another header; it is left as it was.
            OSError: It cannot be written.
        """
        if path.exists():
            self._lines(path)
        file = LineFile(path)
        if file.is_new:
            file.add(self.header)
            file.flush()
        return file

    def read(self, path: Path, parse: Callable[[list[str]], Row]) -> list[Row]:
        """Return the rows of a file; a last line without its end, left by a crash, is ignored.

        Args:
            path: The file.
            parse: Makes a row of the cells of a line; raises a ValueError if it cannot.

        Raises:
            UsageError: The header is another one, or a line cannot be parsed.
            OSError: The file is missing or cannot be read.
        """
        rows = []
        for number, line in enumerate(self._lines(path), start=2):
            try:
                rows.append(parse(line.split(",")))
            except ValueError as error:
                raise UsageError(
                    f"{path}, line {number}",
                    f"{line[:60]!r} is not {self.row} ({self.header})",
                    "Repair or delete that line.",
                ) from error
        return rows

    def _lines(self, path: Path) -> list[str]:
        """Return the finished lines after the header; a torn header counts as none at all."""
        *whole, torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
        first = whole[0] if whole else torn
        if first != self.header and (whole or not self.header.startswith(torn)):
            raise UsageError(
                str(path),
                f"not {self.row} log: it starts with {first[:60]!r} and not with {self.header!r}",
                f"Pass the {self.name} of a run, or move this file away.",
            )
        return whole[1:]
