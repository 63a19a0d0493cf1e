"""Fixtures for every test: nothing that was started may stay."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIRE_CUDA = "FASTDQN_REQUIRE_CUDA"
"""Set where a card is promised: a skip is a failure then."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a card where there is none; fail where one was promised."""
    if item.get_closest_marker("cuda") is None:
        return
    import torch  # noqa: PLC0415 - most tests that come here have loaded it, and some must not

    if not torch.cuda.is_available():
        message = f"PyTorch {torch.__version__} shows no CUDA device"
        if os.environ.get(REQUIRE_CUDA):
            pytest.fail(f"{message}, and {REQUIRE_CUDA} is set", pytrace=False)
        pytest.skip(message)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let only the test move the time."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers on more threads than free cores take seconds instead of milliseconds."""
    import torch  # noqa: PLC0415

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail if the test leaves a child process or a shared memory file of this process."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before
    assert not list(Path("/dev/shm").glob(f"pym-{os.getpid()}-*"))
