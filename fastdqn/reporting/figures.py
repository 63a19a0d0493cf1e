"""Figures of a run, in memory: returns over env steps, and the return over wall time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import EngFormatter, MaxNLocator

from fastdqn.foundation.formatting import format_duration, format_return
from fastdqn.reporting.figure_style import (
    FAINT,
    SOLVED,
    THOUSANDS,
    TICK_STEPS,
    add_legend,
    draw_evaluations,
    draw_solved,
    dress,
    empty_figure,
    marker,
    new_figure,
)
from fastdqn.reporting.tables import EPISODES, EVALUATIONS, EpisodeTable, EvaluationTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["RunData", "build_returns_figure", "build_wall_time_figure", "drawable", "wall_seconds"]

FloatArray = npt.NDArray[np.float64]

WINDOW = 100
MEAN_FROM, TREND_FROM = 20, 10
BINS = 40
LARGEST = 1e15
DOT, MEAN, TREND = "#8fb3d9", "#1f5fa8", "#d9822b"
BAND = "#edf1f5"


@dataclass(frozen=True)
class RunData:
    """What is drawn of a run.

    Attributes:
        title: First part of the headlines, usually the env id.
        solved_at: Return that counts as solved, drawn as a line; None draws none.
        episodes: Any number of them; a figure says when there is none.
        metrics: Records with ``env_steps``, ``wall_s``, ``return_mean_100`` and ``sps``; None where
            unknown.
        evaluations: Greedy evaluations.
    """

    title: str
    solved_at: float | None
    episodes: EpisodeTable = field(default_factory=EPISODES.table_of)
    metrics: Sequence[dict[str, object]] = ()
    evaluations: EvaluationTable = field(default_factory=EVALUATIONS.table_of)


def build_returns_figure(run: RunData) -> Figure:
    """Draw the return of every episode over env steps, and the histogram of the returns.

    The left panel holds the episodes as dots, the mean of the last 100 from the 20th on, the
    greedy evaluations, and, from 10 episodes on, faintly, the straight line over env steps that
    fits the episodes best; the legend gives its rise per 100 episodes of the run's mean length.
    Returns that are not finite, or beyond 1e15, are left out. The headline has the env steps and
    the wall time of the training, where they are known.

    Returns:
        A new figure of 10 by 5 inches.
    """
    finite = np.abs(run.episodes.return_) <= LARGEST
    steps = run.episodes.env_step[finite].astype(np.float64)
    returns = run.episodes.return_[finite]
    if returns.size == 0:
        return empty_figure(run.title)
    figure = new_figure(_headline(run, returns.size))
    left, right = figure.subplots(1, 2, width_ratios=(2.0, 1.0))
    _draw_returns(left, steps, returns)
    _draw_trend(left, steps, returns)
    draw_evaluations(left, run.evaluations.env_step.astype(np.float64), run.evaluations)
    draw_solved(left, run.solved_at)
    add_legend(left, columns=2)
    _draw_histogram(right, returns)
    add_legend(right, columns=1)
    return figure


def build_wall_time_figure(run: RunData) -> Figure:
    """Draw the mean return of the last 100 episodes over wall seconds, and the speed behind it.

    If the clock restarts at zero, as in a resumed run, its seconds are added to those before. When
    the mean reaches the return that counts as solved, the time is marked.

    Returns:
        A new figure of 10 by 5 inches.
    """
    wall_s, evaluated_s = _on_one_clock(run.metrics, run.evaluations)
    returns = _column(run.metrics, "return_mean_100")
    if not np.isfinite(wall_s + returns).any():
        return empty_figure(run.title)
    figure = new_figure(run.title)
    axes = figure.subplots()
    speed = axes.twinx()
    _draw_speed(speed, wall_s, _column(run.metrics, "sps"))
    _draw_wall_time(axes, wall_s, returns)
    draw_evaluations(axes, evaluated_s, run.evaluations)
    draw_solved(axes, run.solved_at)
    _mark_solved(axes, wall_s, returns, run.solved_at)
    latest_s = float(np.nanmax(np.concatenate((wall_s, evaluated_s))))
    axes.set_xlim(0.0, 1.03 * latest_s or 1.0)
    axes.set_zorder(speed.get_zorder() + 1)
    axes.patch.set_visible(False)
    add_legend(axes, columns=3, background=speed)
    return figure


def _on_one_clock(
    metrics: Sequence[dict[str, object]], evaluations: EvaluationTable
) -> tuple[FloatArray, FloatArray]:
    """Return the wall seconds of reports and evaluations, added up over restarts of the clock."""
    rows: list[dict[str, object]] = [*metrics]
    evaluated = zip(evaluations.env_step.tolist(), evaluations.wall_s.tolist(), strict=True)
    rows += [{"env_steps": env_step, "wall_s": wall_s} for env_step, wall_s in evaluated]
    env_steps = np.nan_to_num(_column(rows, "env_steps"), nan=-1.0)
    order = np.argsort(env_steps, kind="stable") if len(evaluations) else np.arange(len(rows))
    counted = np.empty(len(rows))
    counted[order] = wall_seconds([rows[i] for i in order])
    return counted[: len(metrics)], counted[len(metrics) :]


def wall_seconds(metrics: Sequence[dict[str, object]]) -> FloatArray:
    """Return the wall seconds of every record, added up over restarts of the clock.

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


