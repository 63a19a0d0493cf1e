"""Pytest plugin: GroupedVectorEnv stands wherever Gymnasium's tests say AsyncVectorEnv.

It is loaded as a module of its own (`pytest -p grouped_in_place`) before any test is imported,
and imports nothing from `tests`: there that name belongs to Gymnasium.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium.vector
import gymnasium.vector.async_vector_env
import pytest

from fastdqn.envs.grouped import GroupedVectorEnv

NUM_WORKERS = "FASTDQN_DROPIN_NUM_WORKERS"
"""Environment variable: workers of each vector, at most one per environment; 0 is Gymnasium's own
class, unset the default of ours."""
OUTCOMES = "FASTDQN_DROPIN_OUTCOMES"
"""Environment variable: the file that gets a line `outcome <tab> node id <tab> why` per test."""

IMPOSSIBLE = {
    "test_custom_worker_with_semaphore": (
        "a foreign worker function serves one environment over one pipe, and knows no shared block"
    ),
}
"""What no class with several environments per process can do, by the name of the test."""
IMPOSSIBLE_IN_ONE_PROCESS = {
    "test_max_concurrency_async_vector_env": (
        "two environments of one process cannot be inside `step` at the same time"
    ),
}
"""What needs two processes or more."""


def stand_in(num_workers: int | None) -> type[GroupedVectorEnv]:
    """Return GroupedVectorEnv, or a subclass with that many workers unless a call says otherwise.

    Args:
        num_workers: Processes, from 1; cut to the number of environments. None is our default.
    """
    if num_workers is None:
        return GroupedVectorEnv

    class Grouped(GroupedVectorEnv):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{"num_workers": num_workers, **kwargs})

    return Grouped


def pytest_configure() -> None:
    """Put the stand-in where Gymnasium's own modules, and then its tests, look for the class."""
    given = os.environ.get(NUM_WORKERS)
    if given == "0":
        return
    grouped = stand_in(int(given) if given else None)
    for module in (gymnasium.vector, gymnasium.vector.async_vector_env):
        module.AsyncVectorEnv = grouped  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the impossible to fail: one that passes after all is a failure."""
    given = os.environ.get(NUM_WORKERS)
    if given == "0":
        return
    reasons = {**IMPOSSIBLE, **(IMPOSSIBLE_IN_ONE_PROCESS if given == "1" else {})}
    for item in items:
        reason = reasons.get(getattr(item, "originalname", item.name))
        if reason:
            item.add_marker(pytest.mark.xfail(strict=True, reason=reason))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append the outcome of a test: that of its call, or of what went wrong around it."""
    if report.when != "call" and report.passed:
        return
    outcome: str = "xfailed" if hasattr(report, "wasxfail") else report.outcome
    crash = getattr(report.longrepr, "reprcrash", None)
    why = " ".join(str(crash.message if crash else report.longrepr or "").split()[:60])
    with Path(os.environ[OUTCOMES]).open("a", encoding="utf-8") as lines:
        lines.write(f"{outcome}\t{report.nodeid}\t{why}\n")
