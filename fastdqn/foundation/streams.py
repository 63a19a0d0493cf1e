"""Standard output and error that never raise: text that cannot be written is dropped.

The reader of a pipe exits, a terminal closes, a disk is full, a descriptor is closed, an encoding
lacks characters: none of that may end a training that runs for hours.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

__all__ = ["forgiving", "forgiving_streams", "hold_streams"]

STANDARD = (1, 2)


class ForgivingStream:
    """A text stream whose `write` and `flush` never raise; everything else is the stream's own.

    After the first error nothing more is written. Characters that its encoding lacks are written
    as escapes.

    Args:
        stream: The stream; None, where it was closed, drops all.
        holds_descriptor: Whether the descriptor belongs to this process alone: it is redirected
            to the null device after an error, so that neither the interpreter's last flush nor C
            code meets the error again.
    """

    def __init__(self, stream: TextIO | None, *, holds_descriptor: bool = False) -> None:
        self._stream = io.StringIO() if stream is None else stream
        self._silent, self._holds_descriptor = stream is None, holds_descriptor

    def write(self, text: str) -> int:
        """Write text if possible; returns its length in any case."""
        try:
            self._attempt(self._stream.write, text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write one text after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream if possible."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., object], *text: str) -> None:
        if self._silent:
            return
        try:
            action(*text)
        except BlockingIOError:
            pass  # a slow reader
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError):  # a closed file is a ValueError
            self._drop_all()

    def _drop_all(self) -> None:
        self._silent = True
        if not self._holds_descriptor:
            return
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgiving(stream: TextIO | None, *, holds_descriptor: bool = False) -> TextIO:
    """Return a `ForgivingStream`; one that is forgiving already stays as it is."""
    if not isinstance(stream, ForgivingStream):
        stream = cast("TextIO", ForgivingStream(stream, holds_descriptor=holds_descriptor))
    return stream


@contextlib.contextmanager
def forgiving_streams() -> Iterator[None]:
    """Make standard output and error forgiving within this context."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = forgiving(sys.stdout), forgiving(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def hold_streams() -> None:
    """Make standard output and error of this process, which is ours, forgiving until its end.

    Standard descriptors that are closed are opened on the null device first: otherwise the next
    file that is opened would get their numbers, and the printed text.
    """
    for descriptor in (0, *STANDARD):
        try:
            os.fstat(descriptor)
        except OSError:
            lowest_free = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(lowest_free, True)
    sys.stdout = forgiving(sys.stdout, holds_descriptor=True)
    sys.stderr = forgiving(sys.stderr, holds_descriptor=True)
