"""The lock of a run directory: held by one living process, and by none that has ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastdqn.errors import UsageError
from fastdqn.reporting import run_lock
from fastdqn.reporting.run_lock import LOCK, locked

HOLDER = """
import sys, time
from pathlib import Path
from fastdqn.reporting.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def mark(folder: Path, **values: Any) -> None:
    own = {"pid": os.getpid(), "host": socket.gethostname(), "started": None}
    (folder / LOCK).write_text(json.dumps({**own, **values}))


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_lock_names_its_process_and_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* writes there"):
            locked(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"process {other.pid} on"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_lock_that_was_removed_meanwhile_is_not_taken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, seen = fcntl.flock, list[int]()

    def slow(descriptor: int, how: int) -> None:
        if not seen:
            (tmp_path / LOCK).unlink()  # by the process before, between our open and our lock
        seen.append(descriptor)
        right(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with locked(tmp_path):
        assert len(seen) == 2
        assert (tmp_path / LOCK).exists()
        with pytest.raises(UsageError):
            locked(tmp_path).__enter__()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / LOCK).symlink_to("precious")
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_process_in_the_file_decides(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()}"):
        locked(tmp_path).__enter__()
    assert not (tmp_path / LOCK).exists()
    mark(tmp_path, pid=2**22 + 7)
    with locked(tmp_path):
        pass


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 5000, '{"pid": -1, "host": "x"}', '{"pid": true}']
)
def test_a_file_that_names_no_process_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with locked(tmp_path):
        pass


@pytest.mark.usefixtures("without_locks")
def test_a_process_id_that_another_process_has_now_is_taken_over(tmp_path: Path) -> None:
    assert run_lock._started(os.getpid()) is not None
    mark(tmp_path, started=1)
    with locked(tmp_path):
        pass


@pytest.mark.usefixtures("without_locks")
def test_a_process_of_another_machine_may_live(tmp_path: Path) -> None:
    mark(tmp_path, host="elsewhere", pid=2**22 + 7)
    with pytest.raises(UsageError, match=r"on elsewhere writes there\. .*delete .*\.lock"):
        locked(tmp_path).__enter__()
