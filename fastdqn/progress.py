"""What a run says while it trains: the console with its log file, and the progress displays."""

from __future__ import annotations

import contextlib
import math
import time
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from fastdqn.panel import build_panel, evaluation_line, format_duration, format_figure, report_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from fastdqn.report import Report

__all__ = [
    "Console",
    "LiveProgress",
    "NullProgress",
    "PlainProgress",
    "Progress",
    "format_duration",
    "make_progress",
]

REFRESH_S = 0.25
LINE_S = 5.0


class Console:
    """Says every line twice: on the terminal, and with a time stamp in the log file.

    Text is shown as it is: brackets are no markup, and long lines are not broken when the
    output is not a terminal.

    Args:
        log_path: ``log.txt`` of a run folder, appended to; None keeps no log.
        stream: Where the terminal's text goes; None is standard output.

    Attributes:
        rich: The terminal, for displays that draw on it.

    Raises:
        OSError: The log file cannot be opened. One that fills the disk later is given up, and
            that is told once.
    """

    def __init__(self, log_path: Path | None, *, stream: TextIO | None = None) -> None:
        self.rich = RichConsole(file=stream)
        self._log: TextIO | None = None
        if log_path is not None:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = log_path.open("a", buffering=1, encoding="utf-8", newline="\n")

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches a terminal on which lines can be drawn anew."""
        return self.rich.is_terminal and not self.rich.is_dumb_terminal

    def say(self, text: str, *, style: str = "") -> None:
        """Show text on the terminal and keep it in the log.

        Args:
            text: One or more lines.
            style: A rich style for the terminal, such as ``bold green``; the log has none.
        """
        self.rich.print(Text(text, style=style), soft_wrap=True)
        self.log(text)

    def log(self, text: str) -> None:
        """Keep text in the log only, each line under the present local time."""
        if self._log is None:
            return
        stamp = datetime.now().isoformat(sep=" ", timespec="seconds")
        try:
            self._log.writelines(f"{stamp}  {line}\n" for line in text.splitlines())
        except OSError as error:
            self.close()
            self.say(f"log.txt ends here: {error}", style="red")

    def close(self) -> None:
        """Close the log file; a second call does nothing, the terminal stays usable."""
        log, self._log = self._log, None
        if log is not None:
            with contextlib.suppress(OSError):
                log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Progress(Protocol):
    """A display of the running training."""

    def start(self) -> None:
        """Begin to show."""

    def report(self, report: Report) -> None:
        """Take the newest figures; whether they show at once is the display's choice."""

    def evaluated(
        self, env_steps: int, mean: float, std: float, episodes: int, reached: bool
    ) -> None:
        """Show the outcome of an evaluation.

        Args:
            env_steps: Env steps of the run so far.
            mean: Mean return of the evaluation's episodes.
            std: Standard deviation of these returns.
            episodes: How many there were.
            reached: Whether the mean reached the target return.
        """

    def stop(self) -> None:
        """Show the newest figures, if they have not been, and end; twice is harmless."""


class NullProgress:
    """Shows nothing."""

    def start(self) -> None:
        """Do nothing."""

    def report(self, report: Report) -> None:
        """Forget the report."""

    def evaluated(
        self, env_steps: int, mean: float, std: float, episodes: int, reached: bool
    ) -> None:
        """Forget the evaluation."""

    def stop(self) -> None:
        """Do nothing."""


class PlainProgress:
    """One line per report, but no more than one every few seconds, and one at the end.

    Args:
        console: Where the lines go.
        every_s: Least wall seconds between two lines.
        clock: Seconds that only grow; tests bring their own.
    """

    def __init__(
        self,
        console: Console,
        every_s: float = LINE_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._lines = _SparseLines(console.say, _Pace(every_s, clock))

    def start(self) -> None:
        """Do nothing: the first line comes with the first report."""

    def report(self, report: Report) -> None:
        """Say a line, if the last one is old enough."""
        self._lines.report(report)

    def evaluated(
        self, env_steps: int, mean: float, std: float, episodes: int, reached: bool
    ) -> None:
        """Say a line at once; see Progress.evaluated."""
        self._console.say(evaluation_line(env_steps, mean, std, episodes, reached))

    def stop(self) -> None:
        """Say the newest report, if it has not been said."""
        self._lines.finish()


class LiveProgress:
    """A panel that is drawn anew in place, at most four times a second.

    It draws only inside report() and has no thread, so training pays for nothing between
    reports. The log file gets a plain line at most every five seconds.

    Args:
        console: A terminal; on anything else only the last panel would show.
        clock: Seconds that only grow; tests bring their own.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._latest: Report | None = None
        self._evaluation = ""
        self._lines = _SparseLines(console.log, _Pace(LINE_S, clock))
        self._pace = _Pace(REFRESH_S, clock)
        self._live = Live(console=console.rich, auto_refresh=False, get_renderable=self._renderable)

    def start(self) -> None:
        """Take over the lower end of the terminal; nothing shows before the first report."""
        self._live.start()

    def report(self, report: Report) -> None:
        """Draw the panel, if the last drawing is old enough."""
        self._latest = report
        self._lines.report(report)
        if self._pace.due():
            self._live.refresh()

    def evaluated(
        self, env_steps: int, mean: float, std: float, episodes: int, reached: bool
    ) -> None:
        """Say a line above the panel at once, and keep the mean in the panel's frame."""
        self._evaluation = f"evaluation {format_figure(mean)} at {env_steps:,} steps"
        self._console.say(evaluation_line(env_steps, mean, std, episodes, reached))

    def stop(self) -> None:
        """Draw the newest figures, leave the panel standing and give the terminal back."""
        self._live.stop()
        self._lines.finish()

    def _renderable(self) -> RenderableType:
        if self._latest is None:
            return ""
        return build_panel(self._latest, self._evaluation, width=self._console.rich.width)


def make_progress(console: Console, *, quiet: bool = False) -> Progress:
    """Choose the display that fits: a panel on a terminal, lines elsewhere, or none.

    Args:
        console: Where to show; it outlives the display.
        quiet: Show nothing and log nothing.
    """
    if quiet:
        return NullProgress()
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


class _Pace:
    """Says yes at most once per period, and the first time at once."""

    def __init__(self, period_s: float, clock: Callable[[], float]) -> None:
        self._period_s = period_s
        self._clock = clock
        self._next_s = -math.inf

    def due(self) -> bool:
        now_s = self._clock()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._period_s
        return True


class _SparseLines:
    """Writes reports as plain lines at a pace, and never loses the last one."""

    def __init__(self, write: Callable[[str], None], pace: _Pace) -> None:
        self._write = write
        self._pace = pace
        self._unsaid: Report | None = None

    def report(self, report: Report) -> None:
        self._unsaid = report
        if self._pace.due():
            self.finish()

    def finish(self) -> None:
        if self._unsaid is not None:
            self._write(report_line(self._unsaid))
            self._unsaid = None
