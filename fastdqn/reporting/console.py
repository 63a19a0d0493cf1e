"""The console output of a run: on the terminal and in its log file."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console as RichConsole
from rich.text import Text

from fastdqn.foundation.line_file import LineFile
from fastdqn.foundation.streams import forgiving

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Console"]


class Console:
    """Writes every line to the terminal and, with a time stamp, to the log file.

    Text is shown as it is: brackets are no markup, and long lines are not broken when the
    output is not a terminal. Neither a terminal that goes away nor a full disk is an error:
    the terminal's text is dropped, and lines of the log wait for room.

    Args:
        log_path: ``log.txt`` of a run folder, appended to; None writes no log.
        stream: The terminal's stream; None is standard output.
        silent: Show nothing, keep the log.

    Attributes:
        rich: The terminal, for displays that draw on it.

    Raises:
        OSError: The log file cannot be opened.
    """

    def __init__(
        self, log_path: Path | None, *, stream: TextIO | None = None, silent: bool = False
    ) -> None:
        self.rich = RichConsole(file=forgiving(stream or sys.stdout), quiet=silent)
        self._log = None if log_path is None else LineFile(log_path)
        self._log_fails = False

    @property
    def is_terminal(self) -> bool:
        """Whether the stream is a terminal on which lines can be redrawn."""
        return self.rich.is_terminal and not self.rich.is_dumb_terminal

    def say(self, text: str, *, style: str = "") -> None:
        """Show text on the terminal and write it to the log.

        Args:
            text: One or more lines.
            style: A rich style for the terminal, such as ``bold green``; the log has none.
        """
        self._show(text, style)
        self.log(text)

    def log(self, text: str) -> None:
        """Write text to the log only, each line with the present local time."""
        if self._log is None:
            return
        stamp = datetime.now().isoformat(sep=" ", timespec="seconds")
        try:
            for line in text.splitlines():
                self._log.add(f"{stamp}  {line}")
            self._log.flush()
        except OSError as error:
            self._show_once(error)
        else:
            self._log_fails = False

    def _show_once(self, error: OSError) -> None:
        if not self._log_fails:
            self._log_fails = True
            self._show(f"Could not write log.txt: {error}", "red")

    def _show(self, text: str, style: str) -> None:
        self.rich.print(Text(text, style=style), soft_wrap=True)

    def close(self) -> None:
        """Close the log file; a second call does nothing, the terminal stays usable."""
        log, self._log = self._log, None
        if log is not None:
            try:
                log.close()
            except OSError as error:
                self._show_once(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
