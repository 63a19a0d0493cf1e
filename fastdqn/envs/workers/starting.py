"""The moment in which a worker process is started: what it must not inherit, and whose it is."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from fastdqn.envs.workers.lifeline import HEARD_BY_PARENT

__all__ = ["parent_pid", "signals_held", "without_main_module"]


@contextmanager
def without_main_module() -> Iterator[None]:
    """Hide the caller's script from multiprocessing, which would run it again in each worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def signals_held() -> Iterator[None]:
    """Start a worker deaf to what is the parent's business, from its first line on.

    A fork server that is started with it stays deaf, so that a signal to all does not end it.
    """
    resource_tracker.ensure_running()  # lifts the block when it starts by itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD_BY_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parent_pid(start_method: str) -> int:
    """Return whose end a worker is to see; to the kernel that of a thread is the parent's."""
    if start_method == "forkserver":
        return -1
    in_a_thread = threading.current_thread() is not threading.main_thread()
    return 0 if in_a_thread else os.getpid()
