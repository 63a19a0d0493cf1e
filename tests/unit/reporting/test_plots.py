"""The pictures of a run: what is drawn, and which files are written."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from fastdqn.errors import UsageError
from fastdqn.foundation.formatting import format_return
from fastdqn.reporting import figures
from fastdqn.reporting.figures import RunData, wall_seconds
from fastdqn.reporting.metrics import MetricsLog
from fastdqn.reporting.plots import plot_run, save_figure
from fastdqn.reporting.tables import EpisodeLog, EpisodeTable, EvaluationLog, EvaluationTable
from fastdqn.training.evaluation import Evaluation
from fastdqn.training.events import Episode, Report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


def _table(returns: Sequence[float], length: int = 50) -> EpisodeTable:
    count = len(returns)
    serials = np.arange(1, count + 1, dtype=np.int64)
    return EpisodeTable(
        episode=serials,
        env_step=serials * length,
        return_=np.array(returns, dtype=np.float64),
        length=np.full(count, length, dtype=np.int64),
        status=["Terminated"] * count,
    )


def build_returns_figure(
    table: EpisodeTable, *, title: str, solved_at: float | None, wall_s: float | None = None
) -> Figure:
    metrics: list[dict[str, object]] = [] if wall_s is None else [{"wall_s": wall_s}]
    return figures.build_returns_figure(RunData(title, solved_at, table, metrics))


def build_wall_time_figure(
    metrics: Sequence[dict[str, object]], *, title: str, solved_at: float | None
) -> Figure:
    return figures.build_wall_time_figure(RunData(title, solved_at, metrics=metrics))


def _metrics(wall_s: Sequence[float], returns: Sequence[float | None]) -> list[dict[str, object]]:
    pairs = zip(wall_s, returns, strict=True)
    return [{"wall_s": w, "return_mean_100": r, "sps": 1000.0 + w} for w, r in pairs]


def _line(axes: Axes, label: str) -> Line2D:
    """Return the one line whose label starts with the words."""
    (line,) = (line for line in axes.get_lines() if str(line.get_label()).startswith(label))
    return line


def _labels(axes: Axes) -> list[str]:
    return [str(line.get_label()) for line in axes.get_lines()]


def _y(line: Line2D) -> npt.NDArray[np.float64]:
    return np.asarray(line.get_ydata(), dtype=np.float64)


def _x(line: Line2D) -> npt.NDArray[np.float64]:
    return np.asarray(line.get_xdata(), dtype=np.float64)


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def _png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def test_returns_figure_draws_dots_mean_trend_and_threshold() -> None:
    returns = [float(i) for i in range(300)]
    figure = build_returns_figure(_table(returns), title="Env-v0", solved_at=250.0, wall_s=45.0)
    left, right = figure.axes
    assert (
        figure.get_suptitle() == "Env-v0  ·  300 episodes  ·  15,000 env steps  ·  0:45 wall time"
    )
    dots = _line(left, "episode")
    assert _y(dots).tolist() == returns
    assert _x(dots).tolist() == [50.0 * (i + 1) for i in range(300)]
    assert dots.get_rasterized()
    mean = _line(left, "mean of the last 100")
    assert _x(mean)[0] == 20 * 50
    assert _y(mean)[0] == pytest.approx(sum(range(20)) / 20)
    assert _y(mean)[-1] == pytest.approx(sum(range(200, 300)) / 100)
    assert len(_y(mean)) == 281
    trend = _line(left, "straight-line trend")
    assert trend.get_label() == "straight-line trend, +100.0 per 100 episodes"
    assert _x(trend).tolist() == [50.0, 15_000.0]
    assert _y(trend) == pytest.approx([0.0, 299.0])
    assert set(_y(_line(left, "solved at 250"))) == {250.0}
    assert (left.get_xlabel(), left.get_ylabel()) == ("env steps", "return")
    assert _labels(right) == ["mean 149.5", "median 149.5"]


def _evaluations(*rows: tuple[int, float, float, float, int]) -> EvaluationTable:
    steps, wall_s, mean, std, episodes = (np.array(column) for column in zip(*rows, strict=True))
    return EvaluationTable(steps, wall_s, mean, std, episodes, np.zeros(len(rows), np.bool_))


def test_evaluations_are_drawn_with_their_deviation_and_screenings_hollow() -> None:
    table = _table([float(i) for i in range(300)])
    found = _evaluations(
        (5_000, 1.0, 100.0, 5.0, 5), (10_000, 2.0, 260.0, 30.0, 100), (15_040, 3.0, np.nan, 1.0, 5)
    )
    run = RunData("t", 250.0, table, evaluations=found)
    left = figures.build_returns_figure(run).axes[0]
    screening, full = (_line(left, f"greedy {what}") for what in ("screening", "evaluation"))
    assert (_x(screening).tolist(), _y(screening).tolist()) == ([5_000.0], [100.0])
    assert (_x(full).tolist(), _y(full).tolist()) == ([10_000.0], [260.0])
    assert screening.get_markerfacecolor() == "white" != full.get_markerfacecolor()
    (bars,) = (c for c in left.collections if isinstance(c, LineCollection))
    ends = [sorted(segment[:, 1].tolist()) for segment in bars.get_segments()]
    assert ends == [[95.0, 105.0], [230.0, 290.0]]


def test_the_best_policy_of_the_end_has_a_star() -> None:
    table = _table([float(i) for i in range(300)])
    found = _evaluations(
        (5_000, 1.0, 100.0, 5.0, 100), (9_000, 2.0, 260.0, 30.0, 100), (9_500, 3.0, 20.0, 1.0, 100)
    )
    found.best[:2] = True
    left = figures.build_returns_figure(RunData("t", None, table, evaluations=found)).axes[0]
    star = _line(left, "best policy, 260.0")
    assert (_x(star).tolist(), _y(star).tolist()) == ([9_000.0], [260.0])
    found.best[:] = False
    left = figures.build_returns_figure(RunData("t", None, table, evaluations=found)).axes[0]
    assert not any(label.startswith("best") for label in _labels(left))


@pytest.mark.parametrize("folder", ["", "checkpoints/best", "checkpoints/.replaced-best"])
def test_a_star_needs_a_best_policy_in_the_folder(tmp_path: Path, folder: str) -> None:
    """Runs of older releases mark screenings as the best, and hold no best policy."""
    _write_run(tmp_path)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    log = EvaluationLog(tmp_path / "evaluations.csv")
    log.append(100, 3.0, Evaluation(np.ones(5), np.ones(5, np.int64), best=True))
    log.close()
    seen: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdqn.reporting.plots.save_figure", lambda figure, _: seen.append(figure))
        plot_run(tmp_path)
    for figure in seen:
        starred = [label for label in _labels(figure.axes[0]) if label.startswith("best policy")]
        assert bool(starred) == bool(folder)


def test_the_headline_has_the_steps_of_the_run_and_not_of_its_last_episode(tmp_path: Path) -> None:
    _write_run(tmp_path)
    path = tmp_path / "evaluations.csv"
    log = EvaluationLog(path)
    log.append(110_000, 3.0, Evaluation(np.ones(100), np.ones(100, np.int64)))
    log.close()
    seen: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdqn.reporting.plots.save_figure", lambda figure, _: seen.append(figure))
        plot_run(tmp_path)
    assert "110,000 env steps" in seen[0].get_suptitle()


def test_evaluations_stand_at_their_time_over_restarts_of_the_clock() -> None:
    """A run of 10 s that goes on: its clock starts again, for the evaluations as well."""
    metrics: list[dict[str, object]] = [
        {"env_steps": n, "wall_s": w, "return_mean_100": 1.0, "sps": 9.0}
        for n, w in ((100, 5.0), (200, 9.0), (300, 4.0))
    ]
    found = _evaluations((200, 10.0, 2.0, 0.1, 5), (300, 6.0, 3.0, 0.1, 5))
    run = RunData("t", None, metrics=metrics, evaluations=found)
    figure = figures.build_wall_time_figure(run)
    axes = figure.axes[0]
    assert _x(_line(axes, "greedy evaluation")).tolist() == [10.0, 16.0]
    assert _x(_line(axes, "mean return")).tolist() == [5.0, 9.0, 14.0]
    assert axes.get_xlim()[1] > 16.0


def test_a_picture_on_a_full_disk_leaves_the_old_one_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "returns.png"
    path.write_bytes(b"old")

    def full(_: Figure, draft: Path, **__: object) -> None:
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space"):
        save_figure(build_returns_figure(_table([1.0]), title="t", solved_at=None), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["returns.png"]
    assert path.read_bytes() == b"old"


def test_trend_is_the_least_squares_line_over_env_steps() -> None:
    table = _table([3.0, -1.0, 4.0, 1.0, 5.0, 9.0, -2.0, 6.0, 5.0, 3.0, 5.0])
    table.env_step[:] = [1, 5, 6, 20, 30, 31, 50, 70, 71, 90, 201]
    figure = build_returns_figure(table, title="t", solved_at=None)
    slope, offset = np.polyfit(table.env_step, table.return_, 1)
    trend = _line(figure.axes[0], "straight-line trend")
    assert _y(trend) == pytest.approx([offset + slope, offset + slope * 201])
    assert f", {format_return(slope * 200 / 10 * 100, signed=True)} per 100" in str(
        trend.get_label()
    )


def test_histogram_counts_every_episode_and_marks_mean_and_median() -> None:
    figure = build_returns_figure(_table([0.0, 0.0, 0.0, 8.0]), title="t", solved_at=None)
    right = figure.axes[1]
    heights = [bar.get_height() for bar in right.patches if isinstance(bar, Rectangle)]
    assert sum(heights) == 4
    assert (heights[0], heights[-1]) == (3, 1)
    assert _x(_line(right, "mean 2.00")).tolist() == [2.0, 2.0]
    assert _x(_line(right, "median 0.0")).tolist() == [0.0, 0.0]


def test_one_episode_is_visible_and_has_no_trend() -> None:
    figure = build_returns_figure(_table([7.0]), title="t", solved_at=None)
    left = figure.axes[0]
    assert _labels(left) == ["episode", "mean of the last 100"]
    assert _line(left, "mean").get_marker() == "o"
    assert figure.get_suptitle() == "t  ·  1 episode  ·  50 env steps"


def test_episodes_that_all_end_at_one_step_draw_without_a_warning() -> None:
    table = _table([1.0] * 12)
    table.env_step[:] = 64
    figure = build_returns_figure(table, title="t", solved_at=1.0)
    assert "straight-line trend, +0.0 per 100 episodes" in _labels(figure.axes[0])


@pytest.mark.parametrize("returns", [[], [float("nan"), float("inf")]])
def test_no_episode_is_said(returns: list[float]) -> None:
    figure = build_returns_figure(_table(returns), title="Env-v0", solved_at=200.0)
    assert figure.axes == []
    assert "no finished episode yet" in _texts(figure)
    assert figure.get_suptitle() == "Env-v0"


def test_returns_that_are_not_finite_are_left_out() -> None:
    figure = build_returns_figure(_table([1.0, float("nan"), 3.0]), title="t", solved_at=None)
    assert _y(_line(figure.axes[0], "episode")).tolist() == [1.0, 3.0]


def test_many_episodes_fade_but_their_legend_does_not() -> None:
    few = build_returns_figure(_table([1.0, 2.0]), title="t", solved_at=None).axes[0]
    many = build_returns_figure(_table([1.0, 2.0] * 5000), title="t", solved_at=None).axes[0]
    assert _line(few, "episode").get_alpha() == 0.7
    assert _line(many, "episode").get_alpha() == pytest.approx(0.14)
    legend = many.get_legend()
    assert legend is not None
    assert [handle.get_alpha() for handle in legend.legend_handles if handle] == [1.0] * 3


@pytest.mark.parametrize("count", [1, 15, 3000])
def test_legends_and_labels_cover_no_axes(count: int) -> None:
    rng = np.random.default_rng(0)
    table = _table(rng.normal(0.0, 200.0, count).tolist())
    metrics = _metrics(np.linspace(0.1, 50.0, count).tolist(), table.return_.tolist())
    for figure in (
        build_returns_figure(table, title="LunarLander-v3", solved_at=200.0, wall_s=3.0),
        build_wall_time_figure(metrics, title="LunarLander-v3", solved_at=200.0),
    ):
        figure.canvas.draw()
        for axes in figure.axes:
            legend = axes.get_legend()
            if legend is None:
                continue
            box = legend.get_window_extent()
            assert box.y1 < axes.xaxis.label.get_window_extent().y0
            assert box.y0 >= 0.0
            assert box.x0 >= 0.0
            assert box.x1 <= figure.bbox.x1


def test_wall_time_figure_draws_return_speed_and_the_moment_of_solving() -> None:
    metrics = _metrics([1.0, 2.0, 63.0, 64.0], [None, -5.0, 200.0, 210.0])
    figure = build_wall_time_figure(metrics, title="Env-v0", solved_at=200.0)
    axes, speed = figure.axes
    mean = _line(axes, "mean return")
    assert _x(mean).tolist() == [1.0, 2.0, 63.0, 64.0]
    np.testing.assert_array_equal(_y(mean), [np.nan, -5.0, 200.0, 210.0])
    assert _x(_line(axes, "reached after 1:03")).tolist() == [63.0, 63.0]
    assert set(_y(_line(axes, "solved at 200"))) == {200.0}
    assert axes.get_xlabel() == "wall time [s]"
    (band,) = speed.collections
    assert band.get_datalim(speed.transData).y1 == 1064.0
    assert speed.get_ylim() == (0.0, 3 * 1064.0)
    assert figure.get_suptitle() == "Env-v0"


def _ticks(axis: Axis) -> list[str]:
    """Return the labels of an axis whose ticks lie within the picture."""
    low, high = sorted(axis.get_view_interval())
    places = [place for place in axis.get_majorticklocs() if low <= place <= high]
    return axis.get_major_formatter().format_ticks(places)


@pytest.mark.parametrize("wall_s", [0.004, 0.3, 1.4, 5.0, 40_000.0])
def test_every_tick_has_a_label_of_its_own(wall_s: float) -> None:
    """Also in runs of a second, of one episode and of few steps per second."""
    metrics = _metrics([wall_s / 2, wall_s], [1.0, 2.0])
    for record in metrics:
        record["sps"] = 0.7 * wall_s
    by_time = build_wall_time_figure(metrics, title="t", solved_at=None)
    one = build_returns_figure(_table([7.0]), title="t", solved_at=None)
    for axis in (by_time.axes[0].xaxis, by_time.axes[1].yaxis, one.axes[1].yaxis):
        labels = _ticks(axis)
        assert len(set(labels)) == len(labels) >= 2, labels
        assert max(map(len, labels)) <= len("100,000")
    assert "1" in labels
    assert "20,000" in _ticks(by_time.axes[0].xaxis) or wall_s < 100


@pytest.mark.parametrize("solved_at", [None, 300.0])
def test_wall_time_figure_marks_no_moment_that_never_came(solved_at: float | None) -> None:
    metrics = _metrics([1.0, 2.0], [1.0, 2.0])
    axes = build_wall_time_figure(metrics, title="t", solved_at=solved_at).axes[0]
    assert not any(label.startswith("reached") for label in _labels(axes))


@pytest.mark.parametrize("metrics", [[], _metrics([1.0, 2.0], [None, None]), [{"other": "x"}]])
def test_wall_time_figure_says_that_nothing_is_there(metrics: list[dict[str, object]]) -> None:
    figure = build_wall_time_figure(metrics, title="t", solved_at=1.0)
    assert "no finished episode yet" in _texts(figure)


def test_wall_seconds_count_on_over_restarts() -> None:
    metrics = _metrics([1.0, 5.0, 2.0, 3.0, 1.0], [0.0] * 5)
    assert wall_seconds(metrics).tolist() == [1.0, 5.0, 7.0, 8.0, 9.0]


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_pictures_are_1500_by_750_pixels(tmp_path: Path, count: int) -> None:
    returns, wall_time = tmp_path / "plots" / "r.png", tmp_path / "plots" / "w.png"
    values = [float(i % 7) for i in range(count)]
    figure = build_returns_figure(_table(values), title="t", solved_at=5.0)
    save_figure(figure, returns)
    figure = build_wall_time_figure(_metrics(values, values), title="t", solved_at=5.0)
    save_figure(figure, wall_time)
    assert _png_size(returns) == (1500, 750)
    assert _png_size(wall_time) == (1500, 750)


def _write_run(run_dir: Path, env_id: str = "LunarLander-v3") -> None:
    with closing(EpisodeLog(run_dir / "episodes.csv", env_id=env_id, solved_at=None)) as log:
        log.append([Episode(i, i * 90, i * 10.0, 90, False) for i in range(1, 31)])


def _write_metrics(run_dir: Path) -> None:
    log = MetricsLog(run_dir / "metrics.jsonl")
    log.append(Report(2700, 9000, 1, 30, 90.0, 155.0, 0.1, 0.5, 1.0, 2.0, 30.0, 70.0))
    log.close()


def test_plot_run_writes_both_pictures(tmp_path: Path) -> None:
    _write_run(tmp_path)
    _write_metrics(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"env_id": "LunarLander-v3"}))
    written = plot_run(tmp_path)
    assert written == [tmp_path / "plots" / "returns.png", tmp_path / "plots" / "wall_time.png"]
    assert [_png_size(path) for path in written] == [(1500, 750)] * 2


def test_plot_run_needs_episodes_only(tmp_path: Path) -> None:
    _write_run(tmp_path)
    assert plot_run(tmp_path) == [tmp_path / "plots" / "returns.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["returns.png"]


@pytest.mark.parametrize(
    ("config", "title", "solved_at"),
    [
        ({"env_id": "LunarLander-v3"}, "LunarLander-v3", 200.0),
        ({"env_id": "LunarLander-v3", "stop_at_return": 240}, "LunarLander-v3", 240.0),
        ({"config": {"env_id": "CartPole-v1", "stop_at_return": 475.0}}, "CartPole-v1", 475.0),
        ({"env_id": "CartPole-v1", "stop_at_return": None}, "CartPole-v1", None),
        ({"seed": 1}, "my_run", None),
        ([1, 2], "my_run", None),
        (None, "my_run", None),
    ],
)
def test_plot_run_takes_title_and_threshold_from_the_config(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: object,
    title: str,
    solved_at: float | None,
) -> None:
    drawn: list[RunData] = []

    def snapshot(run: RunData) -> Figure:
        drawn.append(run)
        return figures.build_returns_figure(run)

    monkeypatch.setattr("fastdqn.reporting.plots.build_returns_figure", snapshot)
    run_dir = tmp_path / "my_run"
    _write_run(run_dir)
    _write_metrics(run_dir)
    if config is not None:
        (run_dir / "config.json").write_text(json.dumps(config))
    plot_run(run_dir)
    (run,) = drawn
    assert (run.title, run.solved_at, run.metrics[-1]["wall_s"]) == (title, solved_at, 30.0)


def test_plot_run_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: no such folder.*fastdqn train"):
        plot_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"episodes\.csv: missing.*fastdqn train"):
        plot_run(tmp_path)
    _write_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json: not JSON.*Repair"):
        plot_run(tmp_path)


def test_plotting_leaves_pyplot_and_the_users_settings_alone() -> None:
    code = (
        "import sys, matplotlib as m\n"
        "settings = lambda: {k: m.rcParams[k] for k in m.rcParams if k != 'backend'}\n"
        "before = settings()\n"
        "import fastdqn.reporting.plots\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert settings() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Files that a stranger wrote


EPISODES = "episode,env_step,return,length,status\n"
DIGITS = "1" * 10_000
STRANGE = {
    "config.json": [
        *("[" * 100_000, '{"a": ' + DIGITS + "}", "\x00", "[]", '{"config": {"env_id": [1]}}'),
        *(f'{{"resolved": {{"solved_at": {n}}}}}' for n in ("NaN", "1e308", "-1e999", "1" * 400)),
        json.dumps({"config": {"env_id": "x" * 100_000}}),
        json.dumps({"config": {"env_id": "\x00\x1b[31m $\\frac{$ \ud800"}}),
    ],
    "episodes.csv": [
        *(f"{EPISODES}1,{n},1.0,5,T\n" for n in ("9" * 30, DIGITS, "-1", str(2**63))),
        *(f"{EPISODES}1,5,{n},5,T\n" for n in ("1e308", "nan", "-inf", "1e400", DIGITS)),
        EPISODES + "".join(f"{i},{i},{(-1) ** i * 1e300},1,T\n" for i in range(50)),
        EPISODES + "".join(f"{i},{i},{(-1) ** i * 1e15},1,T\n" for i in range(50)),
    ],
    "metrics.jsonl": [
        *("[" * 100_000 + "\n", '{"wall_s": ' + DIGITS + "}\n", '{"wall_s": [], "sps": {}}\n'),
        *(
            f'{{"wall_s": {n}, "return_mean_100": {n}, "sps": {n}}}\n'
            for n in ("1e308", "1" * 400, "NaN", "-5", "true", '"1"', "1e15")
        ),
    ],
}


@pytest.mark.parametrize("name", STRANGE)
def test_whatever_is_in_a_file_is_drawn_or_refused(name: str, tmp_path: Path) -> None:
    drawn = 0
    for number, content in enumerate(STRANGE[name]):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "episodes.csv").write_text(EPISODES + "1,5,1.0,5,Solved\n")
        (run / name).write_text(content)
        try:
            drawn += bool(plot_run(run))
        except UsageError as error:
            assert name in str(error)  # noqa: PT017 - it may also be drawn
    assert 0 < drawn < len(STRANGE[name])


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_pipe_is_no_file_of_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "episodes.csv").write_text(EPISODES + "1,5,1.0,5,Solved\n")
    os.mkfifo(tmp_path / name)
    assert plot_run(tmp_path) == [tmp_path / "plots" / "returns.png"]
