"""Pictures of a run as PNG files, drawn from what its folder holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fastdqn.errors import UsageError
from fastdqn.foundation.policy_folders import has_best
from fastdqn.foundation.saved_files import replacing
from fastdqn.reporting.figures import (
    RunData,
    build_returns_figure,
    build_wall_time_figure,
    drawable,
)
from fastdqn.reporting.metrics import read_metrics
from fastdqn.reporting.tables import EPISODES, EVALUATIONS, solved_threshold

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

__all__ = ["plot_run", "save_figure"]

DPI = 150
LONGEST_TITLE = 100


def plot_run(run_dir: Path) -> list[Path]:
    """Draw the pictures of a run into its folder ``plots``.

    ``returns.png`` comes from episodes.csv; ``wall_time.png`` from metrics.jsonl, where there is
    one; both show evaluations.csv, where there is one, and with a star the best policy, where the
    folder holds it. The headline and the threshold
    come from config.json's ``env_id`` and ``solved_at``, or else ``stop_at_return``; without them
    the folder's name is the headline, and the environment's own threshold is drawn, if known.

    Args:
        run_dir: The folder of a run, finished or still running.

    Returns:
        The files written.

    Raises:
        UsageError: The folder or its episodes.csv is missing, or a file in it is
            malformed.
        OSError: A file cannot be read or written.
    """
    episodes = EPISODES.read(_episodes_path(run_dir))
    metrics, evaluations = run_dir / "metrics.jsonl", run_dir / "evaluations.csv"
    title, solved_at = _named(run_dir)
    evaluated = EVALUATIONS.read(evaluations) if evaluations.exists() else EVALUATIONS.table_of()
    if not has_best(run_dir):  # older releases marked screenings, and kept no policy
        evaluated.best[:] = False
    run = RunData(
        title,
        solved_at,
        episodes,
        read_metrics(metrics) if metrics.is_file() else (),
        evaluated,
    )
    pictures = {"returns": build_returns_figure}
    if metrics.is_file():
        pictures["wall_time"] = build_wall_time_figure
    paths = [run_dir / "plots" / f"{name}.png" for name in pictures]
    for path, build in zip(paths, pictures.values(), strict=True):
        save_figure(build(run), path)
    return paths


def _episodes_path(run_dir: Path) -> Path:
    if not run_dir.is_dir():
        raise UsageError(
            str(run_dir), "no such folder", "Pass the folder of a run, as `fastdqn train` names it."
        )
    path = run_dir / "episodes.csv"
    if not path.is_file():
        raise UsageError(
            str(path),
            "missing, so there is nothing to plot",
            "Pass the folder of a run in which `fastdqn train` has started to train.",
        )
    return path


def _named(run_dir: Path) -> tuple[str, float | None]:
    """Return the title and the solved threshold of a run from its config."""
    config = _read_config(run_dir / "config.json")
    env_id = config.get("env_id")
    solved_at = config.get("solved_at", config.get("stop_at_return"))
    title = env_id if isinstance(env_id, str) else run_dir.name
    title = "".join(filter(str.isprintable, title.encode(errors="replace").decode()))
    title = title[:LONGEST_TITLE]
    return title, solved_threshold(title, drawable(solved_at))


def _read_config(path: Path) -> dict[str, object]:
    """Return all entries of config.json, the resolved ones last; empty if missing."""
    if not path.is_file():
        return {}
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            str(path), f"not JSON ({error})", "Repair it, or move it away to plot without it."
        ) from error
    if not isinstance(content, dict):
        return {}
    parts = [content.get(name) for name in ("config", "resolved")]
    return content | {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure of 10 by 5 inches as a PNG of 1500 by 750 pixels; its folder is made.

    Raises:
        OSError: The file cannot be written; an older picture stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=DPI, format="png")
