"""Fixtures for every test: nothing that was started may stay."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail if the test leaves a child process or a shared memory file of this process."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before
    assert not list(Path("/dev/shm").glob(f"pym-{os.getpid()}-*"))
