"""Files of lines on disks that are full for a while."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fastdqn.foundation import line_file
from fastdqn.foundation.line_file import LineFile, RecordFile


class Disk:
    """Room for so many bytes more; `os.write` of a full one writes what fits and then fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self._write = room, os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(file, content[: self.room])
        self.room -= written
        return written


def test_a_torn_line_is_cut_off_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lines"
    for before, after in [(None, "new\n"), ("a\nb\nto", "a\nb\nnew\n"), ("a\n", "a\nnew\n")]:
        if before is not None:
            path.write_text(before)
        file = LineFile(path)
        assert file.is_new is (before is None)
        file.add("new")
        file.close()
        file.close()
        assert path.read_text() == after


@pytest.mark.parametrize("room", range(0, 14))
def test_lines_that_a_full_disk_refuses_wait_and_none_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    file = LineFile(tmp_path / "lines")
    disk = Disk(monkeypatch, room)
    file.add("first")
    file.add("second")
    if room < 13:
        with pytest.raises(OSError, match="No space"):
            file.flush()
        assert (tmp_path / "lines").read_text() == ""
    disk.room = 10**6
    file.add("third")
    file.flush()
    assert (tmp_path / "lines").read_text() == "first\nsecond\nthird\n"
    file.close()


def test_what_waits_is_bounded_and_the_newest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file, "WAITING_BYTES", 30)
    file = RecordFile(tmp_path / "records")
    disk = Disk(monkeypatch, 0)
    for i in range(9):
        file.write(b"%09d\n" % i)
        with pytest.raises(OSError, match="No space"):
            file.flush()
    disk.room = 10**6
    file.close()
    assert [int(line) for line in (tmp_path / "records").read_text().split()] == [6, 7, 8]


def test_a_device_is_written_to_as_it_is() -> None:
    file = LineFile(Path("/dev/full"))
    file.add("x")
    with pytest.raises(OSError, match="No space"):
        file.flush()
    with pytest.raises(OSError, match="No space"):
        file.close()
    with pytest.raises(ValueError, match="closed"):
        file.add("y")


def test_names_that_are_no_unicode_are_written_as_escapes(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines")
    file.add("läuf \udcff")
    file.close()
    assert (tmp_path / "lines").read_text(encoding="utf-8") == "läuf \\udcff\n"


def test_a_full_disk_is_tried_again_only_once_another_buffer_has_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, record = RecordFile(tmp_path / "records"), b"r" * (line_file.BUFFER_BYTES // 8)
    disk, failures = Disk(monkeypatch, 0), 0
    for _ in range(81):
        try:
            file.write(record)
        except OSError:
            failures += 1
    assert failures == 9
    with pytest.raises(OSError, match="No space"):
        file.flush()
    disk.room = 10**6
    file.flush()
    assert (tmp_path / "records").read_bytes() == record * 81
    for _ in range(9):
        file.write(record)
    assert (tmp_path / "records").read_bytes() == record * 90
    file.close()
