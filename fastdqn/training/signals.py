"""Ctrl-C, SIGTERM and SIGHUP: the first ends the run cleanly, the second aborts it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

__all__ = ["EXIT_CODES", "StopRequest", "stop_on_default_signals", "stop_on_signals"]

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
HANGUP = (signal.SIGHUP,)
"""The terminal went away: counts as a SIGTERM."""


class StopRequest:
    """Handles a signal: raises, or calls a function while there is something to finish.

    Attributes:
        received: The first signal, or None; a SIGHUP is a SIGTERM.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._stop: Callable[[], None] | None = None

    @property
    def exit_code(self) -> int:
        """Return 130 or 143 after a signal, 0 without one."""
        return EXIT_CODES[self.received] if self.received else 0

    def exception(self) -> BaseException:
        """Return what Python raises at the signal where nothing handles it."""
        if self.received == signal.SIGTERM:
            return SystemExit(self.exit_code)
        return KeyboardInterrupt()

    @contextmanager
    def leads_to(self, stop: Callable[[], None]) -> Iterator[None]:
        """Let the first signal within this context call `stop`, which must only set a flag."""
        self._stop = stop
        try:
            yield
        finally:
            self._stop = None

    def take(self, number: int) -> None:
        """Handle a signal. A SIGHUP after another signal says nothing new.

        Raises:
            KeyboardInterrupt: There is nothing to finish, or the signal is not the first.
        """
        stop, first = self._stop, self.received is None
        if number in HANGUP and not first:
            return  # a terminal that is closed sends it twice
        known = signal.SIGTERM if number in HANGUP else number
        self.received = self.received or signal.Signals(known)
        if stop is None or not first:
            raise KeyboardInterrupt
        stop()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Let a StopRequest handle SIGINT, SIGTERM and, unless it is ignored, SIGHUP.

    The caller's handlers are back at the end. Does nothing outside the main thread, where Python
    installs no handlers.
    """
    request = StopRequest()
    handled = [*EXIT_CODES, *HANGUP] if signal.getsignal(*HANGUP) != signal.SIG_IGN else EXIT_CODES
    with _handled(list(handled) if _in_main_thread() else [], request.take):
        yield request


@contextmanager
def stop_on_default_signals() -> Iterator[StopRequest]:
    """Let a StopRequest handle these signals where the caller has no handlers of its own.

    Others stay, and are back at the end; outside the main thread Python installs none.
    """
    request = StopRequest()
    usual = signal.SIG_DFL, signal.default_int_handler
    free = [number for number in (*EXIT_CODES, *HANGUP) if signal.getsignal(number) in usual]
    with _handled(free if _in_main_thread() else [], request.take):
        yield request


@contextmanager
def _handled(numbers: Sequence[signal.Signals], handle: Callable[[int], None]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda got, _: handle(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
