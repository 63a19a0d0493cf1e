"""Fixtures for tests that start many workers."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def quick_starts() -> Iterator[None]:
    """Let `forkserver` start workers in milliseconds: what they import is imported already."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    modules = ["tests.oracles", "tests.frail", "fastdqn.envs.workers.worker"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__"])
