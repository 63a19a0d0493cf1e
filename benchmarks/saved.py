"""Saved results: JSON that is compared with, Markdown that is read."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.guards import Guard, Measured, summed_up
from benchmarks.provenance import RESULTS, as_markdown, provenance, save_result
from fastdqn.errors import UsageError

__all__ = ["find_base", "guards_of", "load", "load_base", "not_run_of", "report", "save", "shown"]

SCHEMA = 2
BASELINE = "baseline"
"""File in the folder of results with a line `KIND NAME` for each kind of device; may be missing."""

Saved = dict[str, Any]


def report(header: dict[str, Any], measured: Sequence[Measured]) -> str:
    """Return everything that was measured as Markdown."""
    guards = [guard for group in measured for guard in group.guards]
    not_run = {what: why for group in measured for what, why in group.not_run.items()}
    parts = [as_markdown(header), *(group.text for group in measured)]
    parts.append(f"### Guarded ratios\n\n{summed_up(guards)}")
    if not_run:
        lines = [f"- {what}: {why}" for what, why in not_run.items()]
        parts.append("Not run here:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def shown(command: str, measured: Measured, name: str) -> int:
    """Print what a study measured, save it under a name if there is one, and return 0."""
    header = provenance(command)
    text = f"{as_markdown(header)}\n\n{measured.text}"
    sys.stdout.write(text + "\n")
    guards = [guard.as_json() for guard in measured.guards]
    save_result(name, {"provenance": header, "guards": guards, **measured.data}, text)
    return 0


def save(
    name: str, kind: str, header: dict[str, Any], measured: Sequence[Measured]
) -> tuple[Path, Path]:
    """Write NAME.json and NAME.md into benchmarks/results, or where a path NAME.json says.

    Args:
        name: A plain name, or the path of the JSON file.
        kind: Kind of device, `cpu`, `cuda` or `mps`.
        header: The provenance.
        measured: What was measured.
    """
    path = _path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": SCHEMA,
        "kind": kind,
        "saved_at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "provenance": header,
        "guards": [guard.as_json() for group in measured for guard in group.guards],
        "not_run": {what: why for group in measured for what, why in group.not_run.items()},
        "groups": [{"title": group.title, **group.data} for group in measured],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    readable = path.with_suffix(".md")
    readable.write_text(report(header, measured) + "\n", encoding="utf-8")
    return path, readable


def load(name: str | Path) -> Saved:
    """Read saved results.

    Raises:
        UsageError: There is no such file, or it holds no guarded ratios.
    """
    path = _path_of(str(name))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or error})"
        raise UsageError(str(path), reason, f"Choose {', '.join(names()) or 'a file'}.") from error
    except ValueError as error:
        raise UsageError(str(path), f"it is no JSON ({error})", "Save it anew.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        way_out = "Save new ones: make bench-save NAME=x"
        raise UsageError(str(path), "it holds no guarded ratios", way_out)
    return content


def find_base(kind: str, folder: Path = RESULTS) -> Path:
    """Return the results to compare with: those named in `baseline`, or else the newest.

    Raises:
        UsageError: None were saved for this kind of device.
    """
    baseline = folder / BASELINE
    lines = baseline.read_text(encoding="utf-8").splitlines() if baseline.exists() else []
    named = dict(line.split() for line in lines if line.strip() and not line.startswith("#"))
    if kind in named:
        return folder / f"{named[kind]}.json"
    candidates = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("schema") == SCHEMA and content.get("kind") == kind:
            candidates.append((content["saved_at"], path))
    if not candidates:
        raise UsageError(
            f"a comparison on {kind}",
            f"no results for this kind of device lie in {folder}",
            "Save some first: make bench-save NAME=x, or name others with --base.",
        )
    return max(candidates)[1]


def load_base(name: str, kind: str) -> tuple[str, Saved]:
    """Return the results to compare with, the named ones or those of `find_base`, and their name.

    Raises:
        UsageError: There are none, or they are of another kind of device.
    """
    path = _path_of(name) if name else find_base(kind)
    base = load(path)
    if base["kind"] != kind:
        raise UsageError(
            f"--base {path.stem}",
            f"it was taken on {base['kind']}, and this is {kind}",
            "Choose one of the same kind, or measure with --device.",
        )
    return path.stem, base


def names() -> list[str]:
    """Return the names of what lies in benchmarks/results."""
    return sorted(path.stem for path in RESULTS.glob("*.json"))


def guards_of(saved: Saved) -> list[Guard]:
    """Return the guarded ratios of saved results."""
    return [Guard.from_json(entry) for entry in saved["guards"]]


def not_run_of(saved: Saved) -> dict[str, str]:
    """Return what could not be timed when they were saved, and why."""
    found: dict[str, str] = saved["not_run"]
    return found


def _path_of(name: str) -> Path:
    path = Path(name)
    return path if path.suffix == ".json" else RESULTS / f"{name}.json"
