"""Where the policies of a run lie, also after a crash in the midst of a replacement."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BEST", "CHECKPOINTS", "aside", "has_best", "kept"]

CHECKPOINTS, BEST = "checkpoints", "best"


def aside(folder: Path) -> Path:
    """Return the folder of a policy whose replacement a crash interrupted."""
    return folder.with_name(f".replaced-{folder.name}")


def kept(folder: Path) -> Path:
    """Return the folder of a policy, or where a crash left it while it was replaced."""
    return aside(folder) if not folder.exists() and aside(folder).exists() else folder


def has_best(run_dir: Path) -> bool:
    """Return whether the folder of a run holds a best policy."""
    return kept(run_dir / CHECKPOINTS / BEST).exists()
