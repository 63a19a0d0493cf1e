"""Ctrl-C and SIGTERM: the first asks for a clean end, the second aborts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["EXIT_CODES", "StopRequest", "stop_on_signals"]

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class StopRequest:
    """Which signal asked for the end, if one did.

    Attributes:
        received: The first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """Return 130 or 143 after a signal, 0 without one."""
        return EXIT_CODES[self.received] if self.received else 0


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[StopRequest]:
    """Call `stop` at the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt.

    The caller's handlers are put back at the end. Outside the main thread, where Python lets
    nobody install handlers, nothing is installed.

    Args:
        stop: Called from the handler; must only set a flag.
    """
    request = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if request.received is not None:
            raise KeyboardInterrupt
        request.received = signal.Signals(number)
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in EXIT_CODES}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
