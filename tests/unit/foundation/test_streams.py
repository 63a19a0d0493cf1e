"""Streams that cannot be written to: silence, and no error."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdqn.foundation.streams import forgiving, forgiving_streams


class Broken(io.StringIO):
    """Takes a few writes or flushes, then raises."""

    def __init__(self, error: Exception, good: int = 0) -> None:
        super().__init__()
        self.error, self.good, self.asked = error, good, 0

    def write(self, text: str) -> int:
        self.asked += 1
        if self.asked > self.good:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        ValueError("I/O operation on closed file"),
    ],
)
def test_after_an_error_a_stream_is_silent_for_good(error: Exception) -> None:
    broken = Broken(error, good=1)
    stream = forgiving(broken)
    assert [stream.write(text) for text in ("one", "two", "three")] == [3, 3, 5]
    stream.flush()
    assert (broken.getvalue(), broken.asked) == ("one", 2)


def test_a_reader_that_is_slow_for_once_gets_the_rest() -> None:
    broken = Broken(BlockingIOError(errno.EAGAIN, "again"))
    stream = forgiving(broken)
    stream.write("lost")
    broken.good = 9
    stream.write("text")
    assert broken.getvalue() == "text"


@pytest.mark.parametrize(
    ("encoding", "text"), [("ascii", r"l\xe4uf \udcff"), ("utf-8", "läuf \\udcff")]
)
def test_what_an_encoding_lacks_is_escaped(encoding: str, text: str) -> None:
    raw = io.BytesIO()
    stream = forgiving(io.TextIOWrapper(raw, encoding=encoding))
    stream.write("läuf \udcff")
    stream.flush()
    assert raw.getvalue().decode("utf-8") == text


def test_a_stream_that_is_missing_swallows_all_and_a_forgiving_one_stays_as_it_is() -> None:
    stream = forgiving(None)
    stream.write("nothing")
    assert not stream.isatty()
    assert forgiving(stream) is stream


def test_the_callers_streams_come_back() -> None:
    before = sys.stdout, sys.stderr
    with forgiving_streams():
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before


HELD = (
    "import os, sys; from fastdqn.foundation.streams import hold_streams; hold_streams(); "
    "print('x' * 100_000); sys.stdout.flush(); print('y'); print('z', file=sys.stderr); "
    "file = open('opened', 'w'); assert file.fileno() > 2; os.write(1, b'of C code')"
)


@pytest.mark.parametrize(
    "plumbing",
    ["| head -c 10", "> /dev/full", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full 2>&1"],
)
def test_a_process_that_holds_its_streams_ends_well_whatever_becomes_of_them(
    tmp_path: Path, plumbing: str
) -> None:
    command = f'"$PYTHON" -c "$CODE" {plumbing}; echo "ended ${{PIPESTATUS[0]}}" >> said'
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHON": sys.executable, "CODE": HELD},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "said").read_text() == "ended 0\n"
    assert done.stderr in {"z\n", ""}
    assert (tmp_path / "opened").read_bytes() == b""
