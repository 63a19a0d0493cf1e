"""Figures of a run, in memory: returns over env steps, and the return over wall time.

They are drawn by the Agg canvas without pyplot, so that nothing global changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from fastdqn.panel import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.ticker import Formatter

    from fastdqn.episodes import EpisodeTable

__all__ = ["build_returns_figure", "build_wall_time_figure", "drawable", "wall_seconds"]

FloatArray = npt.NDArray[np.float64]

SIZE_IN = (10.0, 5.0)
WINDOW = 100
MEAN_FROM, TREND_FROM = 20, 10
BINS = 40
LARGEST = 1e15
TICK_STEPS = (1, 2, 2.5, 5, 10)
DOT, MEAN, TREND, SOLVED = "#8fb3d9", "#1f5fa8", "#d9822b", "#2e8b57"
INK, FAINT, BAND, GRID = "#333333", "#8c8c8c", "#edf1f5", "#e6e6e6"


def build_returns_figure(
    table: EpisodeTable, *, title: str, solved_at: float | None, wall_s: float | None = None
) -> Figure:
    """Draw the return of every episode over env steps, and the histogram of the returns.

    The left panel holds the episodes as dots, the mean of the last 100 from the 20th on, and,
    from 10 episodes on, the straight line over env steps that fits them best; the legend gives
    its rise per 100 episodes of the run's mean length. Returns that are not finite, or beyond
    1e15, are left out.

    Args:
        table: The episodes, any number of them; the figure says when there is none.
        title: First part of the headline, usually the env id.
        solved_at: Return that counts as solved, drawn as a line; None draws none.
        wall_s: Seconds that the training took, for the headline; None leaves them out.

    Returns:
        A new figure of 10 by 5 inches.
    """
    finite = np.abs(table.return_) <= LARGEST
    steps = table.env_step[finite].astype(np.float64)
    returns = table.return_[finite]
    if returns.size == 0:
        return _empty_figure(title)
    figure = _new_figure(_headline(title, returns.size, steps.max(), wall_s))
    left, right = figure.subplots(1, 2, width_ratios=(2.0, 1.0))
    _draw_returns(left, steps, returns)
    _draw_trend(left, steps, returns)
    _draw_solved(left, solved_at)
    _add_legend(left, columns=2)
    _draw_histogram(right, returns)
    _add_legend(right, columns=1)
    return figure


def build_wall_time_figure(
    metrics: Sequence[dict[str, object]], *, title: str, solved_at: float | None
) -> Figure:
    """Draw the mean return of the last 100 episodes over wall seconds, and the speed behind it.

    Where the clock starts again at zero, as in a resumed run, it is counted on.

    Args:
        metrics: Records with ``wall_s``, ``return_mean_100`` and ``sps``; None where unknown.
        title: The headline, usually the env id.
        solved_at: Return that counts as solved; when the mean reaches it, the time is marked.

    Returns:
        A new figure of 10 by 5 inches.
    """
    wall_s = wall_seconds(metrics)
    returns = _column(metrics, "return_mean_100")
    if not np.isfinite(wall_s + returns).any():
        return _empty_figure(title)
    figure = _new_figure(title)
    axes = figure.subplots()
    speed = axes.twinx()
    _draw_speed(speed, wall_s, _column(metrics, "sps"))
    _draw_wall_time(axes, wall_s, returns)
    _draw_solved(axes, solved_at)
    _mark_solved(axes, wall_s, returns, solved_at)
    axes.set_zorder(speed.get_zorder() + 1)
    axes.patch.set_visible(False)
    _add_legend(axes, columns=4, behind=speed)
    return figure


def wall_seconds(metrics: Sequence[dict[str, object]]) -> FloatArray:
    """Return the wall seconds of every record, counted on over restarts of the clock.

    Args:
        metrics: M records with ``wall_s``; None where unknown.

    Returns:
        [M] float64, NaN where unknown.
    """
    wall_s = _column(metrics, "wall_s")
    previous = np.concatenate((np.zeros(1), wall_s))[:-1]
    counted_on: FloatArray = wall_s + np.cumsum(np.where(wall_s < previous, previous, 0.0))
    return counted_on


def drawable(value: object) -> float | None:
    """Return a number that axes can show; None for one that is not finite or beyond 1e15."""
    fine = isinstance(value, int | float) and abs(value) <= LARGEST
    return float(value) if fine else None  # type: ignore[arg-type]


def _column(metrics: Sequence[dict[str, object]], name: str) -> FloatArray:
    values = (record.get(name) for record in metrics)
    numbers = [np.nan if number is None else number for number in map(drawable, values)]
    return np.array(numbers, dtype=np.float64)


def _trailing_mean(values: FloatArray, window: int) -> FloatArray:
    """Return the mean of the last window values at each place, of fewer at the start."""
    sums = np.cumsum(values)
    sums[window:] = sums[window:] - sums[:-window]
    means: FloatArray = sums / np.minimum(np.arange(1.0, values.size + 1.0), window)
    return means


def _headline(title: str, episodes: int, env_steps: float, wall_s: float | None) -> str:
    counted = "1 episode" if episodes == 1 else f"{episodes:,} episodes"
    parts = [title, counted, f"{env_steps:,.0f} env steps"]
    if wall_s is not None:
        parts.append(f"{format_duration(wall_s)} wall time")
    return "  ·  ".join(parts)


def _new_figure(headline: str) -> Figure:
    figure = Figure(figsize=SIZE_IN, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    figure.suptitle(
        headline, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False
    )
    return figure


def _empty_figure(title: str) -> Figure:
    figure = _new_figure(title)
    text = "no finished episode yet"
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=14, color=FAINT)
    return figure


def _draw_returns(axes: Axes, steps: FloatArray, returns: FloatArray) -> None:
    alpha = float(np.clip(14.0 / np.sqrt(returns.size), 0.12, 0.7))
    axes.plot(
        steps, returns, ".", color=DOT, alpha=alpha, markersize=4, rasterized=True, label="episode"
    )
    first = min(returns.size, MEAN_FROM) - 1
    mean = _trailing_mean(returns, WINDOW)[first:]
    label = f"mean of the last {WINDOW}"
    axes.plot(steps[first:], mean, color=MEAN, linewidth=2, marker=_marker(mean), label=label)
    _dress(axes, x="env steps", y="return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_trend(axes: Axes, steps: FloatArray, returns: FloatArray) -> None:
    """Draw the least-squares line; none through a handful of episodes."""
    if steps.size < TREND_FROM:
        return
    centred = steps - steps.mean()
    spread = max(1.0, float(centred @ centred))
    slope = float(centred @ returns) / spread
    ends = np.array([steps.min(), steps.max()])
    heights = returns.mean() + slope * (ends - steps.mean())
    rise = slope * float(np.ptp(steps)) / (steps.size - 1) * 100.0
    label = f"trend, {rise:+,.1f} per 100 episodes"
    axes.plot(ends, heights, "--", color=TREND, linewidth=1.5, label=label)


def _draw_solved(axes: Axes, solved_at: float | None) -> None:
    if solved_at is not None:
        label = f"solved at {solved_at:g}"
        axes.axhline(solved_at, color=SOLVED, linewidth=1.2, label=label, zorder=1.5)


def _mark_solved(
    axes: Axes, wall_s: FloatArray, returns: FloatArray, solved_at: float | None
) -> None:
    """Mark the first moment at which the mean return reached the threshold."""
    reached = np.flatnonzero(returns >= (np.inf if solved_at is None else solved_at))
    if reached.size:
        moment_s = float(wall_s[reached[0]])
        label = f"reached after {format_duration(moment_s)}"
        axes.axvline(moment_s, color=SOLVED, linewidth=1.2, linestyle=":", label=label)


def _draw_histogram(axes: Axes, returns: FloatArray) -> None:
    axes.hist(returns, bins=BINS, color=DOT, edgecolor="white", linewidth=0.3)
    mean, median = float(returns.mean()), float(np.median(returns))
    axes.axvline(mean, color=MEAN, linewidth=2, label=f"mean {mean:,.1f}")
    axes.axvline(median, color=TREND, linewidth=1.5, linestyle="--", label=f"median {median:,.1f}")
    _dress(axes, x="return", y="episodes")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS, integer=True))
    axes.yaxis.set_major_formatter(_thousands())


def _draw_wall_time(axes: Axes, wall_s: FloatArray, returns: FloatArray) -> None:
    label = f"mean return of the last {WINDOW} episodes"
    axes.plot(wall_s, returns, color=MEAN, linewidth=2.2, marker=_marker(returns), label=label)
    _dress(axes, x="wall time [s]", y="return")
    axes.set_xlim(left=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=TICK_STEPS, integer=True))
    axes.xaxis.set_major_formatter(_thousands())


def _draw_speed(axes: Axes, wall_s: FloatArray, sps: FloatArray) -> None:
    """Draw the speed as a pale band in the lower third, out of the way of the returns."""
    known = sps[np.isfinite(sps)]
    top = float(known.max()) if known.size else 1.0
    axes.fill_between(wall_s, sps, color=BAND, linewidth=0, label="env steps per second")
    axes.set_yticks(MaxNLocator(3, steps=TICK_STEPS).tick_values(0.0, top))
    axes.set_ylim(0.0, 3.0 * max(top, 1.0))
    axes.set_ylabel("env steps per second", color=FAINT, loc="bottom")
    axes.yaxis.set_major_formatter(_thousands())
    axes.tick_params(colors=FAINT, length=0)
    axes.spines[["left", "top", "right", "bottom"]].set_visible(False)


def _thousands() -> Formatter:
    return StrMethodFormatter("{x:,.0f}")


def _marker(values: FloatArray) -> str:
    """Show a line of one point, which would be invisible, as a dot."""
    return "o" if np.isfinite(values).sum() == 1 else ""


def _dress(axes: Axes, *, x: str, y: str) -> None:
    """Give axes the common quiet look: no box, a faint grid behind, few ticks."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)


def _add_legend(axes: Axes, *, columns: int, behind: Axes | None = None) -> None:
    """Put the legend under the axes, where it covers nothing, with its colours at full strength."""
    handles, labels = axes.get_legend_handles_labels()
    if behind is not None:
        more_handles, more_labels = behind.get_legend_handles_labels()
        handles, labels = [*handles, *more_handles], [*labels, *more_labels]
    legend = axes.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
