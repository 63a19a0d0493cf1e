"""What must be granted before workers start: open files and shared memory."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers import system_limits
from fastdqn.envs.workers.supervision import Supervision
from fastdqn.envs.workers.system_limits import (
    FILES_PER_WORKER,
    refuse_unless_openable,
    refuse_unless_shareable,
)
from fastdqn.errors import UsageError
from tests.oracles import counters

LOWERED = """
import resource, sys
from fastdqn.envs.workers.system_limits import refuse_unless_openable
soft, hard, workers = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    refuse_unless_openable(workers)
except ValueError as error:
    print(error)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def lowered(soft: int, hard: int, workers: int) -> list[str]:
    """Ask for workers in a process that may open `soft`, and if it says so `hard`, files."""
    done = subprocess.run(
        [sys.executable, "-c", LOWERED, str(soft), str(hard), str(workers)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_the_limit_of_open_files_stays_where_it_suffices() -> None:
    assert lowered(100, 100, 2) == ["100 100"]


def test_the_limit_of_open_files_is_raised_as_far_as_needed() -> None:
    (limits_after,) = lowered(64, 1000, 50)
    soft, hard = map(int, limits_after.split())
    assert 50 * FILES_PER_WORKER < soft <= 1000
    assert hard == 1000


def test_more_workers_than_files_are_refused_with_numbers_that_are_true() -> None:
    said, limits_after = lowered(64, 200, 50)
    assert limits_after == "64 200"
    message = re.match(
        r"--num-workers 50: they need (\d+) open files and this process may have 200\. "
        r"At most (\d+) workers fit; let each host more environments, "
        r"or ask the administrator for more \(ulimit -Hn\)\.$",
        said,
    )
    assert message is not None
    needed, fits = map(int, message.groups())
    assert needed > 400
    assert lowered(64, 200, fits)[0].endswith(" 200")
    assert lowered(64, 200, fits + 1)[0].startswith(f"--num-workers {fits + 1}")


def test_a_system_that_does_not_keep_its_word_is_a_refusal_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Mac says that nothing is forbidden, and then forbids it."""

    def setrlimit(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, unlimited))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    with pytest.raises(UsageError, match=r"--num-workers 500: they need .* may have 64"):
        refuse_unless_openable(500)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("supervision", [None, Supervision()])
def test_a_worker_takes_no_more_files_than_are_reckoned(supervision: Supervision | None) -> None:
    GroupedVectorEnv(counters(1), num_workers=1, supervision=supervision).close()
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    envs = GroupedVectorEnv(counters(4), num_workers=4, supervision=supervision)
    taken = len(os.listdir("/dev/fd")) - before  # noqa: PTH208
    envs.close()
    assert 0 < taken <= 4 * FILES_PER_WORKER


def test_a_block_that_fits_into_shared_memory_is_let_through() -> None:
    refuse_unless_shareable(4096, 8)


def test_a_block_that_does_not_fit_is_refused_with_both_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = SimpleNamespace(f_bavail=64 * 256, f_frsize=4096)  # 64 MiB, as docker run gives
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    refuse_unless_shareable(64 * 2**20, 8)
    said = (
        r"--num-envs 512: their rows take 64\.0 MiB of shared memory and /dev/shm has 64\.0 MiB "
        r"left\. Use fewer environments, or make /dev/shm larger \(docker run --shm-size\)\."
    )
    with pytest.raises(UsageError, match=said):
        refuse_unless_shareable(64 * 2**20 + 1, 512)


def test_a_system_without_such_a_folder_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        system_limits, "SHARED_MEMORY", system_limits.SHARED_MEMORY / "no" / "such" / "folder"
    )
    refuse_unless_shareable(2**60, 8)


def test_a_vector_that_does_not_fit_is_refused_before_a_process_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=4096))
    with pytest.raises(UsageError, match="--num-envs 2"):
        GroupedVectorEnv(counters(2), num_workers=1)
