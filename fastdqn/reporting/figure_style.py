"""The style of a run's figures: canvas, axes, legends, and marks that several figures share.

They are drawn by the Agg canvas without pyplot, so that nothing global changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastdqn.foundation.formatting import format_return, format_threshold

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastdqn.reporting.tables import EvaluationTable

__all__ = [
    "FAINT",
    "SOLVED",
    "THOUSANDS",
    "TICK_STEPS",
    "add_legend",
    "draw_evaluations",
    "draw_solved",
    "dress",
    "empty_figure",
    "marker",
    "new_figure",
]

FloatArray = npt.NDArray[np.float64]

THOUSANDS = "{x:,.15g}"
"""Format of ticks: commas between thousands, decimals where there are some."""
SIZE_IN = (10.0, 5.0)
TICK_STEPS = (1, 2, 2.5, 5, 10)
SOLVED, EVALUATED, BEST = "#2e8b57", "#b5376b", "#e0a100"
INK, FAINT, GRID = "#333333", "#8c8c8c", "#e6e6e6"


def new_figure(headline: str) -> Figure:
    """Return an empty white figure of 10 by 5 inches under a headline."""
    figure = Figure(figsize=SIZE_IN, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    figure.suptitle(
        headline, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False
    )
    return figure


def empty_figure(title: str) -> Figure:
    """Return a figure that says that there is no episode yet."""
    figure = new_figure(title)
    text = "no finished episode yet"
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=14, color=FAINT)
    return figure


def draw_solved(axes: Axes, solved_at: float | None) -> None:
    """Draw the return that counts as solved; None draws nothing."""
    if solved_at is not None:
        label = f"solved at {format_threshold(solved_at)}"
        axes.axhline(solved_at, color=SOLVED, linewidth=1.2, label=label, zorder=1.5)


def draw_evaluations(axes: Axes, x: FloatArray, evaluations: EvaluationTable) -> None:
    """Draw the mean of every greedy evaluation, with a bar of one deviation to each side.

    Those of fewer episodes than the largest one, screenings, are hollow; the best policy's has a
    star.

    Args:
        axes: With returns on the y axis.
        x: [K] position of each on the x axis.
        evaluations: K of them.
    """
    finite = np.isfinite(x + evaluations.mean + evaluations.std)
    if not finite.any():
        return
    few = evaluations.episodes < evaluations.episodes[finite].max()
    mean, std = evaluations.mean, evaluations.std
    axes.errorbar(
        x[finite], mean[finite], std[finite], fmt="none", ecolor=EVALUATED, elinewidth=1.0,
        alpha=0.45, zorder=3,
    )  # fmt: skip
    for which, face, label in (
        (finite & few, "white", "greedy screening ± std"),
        (finite & ~few, EVALUATED, "greedy evaluation ± std"),
    ):
        if which.any():
            axes.plot(
                x[which], mean[which], "o", color=EVALUATED, markerfacecolor=face,
                markersize=5, markeredgewidth=1.2, label=label, zorder=3.5,
            )  # fmt: skip
    best = np.flatnonzero(finite & evaluations.best)[-1:]
    if best.size:
        label = f"best policy, {format_return(float(mean[best[0]]))}"
        axes.plot(
            x[best], mean[best], "*", color=BEST, markersize=15, markeredgecolor="white",
            markeredgewidth=0.8, label=label, zorder=4.0,
        )  # fmt: skip


def marker(values: FloatArray) -> str:
    """Show a line of one point, which would be invisible, as a dot."""
    return "o" if np.isfinite(values).sum() == 1 else ""


def dress(axes: Axes, *, x: str, y: str) -> None:
    """Give axes the common quiet look: no box, a faint grid behind, few ticks."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)


def add_legend(axes: Axes, *, columns: int, background: Axes | None = None) -> None:
    """Put the legend under the axes, where it covers nothing, with its colours at full strength."""
    of_each = [each.get_legend_handles_labels() for each in (axes, background) if each is not None]
    legend = axes.legend(
        [handle for handles, _ in of_each for handle in handles],
        [label for _, labels in of_each for label in labels],
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
