"""Reports as a person reads them: a line of text, and a panel for the terminal."""

from __future__ import annotations

import math
from itertools import cycle
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastdqn.report import Report

__all__ = ["build_panel", "evaluation_line", "format_duration", "format_figure", "report_line"]

MAX_WIDTH = 80
WIDE = 64
FRAME = 6
SHARE_COLORS = ("cyan", "yellow", "magenta", "green", "blue")


def format_duration(seconds: float) -> str:
    """Write a span of time as a clock would: 0:12, 1:02:03, 2d 03:04:05.

    Args:
        seconds: At least 0; rounded to whole seconds. NaN and infinity are unknown spans.

    Returns:
        The text; ``-`` for an unknown span.
    """
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def format_figure(value: float, places: int = 1) -> str:
    """Write a number with commas and fixed places; a figure not known yet is ``-``.

    Args:
        value: The figure; NaN and the infinities are unknown.
        places: Digits after the point. A value too small for them gets three digits instead.
    """
    if not math.isfinite(value):
        return "-"
    lost = places > 1 and 0.0 < abs(value) < 10.0 ** (1 - places)
    return f"{value:.3g}" if lost else f"{value:,.{places}f}"


def report_line(report: Report) -> str:
    """Write a report as one line of ASCII, its columns steady from line to line."""
    total = f"{report.total_env_steps:,}"
    return (
        f"{report.env_steps:>{max(9, len(total))},} / {total} steps"
        f" | {format_figure(report.sps, 0):>6} steps/s"
        f" | return {format_figure(report.return_mean_100):>6}"
        f" | epsilon {format_figure(report.epsilon, 2)}"
        f" | loss {format_figure(report.loss, 2)}"
        f" | {format_duration(report.time_left_s)} left"
    )


def evaluation_line(env_steps: int, mean: float, std: float, episodes: int, reached: bool) -> str:
    """Write the outcome of an evaluation as one line of ASCII.

    Args:
        env_steps: Env steps of the run so far.
        mean: Mean return of the evaluation's episodes.
        std: Standard deviation of these returns.
        episodes: How many there were.
        reached: Whether the mean reached the target return.
    """
    figures = f"return {format_figure(mean)} (std {format_figure(std)}) over {episodes} episodes"
    return f"evaluation at {env_steps:,} steps: {figures}" + ", target reached" * reached


def build_panel(report: Report, footnote: str, *, width: int) -> Panel:
    """Lay a report out as a panel: progress bar, figures, and where the time went.

    Args:
        report: The figures.
        footnote: Text in the lower edge; empty for none.
        width: Columns of the terminal; the panel takes all of them up to 80.

    Returns:
        A new renderable.
    """
    width = min(MAX_WIDTH, width)
    parts: list[RenderableType] = [_bar(report), "", _figures(report, width)]
    if report.time_share:
        parts += ["", _ShareBar(report.time_share), _share_words(report.time_share)]
    return Panel(
        Group(*parts),
        title=Text("fastdqn", style="bold"),
        title_align="left",
        subtitle=Text(footnote, style="dim") if footnote else None,
        subtitle_align="right",
        box=box.ROUNDED,
        border_style="bright_black",
        padding=(1, 2),
        width=width,
    )


def _bar(report: Report) -> Table:
    total = max(1, report.total_env_steps)
    bar = ProgressBar(
        total=total,
        completed=report.env_steps,
        complete_style="cyan",
        finished_style="green",
    )
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(ratio=1)
    row.add_column(justify="right", no_wrap=True)
    row.add_column(justify="right", no_wrap=True, style="bold")
    steps = f"{report.env_steps:,} / {report.total_env_steps:,} steps"
    row.add_row(bar, steps, f"{report.env_steps / total:.0%}")
    return row


def _figures(report: Report, width: int) -> Text:
    """Lay the figures out as three columns, or as one on a narrow terminal."""
    cells = (
        ("return", format_figure(report.return_mean_100)),
        ("steps/s", format_figure(report.sps, 0)),
        ("left", format_duration(report.time_left_s)),
        ("epsilon", format_figure(report.epsilon, 2)),
        ("updates", f"{report.updates:,}"),
        ("elapsed", format_duration(report.wall_s)),
        ("loss", format_figure(report.loss, 2)),
        ("episodes", f"{report.episodes:,}"),
        ("Q mean", format_figure(report.q_mean, 2)),
    )
    return _rows(cells, columns=3 if width >= WIDE else 1, width=width - FRAME)


def _rows(cells: Sequence[tuple[str, str]], *, columns: int, width: int) -> Text:
    """Lay names and values out row by row, each value at the right edge of its column."""
    gap = 4
    column = (width - gap * (columns - 1)) // columns
    rows = Text(no_wrap=True)
    for index, (name, value) in enumerate(cells):
        if index:
            rows.append(" " * gap if index % columns else "\n")
        rows.append(f"{name} ", style="bright_black")
        rows.append(value.rjust(column - len(name) - 1), style="bold")
    return rows


def _share_colors(time_share: dict[str, float]) -> Iterator[tuple[str, float, str]]:
    for (name, share), color in zip(time_share.items(), cycle(SHARE_COLORS), strict=False):
        yield name, share, color


class _ShareBar:
    """One line over the full width, cut into coloured parts in proportion to the shares."""

    def __init__(self, time_share: dict[str, float]) -> None:
        self._time_share = time_share

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyph = "-" if options.ascii_only else "━"
        width = options.max_width
        begin, so_far = 0, 0.0
        for _, share, color in _share_colors(self._time_share):
            so_far += share
            end = min(width, round(so_far * width))
            yield Segment(glyph * (end - begin), Style(color=color))
            begin = end
        yield Segment.line()


def _share_words(time_share: dict[str, float]) -> Text:
    """Name each activity in its colour of the bar, with its percentage."""
    words = Text()
    for name, share, color in _share_colors(time_share):
        words.append(f"{name} ", style=color).append(f"{share:.0%}   ", style="bright_black")
    return words
