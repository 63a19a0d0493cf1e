"""Standard output and error that never raise: text that cannot be written is dropped.

The reader of a pipe exits, a terminal closes, a disk is full, a descriptor is closed, an encoding
lacks characters: none of that may end a training that runs for hours.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

__all__ = ["ForgivingStream", "forgiving", "forgiving_streams", "hold_streams"]

STANDARD = (1, 2)


class ForgivingStream:
    """A text stream whose `write` and `flush` never raise; everything else is the stream's own.

    After the first error nothing more is written. Characters that its encoding lacks are written
    as escapes.

    Args:
        stream: The stream.
        holds_descriptor: Whether the descriptor belongs to this process alone: it is redirected
            to the null device after an error, so that neither the interpreter's last flush nor C
            code meets the error again.
    """

    def __init__(self, stream: TextIO, *, holds_descriptor: bool = False) -> None:
        self._stream, self._holds_descriptor = stream, holds_descriptor
        self._silent = False

    def write(self, text: str) -> int:
        """Write text if possible; returns its length in any case."""
        if not self._silent:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._write_escaped(text)
            except BlockingIOError:
                pass  # a slow reader
            except (OSError, ValueError):  # a closed file is a ValueError
                self._drop_all()
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write one text after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream if possible."""
        if not self._silent:
            try:
                self._stream.flush()
            except BlockingIOError:
                pass
            except (OSError, ValueError):
                self._drop_all()

    def _write_escaped(self, text: str) -> None:
        encoding = self._stream.encoding or "ascii"
        self.write(text.encode(encoding, "backslashreplace").decode(encoding))

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
    """Return a stream that never raises when it is written to; None becomes one that drops all.

    Args:
        stream: Standard output, standard error or any text stream; None where it was closed.
        holds_descriptor: See `ForgivingStream`.
    """
    if isinstance(stream, ForgivingStream):
        return cast("TextIO", stream)
    held = ForgivingStream(io.StringIO() if stream is None else stream)
    held._silent = stream is None
    held._holds_descriptor = holds_descriptor and stream is not None
    return cast("TextIO", held)


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
