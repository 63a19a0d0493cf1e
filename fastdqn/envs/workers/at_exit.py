"""Environments that the caller never closes are closed when the interpreter ends."""

from __future__ import annotations

import contextlib
import weakref
from multiprocessing.util import Finalize
from typing import Any, Protocol

__all__ = ["Closable", "closed_at_exit"]

BEFORE_CHILDREN_ARE_ENDED = 10
"""multiprocessing waits for its children between finalizers of priority 0 and the others; workers
do not leave before they are asked to."""


class Closable(Protocol):
    """A pool of environments."""

    def close(self, timeout: float | None) -> None:
        """Close the environments."""


def closed_at_exit(pool: Closable) -> Any:
    """Close a pool when the interpreter ends, unless it was closed before.

    Returns:
        A finalizer; a pool that is closed calls its `cancel`.
    """
    return Finalize(None, _close, args=(weakref.ref(pool),), exitpriority=BEFORE_CHILDREN_ARE_ENDED)


def _close(pool_ref: weakref.ref[Closable]) -> None:
    pool = pool_ref()
    if pool is not None:
        with contextlib.suppress(Exception):  # a thread of the caller may still be using it
            pool.close(None)
