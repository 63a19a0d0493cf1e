"""Fixtures for every test: nothing that was started may stay."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gymnasium.vector import AsyncVectorEnv

from fastdqn.envs.grouped import GroupedVectorEnv
from fastdqn.envs.workers.process import signals_blocked
from tests.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side, one on each core
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is loaded

IMPORTED_BY_WORKERS = [
    "tests.oracles",
    "tests.frail",
    "fastdqn.envs.workers.worker",
    "pytest",
    "torch",
]
REQUIRE_CUDA = "FASTDQN_REQUIRE_CUDA"
"""Set where a card is promised: a skip is a failure then."""


def pytest_configure() -> None:
    """Let Ctrl-C interrupt, also where a shell started the tests with `&` and ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection() -> None:
    """Look for no garbage while thousands of tests are collected: there is none."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage from here on, but not among what was collected."""
    gc.freeze()
    gc.enable()


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
def no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs of this process draw nothing, which takes longer than their trainings do.

    Tests with the mark `plots` are left alone.
    """
    if request.node.get_closest_marker("plots") is None:
        monkeypatch.setattr("fastdqn.reporting.plots.plot_run", lambda _: [])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers on more threads than free cores take seconds instead of milliseconds."""
    import torch  # noqa: PLC0415

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def quick_starts() -> Iterator[None]:
    """Let `forkserver` start workers in milliseconds: what they import is imported already."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED_BY_WORKERS)
    with signals_blocked():
        forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
def forked_workers(quick_starts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers by `forkserver`, not by `spawn`, where a test does not say how."""
    build = GroupedVectorEnv.__init__
    shared_memory, copy, _, *rest = build.__defaults__ or ()
    defaults = shared_memory, copy, "forkserver", *rest
    monkeypatch.setattr(build, "__defaults__", defaults)

    def forked(*given: Any, **settings: Any) -> AsyncVectorEnv:
        return AsyncVectorEnv(*given, **{**settings, "context": "forkserver"})

    monkeypatch.setattr("fastdqn.envs.sources.source.AsyncVectorEnv", forked)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail if the test leaves a child process or a shared memory file of this process."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before
    assert not list(Path("/dev/shm").glob(f"pym-{os.getpid()}-*"))
