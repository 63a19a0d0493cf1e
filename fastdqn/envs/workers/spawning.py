"""Starting a worker process: what it must not inherit, and who its parent is."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from fastdqn.envs.workers.parent_watch import GROUP_SIGNALS

__all__ = ["parent_pid", "signals_blocked", "without_main_module"]


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
def signals_blocked() -> Iterator[None]:
    """Block the signals that only the parent handles while a worker is started.

    The worker unblocks them. A fork server that is started with it keeps them blocked, so that a
    signal to the process group does not end it.
    """
    resource_tracker.ensure_running()  # unblocks when it starts by itself
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parent_pid(start_method: str) -> int:
    """Return the process whose end a worker watches; see `Parent`."""
    if start_method == "forkserver":
        return -1
    in_a_thread = threading.current_thread() is not threading.main_thread()
    return 0 if in_a_thread else os.getpid()