def _headline(run: RunData, episodes: int) -> str:
    counted = "1 episode" if episodes == 1 else f"{episodes:,} episodes"
    parts = [run.title, counted, f"{_env_steps(run):,} env steps"]
    wall_s = wall_seconds(run.metrics)
    wall_s = wall_s[np.isfinite(wall_s)]
    if wall_s.size:
        parts.append(f"{format_duration(float(wall_s[-1]))} wall time")
    return "  ·  ".join(parts)


def _env_steps(run: RunData) -> int:
    """Return the latest env step that a report, an episode or an evaluation has."""
    reported = (record.get("env_steps") for record in run.metrics)
    steps = [number for number in reported if isinstance(number, int)]
    logged = run.episodes.env_step.tolist() + run.evaluations.env_step.tolist()
    latest: int = max([0, *steps, *logged])
    return latest


def _draw_returns(axes: Axes, steps: FloatArray, returns: FloatArray) -> None:
    alpha = float(np.clip(14.0 / np.sqrt(returns.size), 0.12, 0.7))
    axes.plot(
        steps, returns, ".", color=DOT, alpha=alpha, markersize=4, rasterized=True, label="episode"
    )
    first = min(returns.size, MEAN_FROM) - 1
    mean = _trailing_mean(returns, WINDOW)[first:]
    label = f"mean of the last {WINDOW}"
    axes.plot(steps[first:], mean, color=MEAN, linewidth=2, marker=marker(mean), label=label)
    dress(axes, x="env steps", y="return")
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
    beside = float(np.abs(returns).max())
    label = (
        f"straight-line trend, {format_return(rise, beside=beside, signed=True)} per 100 episodes"
    )
    axes.plot(ends, heights, "--", color=TREND, linewidth=1.0, alpha=0.6, label=label)


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
    axes.axvline(mean, color=MEAN, linewidth=2, label=f"mean {format_return(mean)}")
    axes.axvline(
        median, color=TREND, linewidth=1.5, linestyle="--", label=f"median {format_return(median)}"
    )
    dress(axes, x="return", y="episodes")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(THOUSANDS)


def _draw_wall_time(axes: Axes, wall_s: FloatArray, returns: FloatArray) -> None:
    label = f"mean return of the last {WINDOW} episodes"
    axes.plot(wall_s, returns, color=MEAN, linewidth=2.2, marker=marker(returns), label=label)
    dress(axes, x="wall time [s]", y="return")
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=TICK_STEPS, integer=True))
    axes.xaxis.set_major_formatter(THOUSANDS)


def _draw_speed(axes: Axes, wall_s: FloatArray, sps: FloatArray) -> None:
    """Draw the speed as a pale band in the lower third, out of the way of the returns."""
    known = sps[np.isfinite(sps)]
    top = float(known.max()) if known.size else 1.0
    axes.fill_between(wall_s, sps, color=BAND, linewidth=0, label="env steps per second")
    axes.set_yticks(MaxNLocator(3, steps=TICK_STEPS).tick_values(0.0, top))
    axes.set_ylim(0.0, 3.0 * max(top, 1.0))
    axes.set_ylabel("env steps per second", color=FAINT, loc="bottom")
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.tick_params(colors=FAINT, length=0)
    axes.spines[["left", "top", "right", "bottom"]].set_visible(False)
