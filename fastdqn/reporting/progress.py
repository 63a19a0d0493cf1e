"""The progress displays of a run: a panel on a terminal, lines elsewhere, or none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.live import Live

from fastdqn.reporting.panel import (
    build_panel,
    evaluating_line,
    evaluation_line,
    mean_words,
    report_line,
)
from fastdqn.training.stopwatch import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastdqn.reporting.console import Console
    from fastdqn.training.evaluation import Evaluation
    from fastdqn.training.events import Report

__all__ = ["LiveProgress", "PlainProgress", "Progress", "make_progress"]

REFRESH_S = 0.25
LINE_S = 5.0


class Progress:
    """Reports a running training: this class in log.txt alone, its subclasses on the terminal.

    Args:
        console: Shows the lines, or logs them.
        may_stop_early: Whether the run may end before its last env step.
        clock: Returns monotonic seconds.
    """

    line_s = 0.0
    """Smallest number of wall seconds between two lines about reports."""

    def __init__(
        self,
        console: Console,
        *,
        may_stop_early: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._may_stop_early = console, may_stop_early
        self._line_pace = Pace(self.line_s, clock)
        self._unsaid: Report | None = None

    def start(self) -> None:
        """Begin to show."""

    def report(self, report: Report) -> None:
        """Take the newest figures; write a line, if the last one is old enough."""
        self._unsaid = report
        if self._line_pace.due():
            self._write_unsaid()

    def evaluated(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Show the outcome of an evaluation at once; see `evaluation_line`."""
        self._write(evaluation_line(env_steps, evaluation, reached))

    def evaluating(self, done: int, episodes: int, steps: int) -> None:
        """Show the progress of a long evaluation at once; see `evaluating_line`."""
        self._write(evaluating_line(done, episodes, steps))

    def stop(self) -> None:
        """Write the newest figures if they were not written; a second call does nothing."""
        self._write_unsaid()

    def _write(self, line: str) -> None:
        self._console.log(line)

    def _write_unsaid(self) -> None:
        if self._unsaid is not None:
            self._write(report_line(self._unsaid, may_stop_early=self._may_stop_early))
            self._unsaid = None


class PlainProgress(Progress):
    """One line per report, but no more than one every few seconds, and one at the end."""

    line_s = LINE_S

    def _write(self, line: str) -> None:
        self._console.say(line)


class LiveProgress(Progress):
    """A panel that is redrawn in place, at most four times a second.

    It draws only inside report() and has no thread, so that training is not slowed between
    reports. The log file gets a plain line at most every five seconds.

    Args:
        console: A terminal; on anything else only the last panel would show.
        clock: See `Progress`, as for `options`.
    """

    line_s = LINE_S

    def __init__(
        self, console: Console, *, clock: Callable[[], float] = time.monotonic, **options: Any
    ) -> None:
        super().__init__(console, clock=clock, **options)
        self._latest: Report | None = None
        self._footnote = ""
        self._pace = Pace(REFRESH_S, clock)
        self._live = Live(console=console.rich, auto_refresh=False, get_renderable=self._renderable)

    def start(self) -> None:
        """Take over the lower end of the terminal; the first report shows first."""
        self._live.start()

    def report(self, report: Report) -> None:
        """Draw the panel, if the last drawing is old enough."""
        self._latest = report
        super().report(report)
        if self._pace.due():
            self._live.refresh()

    def evaluated(self, env_steps: int, evaluation: Evaluation, reached: bool) -> None:
        """Print a line above the panel at once, and show the mean in the panel's frame."""
        mean, _ = mean_words(evaluation)
        self._footnote = f"evaluation {mean} at {env_steps:,} steps"
        self._console.say(evaluation_line(env_steps, evaluation, reached))

    def evaluating(self, done: int, episodes: int, steps: int) -> None:
        """Show it in the panel's frame, and log a line."""
        self._footnote = evaluating_line(done, episodes, steps).removesuffix(" played")
        self._live.refresh()
        super().evaluating(done, episodes, steps)

    def stop(self) -> None:
        """Draw the newest figures, leave the panel there and release the terminal."""
        self._live.stop()
        super().stop()

    def _renderable(self) -> RenderableType:
        if self._latest is None:
            return ""
        return build_panel(
            self._latest,
            self._footnote,
            width=self._console.rich.width,
            may_stop_early=self._may_stop_early,
        )


def make_progress(
    console: Console, *, quiet: bool = False, may_stop_early: bool = False
) -> Progress:
    """Choose the display that fits: a panel on a terminal, lines elsewhere, or the log alone.

    Args:
        console: Shows the display; it stays open after it.
        quiet: Show nothing.
        may_stop_early: Whether the run may end before its last env step.
    """
    display = LiveProgress if console.is_terminal else PlainProgress
    return (Progress if quiet else display)(console, may_stop_early=may_stop_early)
