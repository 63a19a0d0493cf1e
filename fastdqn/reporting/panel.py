"""Reports for people: a line of text, and a panel for the terminal."""

from __future__ import annotations

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

from fastdqn.foundation.formatting import (
    format_duration,
    format_figure,
    format_return,
    format_spread,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastdqn.training.evaluation import Evaluation
    from fastdqn.training.events import BestPolicy, Report

__all__ = [
    "build_panel",
    "cut_words",
    "evaluating_line",
    "evaluation_line",
    "mean_words",
    "report_line",
]

MAX_WIDTH = 80
FRAME, GAP = 6, 4
SHARE_COLORS = ("cyan", "yellow", "magenta", "green", "blue")
ACTIVITY_WORDS = {
    "act": "acting",
    "env_wait": "waiting for environments",
    "write": "writing",
    "learn": "learning",
}
"""Labels for the stopwatch's activities; those that are missing label themselves."""


def report_line(report: Report, *, may_stop_early: bool = False) -> str:
    """Write a report as one line of ASCII, its columns steady from line to line.

    Args:
        report: The figures.
        may_stop_early: Whether the run may end before its last env step.
    """
    total = f"{report.total_env_steps:,}"
    return (
        f"{report.env_steps:>{max(9, len(total))},} / {total} steps"
        f" | {format_figure(report.sps, 0):>6} steps/s"
        f" | return {format_return(report.return_mean_100):>6}"
        f" | epsilon {format_figure(report.epsilon, 2)}"
        f" | loss {format_figure(report.loss, 2)}"
        f" | {'at most ' * may_stop_early}{format_duration(report.time_left_s)} left"
    )


def mean_words(evaluation: Evaluation | BestPolicy) -> tuple[str, str]:
    """Return the mean return of an evaluation and the deviation of its returns as two texts."""
    mean, std = evaluation.mean, evaluation.std
    return format_return(mean, beside=std), format_spread(std, mean)


def cut_words(evaluation: Evaluation) -> str:
    """Return how many episodes were cut, as the end of a sentence; empty if none was.

    Steps with numbers that were not finite follow.
    """
    words = ""
    if num_cut := evaluation.num_cut:
        were = "was" if num_cut == 1 else "were"
        of_all = f"{num_cut} of {evaluation.episodes} episodes"
        words = f"; {of_all} {were} cut at {evaluation.max_steps:,} steps"
    if number := evaluation.num_nonfinite:
        steps = "step" if number == 1 else "steps"
        words += f"; numbers of {number:,} {steps} were not finite, and were skipped or replaced"
    return words


def evaluation_line(env_steps: int, evaluation: Evaluation, reached: bool) -> str:
    """Write the outcome of an evaluation as one line of ASCII.

    Args:
        env_steps: Env steps of the run so far.
        evaluation: Its returns.
        reached: Whether their mean reached the target return.
    """
    mean, std = mean_words(evaluation)
    return (
        f"evaluation at {env_steps:,} steps: return {mean} (std {std}) "
        f"over {evaluation.episodes} episodes{', target reached' * reached}"
        f"{', the best so far' * evaluation.best}"
        f"{cut_words(evaluation)}"
    )


def evaluating_line(done: int, episodes: int, steps: int) -> str:
    """Write the progress of an evaluation as one line of ASCII.

    Args:
        done: Finished episodes.
        episodes: Episodes of the evaluation.
        steps: Env steps so far.
    """
    return f"evaluating: {done} of {episodes} episodes done, {steps:,} steps played"


def build_panel(
    report: Report, footnote: str, *, width: int, may_stop_early: bool = False
) -> Panel:
    """Lay a report out as a panel: progress bar, figures, and shares of time.

    Args:
        report: The figures.
        footnote: Text in the lower edge; empty for none.
        width: Columns of the terminal; the panel takes all of them up to 80.
        may_stop_early: Whether the run may end before its last env step.

    Returns:
        A new renderable.
    """
    width = min(MAX_WIDTH, width)
    inner = width - FRAME
    parts: list[RenderableType] = [_bar(report), "", _figures(report, inner, may_stop_early)]
    if report.time_share:
        parts += ["", _ShareBar(report.time_share), _share_words(report.time_share, inner)]
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


def _figures(report: Report, width: int, may_stop_early: bool) -> Text:
    """Lay the figures out as three columns, or as one where they do not fit side by side."""
    cells = (
        ("return", format_return(report.return_mean_100)),
        ("steps/s", format_figure(report.sps, 0)),
        ("left", "up to " * may_stop_early + format_duration(report.time_left_s)),
        ("epsilon", format_figure(report.epsilon, 2)),
        ("updates", f"{report.updates:,}"),
        ("elapsed", format_duration(report.wall_s)),
        ("loss", format_figure(report.loss, 2)),
        ("episodes", f"{report.episodes:,}"),
        ("Q mean", format_return(report.q_mean)),
    )
    widest = max(len(name) + 1 + len(value) for name, value in cells)
    columns = 3 if 3 * widest + 2 * GAP <= width else 1
    return _rows(cells, columns=columns, width=width)


def _rows(cells: Sequence[tuple[str, str]], *, columns: int, width: int) -> Text:
    """Lay names and values out row by row, each value at the right edge of its column."""
    column = (width - GAP * (columns - 1)) // columns
    rows = Text(no_wrap=True)
    for index, (name, value) in enumerate(cells):
        if index:
            rows.append(" " * GAP if index % columns else "\n")
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


def _share_words(time_share: dict[str, float], width: int) -> Text:
    """Name each activity in its colour of the bar, with its percentage; lines end between them."""
    words, used = Text(), 0
    for name, share, color in _share_colors(time_share):
        name_words, percent = ACTIVITY_WORDS.get(name, name), f" {share:.0%}"
        length = len(name_words) + len(percent)
        if used:
            fits = used + 3 + length <= width
            words.append("   " if fits else "\n")
            used = used + 3 if fits else 0
        words.append(name_words, style=color).append(percent, style="bright_black")
        used += length
    return words
